"""Where checkpoints lie, and what of a checkpoint's state is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bustseg.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, _RunCheckpoint


def state(folder: Path, name: str) -> dict[str, Any]:
    path = str(folder / name)
    return {
        "monitor": "val/loss",
        "best_model_score": torch.tensor(0.25),
        "best_model_path": path,
        "current_score": torch.tensor(0.25),
        "dirpath": str(folder),
        "best_k_models": {path: torch.tensor(0.25)},
        "kth_best_model_path": path,
        "kth_value": torch.tensor(0.25),
        "last_model_path": "",
    }


@pytest.fixture(params=[BestCheckpoint, LastCheckpoint])
def callback(request: pytest.FixtureRequest, tmp_path: Path) -> _RunCheckpoint:
    made = request.param()
    (tmp_path / "here").mkdir()
    made.dirpath = str(tmp_path / "here")
    return made


def test_a_run_goes_on_with_its_own_file(callback: _RunCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "here" / "best.ckpt").touch()
    callback.load_state_dict(state(tmp_path / "here", "best.ckpt"))
    assert callback.best_model_path == callback.kth_best_model_path == str(tmp_path / "here" / "best.ckpt")
    assert callback.best_model_score == 0.25
    assert list(callback.best_k_models) == [callback.best_model_path]


def test_a_moved_run_keeps_its_best_score(callback: _RunCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "here" / "best.ckpt").touch()
    callback.load_state_dict(state(Path("/where/it/was"), "best.ckpt"))
    assert callback.best_model_path == str(tmp_path / "here" / "best.ckpt")
    assert callback.best_model_score == 0.25
    assert callback.dirpath == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["precious.txt", "..", ".", "", "folder"])
def test_a_state_cannot_name_files_elsewhere(callback: _RunCheckpoint, tmp_path: Path, name: str) -> None:
    """Lightning deletes the file or folder that the state names as best when a better epoch comes."""
    (tmp_path / "precious.txt").touch()
    (tmp_path / "here" / "folder").mkdir()
    callback.load_state_dict(state(tmp_path, name))
    assert callback.best_model_path == ""
    assert callback.best_model_score is None
    assert not callback.best_k_models
    callback.load_state_dict(state(tmp_path, name) | {"dirpath": str(tmp_path / "here")})
    assert callback.best_model_path == ""
