"""Video files: their frames, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from cv2.utils import logging as cv2_logging

from bustseg import bounds
from bustseg.errors import DataError

# the messages of FFmpeg and OpenCV about unreadable files are replaced by one line
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2_logging.setLogLevel(cv2_logging.LOG_LEVEL_ERROR)

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")

_USUAL_RATE = 25.0
_HIGHEST_RATE = 120.0
"""A higher rate is probably the file's clock tick, as in screen recordings; it is then measured from the frames."""

_PROBED = 25
_LONGEST_GAP = 10.0
"""Longest time between two frames in seconds; anything longer is an error of the file's clock."""


@dataclass(frozen=True)
class Clip:
    """A video file that can be opened.

    Attributes:
        path: the file
        shape: (height, width) of its frames
        rate: frames per second, on average where they vary; 25 where the file states no plausible rate
        frames: number of frames that the file claims, 0 where it does not say
    """

    path: Path
    shape: tuple[int, int]
    rate: float
    frames: int

    @classmethod
    def open(cls, path: Path) -> Clip:
        """The clip of a file.

        Raises:
            DataError: not a video, or one that this OpenCV cannot decode
        """
        capture = _capture(path)
        try:
            height, width = (int(capture.get(what)) for what in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
            rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            if not 0 < rate <= _HIGHEST_RATE:
                rate = _rate_of_frames(capture)
        finally:
            capture.release()
        bounds.check_pixels(str(path), height, width)
        if height < 1 or width < 1:
            raise DataError(f"{path} is not a readable video: it has no pictures")
        return cls(path, (height, width), rate, int(frames) if 0 < frames < 1e9 else 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``uint8`` (H, W, 3) in RGB.

        Raises:
            DataError: not a single frame can be decoded
        """
        for _, frame in self.timed():
            yield frame

    def timed(self) -> Iterator[tuple[float, np.ndarray]]:
        """Iterate over the frames, each with its time in seconds since the first by the file's own clock.

        Where the clock stands still, goes back or jumps, a frame is placed 1 / :attr:`rate` after the one before.

        Raises:
            DataError: not a single frame can be decoded
        """
        capture, seconds, clock = _capture(self.path), None, 0.0
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    break
                before, clock = clock, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                step = clock - before
                if seconds is None:
                    seconds = 0.0
                else:
                    seconds += step if 0 < step <= _LONGEST_GAP else 1 / self.rate
                yield seconds, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if seconds is None:
            raise DataError(
                f"{self.path} is not a readable video: no frame of it can be decoded (H.264, MPEG-4 and MJPEG can)"
            )


def _rate_of_frames(capture: cv2.VideoCapture) -> float:
    """Frames per second by the times of the first frames; :data:`_USUAL_RATE` where these are not usable either."""
    clock: list[float] = []
    while len(clock) < _PROBED and capture.read()[0]:
        clock.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    rate = (len(clock) - 1) / (clock[-1] - clock[0]) if len(clock) > 1 and clock[-1] > clock[0] else 0.0
    return rate if 0 < rate <= _HIGHEST_RATE else _USUAL_RATE


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
