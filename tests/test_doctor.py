"""`bustseg doctor` says what a machine can do, and `bustseg completion` what can be typed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bustseg import doctor
from bustseg.cli import VERBS

Bustseg = Callable[..., tuple[int, str, str]]


def lines(out: str) -> dict[str, str]:
    """What is said of each thing, behind its state."""
    return {line.split()[1]: f"{line.split()[0]} {' '.join(line.split()[2:])}" for line in out.splitlines()}


def test_a_sound_machine_is_described(bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSI_ROOT", str(phantoms))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=8e10))
    code, out, err = bustseg("doctor")
    assert (code, err) == (0, "")
    found = lines(out)
    assert {"bustseg", "CPU", "GPU", "precision", "data", "store", "runs", "cache"} <= set(found)
    assert "30 images" in found["data"]
    assert found["store"].startswith("ok sqlite:///")
    assert "the first run creates" in found["store"]
    assert found["runs"] == "ok mlruns: 80.0 GB free"
    assert not Path("mlruns").exists(), "looking leaves nothing behind"


def test_what_is_wrong_is_said_and_ends_in_1(bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSI_ROOT", "nowhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///runs")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1e9))
    code, out, _ = bustseg("doctor")
    assert code == 1
    found = lines(out)
    assert found["data"] == "wrong BUSI_ROOT is nowhere, which is not a folder"
    assert found["store"].startswith("wrong MLflow no longer writes file stores")
    assert found["runs"] == "wrong mlruns: 1.0 GB free, which is too little"


def test_absent_extras_are_named_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        "torch>=2",
        'pydicom>=3 ; extra == "dicom"',
        'highdicom>=0.2 ; extra == "dicom"',
        'onnx ; extra == "deploy"',
    ]
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "highdicom")
    extras = [finding.text for finding in doctor._extras()]
    assert "dicom: pip install 'bustseg[dicom]' (lacks highdicom)" in extras
    assert "deploy" in extras


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_and_keys(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("completion", "bash")
    assert code == 0
    Path("bustseg.bash").write_text(out)

    def complete(*words: str) -> set[str]:
        ask = f"source bustseg.bash; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        ask += '_shtab_bustseg bustseg; printf "%s\\n" "${COMPREPLY[@]}"'
        answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        return set(answer.stdout.split())

    assert complete("bustseg", '""') >= {verb.split()[0] for verb in VERBS}
    assert complete("bustseg", "data", "ph") == {"phantom"}
    assert complete("bustseg", "fit", "--trainer.max_ep") == {"--trainer.max_epochs"}
    assert "--resume" in complete("bustseg", "sweep", "--res")
    assert bustseg("completion", "zsh")[1].startswith("#compdef bustseg")
