"""Short clips of a dark square that moves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


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
