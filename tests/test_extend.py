"""Each kind of part is added from outside, by a module that bustseg knows nothing of, and goes through fit and test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from bustseg.metrics import unregister
from tests.conftest import REPOSITORY

Run = Callable[..., tuple[int, str, str]]

THEIRS = Path(__file__).parent / "fixtures" / "theirs.py"
GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "extend.md"

CONFIG = {
    "model": {"network": {"class_path": "theirs.SmallNet"}, "loss": {"class_path": "theirs.SquaredError"}},
    "data": {
        "source": {"class_path": "theirs.OneFolder"},
        "root": "images",
        "image_size": 32,
        "augmentation": [{"class_path": "theirs.Inverted", "init_args": {"p": 0.5}}],
    },
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "logger": [{"class_path": "theirs.Lines", "init_args": {"path": "lines.txt"}}],
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module, images and a config of somebody's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUSI_ROOT", raising=False)
    (tmp_path / "theirs.py").write_text(THEIRS.read_text())
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        image = rng.integers(80, 200, (48, 64), dtype=np.uint8)
        mask = np.zeros_like(image)
        mask[10 : 20 + number, 15:40] = 255
        cv2.imwrite(f"images/scan{number}.png", np.where(mask, image // 3, image))
        cv2.imwrite(f"images/scan{number}_mask.png", mask)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("theirs", None)
    unregister("width_error")


def test_every_part_from_outside(project: Path, bustseg: Run) -> None:
    code, _, err = bustseg("fit", "--config", "theirs.yaml", "--tracking.uri", "sqlite:///mlruns/mlflow.db")
    assert code == 0, err
    assert "val/dice_lesion" in Path("lines.txt").read_text(), "their logger has the metrics"
    # in a process of its own, since this one has been given the config, which is the user's word
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), str(REPOSITORY)])}
    command = [sys.executable, "-m", "bustseg.cli", "test", "--ckpt_path", "latest"]
    refused = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "--trust" in refused.stderr
    code, _, err = bustseg("test", "--ckpt_path", "latest", "--trust", "theirs")
    assert code == 0, err
    (table,) = Path("mlruns").glob("*/*/tables/test.csv")
    assert pd.read_csv(table)["width_error"].notna().any()


def test_the_guide_shows_the_module_that_is_tested() -> None:
    assert THEIRS.read_text().partition('"""\n\n')[2].strip() in GUIDE.read_text()
