"""Code shared by the contenders: reading images, checking the time, and writing results. It does not use bustseg.

A contender is a script ``NAME.py --data DIR --out DIR --seconds N``. ``DIR/images/SUBSET/NAME.png`` and
``DIR/masks/SUBSET/NAME.png`` are grey; masks hold 0 and 255. It writes ``OUT/masks/NAME.png`` for every test image, at
the image's own size, ``OUT/curve.csv`` (seconds, Dice of the validation images) and ``OUT/about.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from studies.scores import dice

STARTED = float(os.environ.get("EQUAL_HOUR_STARTED", time.time()))
"""When the contender's process was started, in seconds since 1970: its hour counts from here."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Mask, 0 and 1, of shape (H, W), of a grey ``uint8`` image (H, W)."""


def arguments(description: str | None) -> argparse.Namespace:
    """The options that every contender takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0)
    return parser.parse_args()


def elapsed() -> float:
    """Seconds since the contender was started."""
    return time.time() - STARTED


def images(data: Path, subset: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, grey image and mask (0 and 1) of each image of a subset."""
    for path in sorted((data / "images" / subset).glob("*.png")):
        mask = cv2.imread(str(data / "masks" / subset / path.name), cv2.IMREAD_GRAYSCALE)
        yield path.stem, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (mask > 127).astype(np.uint8)


def lesion_dice(predict: Predict, data: Path, subset: str = "val") -> float:
    """Mean Dice of the images of a subset that show a lesion, at their own size."""
    scores = []
    for _, image, truth in images(data, subset):
        if truth.any():
            scores.append(dice(predict(image), truth))
    return float(np.mean(scores))


class Curve:
    """Dice of the validation images over the seconds of the hour, as a file that grows."""

    def __init__(self, out: Path) -> None:
        self.path = out / "curve.csv"
        out.mkdir(parents=True, exist_ok=True)
        self.path.write_text("seconds,dice_lesion\n")
        self.best = -1.0

    def add(self, dice: float, seconds: float | None = None) -> bool:
        """Write a point; returns whether it is the best so far."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([round(elapsed() if seconds is None else seconds, 1), round(dice, 5)])
        better = dice > self.best
        self.best = max(self.best, dice)
        return better


def finish(out: Path, data: Path, predict: Predict, **about: Any) -> None:
    """Write the masks of the test images, and the contender's description; this is not part of its hour.

    ``seconds`` in the description is the time at which it ended; by default the time of this call.
    """
    seconds = round(elapsed(), 1)
    (out / "masks").mkdir(parents=True, exist_ok=True)
    for name, image, _ in images(data, "test"):
        cv2.imwrite(str(out / "masks" / f"{name}.png"), predict(image) * np.uint8(255))
    (out / "about.json").write_text(json.dumps({"seconds": seconds, **about}, indent=2))
