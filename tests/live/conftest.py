"""Short clips of a dark square that moves, and the model that finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from dark_model import write_dark_model


def frame(k: int, side: int = 48) -> np.ndarray:
    """Bright grey (96, 128) with a dark square at 2 k pixels from the left."""
    image = np.full((96, 128), 180, np.uint8)
    image[24 : 24 + side, 2 * k : 2 * k + side] = 20
    return image


def write_clip(path: Path, frames: list[np.ndarray], rate: float = 20.0) -> Path:
    codec = {".avi": "MJPG", ".mp4": "mp4v", ".webm": "VP80"}[path.suffix]
    size = (frames[0].shape[1], frames[0].shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    for one in frames:
        writer.write(cv2.cvtColor(one, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


@pytest.fixture(scope="session")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dark_model(tmp_path_factory.mktemp("models") / "dark", calibration={"temperature": 1.5})


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUSTSEG_TOKEN", raising=False)
