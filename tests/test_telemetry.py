"""Nothing that bustseg uses reports to anyone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SWITCHES = ("MLFLOW_DISABLE_TELEMETRY", "NO_ALBUMENTATIONS_UPDATE", "HF_HUB_DISABLE_TELEMETRY", "NNCF_CI")

SILENT = """
import socket
def refused(*args, **kwargs):
    raise SystemExit(f"a connection to {args}")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refused
import bustseg.experiment, bustseg.data.transforms, bustseg.runs.store
import albumentations, mlflow
from huggingface_hub import constants
from mlflow.telemetry.utils import is_telemetry_disabled
assert is_telemetry_disabled() and constants.HF_HUB_DISABLE_TELEMETRY
"""


def run(code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in (*SWITCHES, "CI")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **changes})


def test_nothing_connects_to_anywhere_when_everything_is_imported() -> None:
    done = run(SILENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SWITCHES)
def test_a_users_own_choice_stays(name: str) -> None:
    done = run(f"import bustseg, os; print(os.environ[{name!r}])", **{name: "mine"})
    assert done.stdout.strip() == "mine", done.stderr
