"""Video files: their frames, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bustseg import bounds
from bustseg.errors import DataError

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")

_USUAL_RATE = 25.0
_HIGHEST_RATE = 1000.0


@dataclass(frozen=True)
class Clip:
    """A video file that can be opened.

    Attributes:
        path: the file
        shape: (height, width) of its frames
        rate: frames per second; 25 where the file says nothing that can be true
        frames: how many the file claims to have, 0 where it does not say
    """

    path: Path
    shape: tuple[int, int]
    rate: float
    frames: int

    @classmethod
    def open(cls, path: Path) -> Clip:
        """The clip of a file.

        Raises:
            DataError: no video, or one that this OpenCV cannot decode
        """
        capture = _capture(path)
        try:
            height, width = (int(capture.get(what)) for what in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
            rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        bounds.check_pixels(str(path), height, width)
        if height < 1 or width < 1:
            raise DataError(f"{path} is not a readable video: it has no pictures")
        plausible = 0 < rate <= _HIGHEST_RATE
        return cls(path, (height, width), rate if plausible else _USUAL_RATE, int(frames) if 0 < frames < 1e9 else 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``uint8`` (H, W, 3) in RGB.

        Raises:
            DataError: not a single one can be decoded
        """
        capture, number = _capture(self.path), 0
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    break
                number += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if not number:
            raise DataError(f"{self.path} is not a readable video: no frame of it can be decoded")


def _capture(path: Path) -> cv2.VideoCapture:
    bounds.check_regular(path)
    try:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    except cv2.error as error:
        raise DataError(f"{path} is not a readable video") from error
    if not capture.isOpened():
        capture.release()
        raise DataError(f"{path} is not a readable video: use mp4, avi, mov, mkv or webm")
    return capture
