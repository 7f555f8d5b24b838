"""Basic statistics of a decoded image and its mask, and faults that make a data set unusable for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from bustseg.data.sources import Problem, Sample

NEARLY_ALL = 0.9
"""If at least this share of the images has a fault, the fault is in the data set's format or in how it is read."""

_DARK, _BRIGHT = 16, 239  # a sixteenth of the levels from black and from white
_RIM = 0.9  # share of the border that no lesion covers


@dataclass(frozen=True)
class Facts:
    """Statistics of an image and its mask, at their own size.

    Attributes:
        lesion: share of the image that the mask covers
        rim: share of the image's border that the mask covers
        low: grey level that 99 % of the pixels reach
        high: grey level that 99 % of the pixels do not exceed
    """

    lesion: float
    rim: float
    low: int
    high: int

    @classmethod
    def of(cls, image: np.ndarray, mask: np.ndarray) -> Facts:
        """Facts of a grey ``uint8`` image (H, W) and its mask (H, W), 0 or 1."""
        counts = cv2.calcHist([image], [0], None, [256], [0, 256]).ravel().cumsum()
        low, high = np.searchsorted(counts, [0.01 * image.size, 0.99 * image.size])
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        return cls(round(float(mask.mean()), 6), round(float(border.mean()), 4), int(low), int(high))

    @property
    def nearly_black(self) -> bool:
        """Whether hardly any pixel is brighter than a sixteenth of white, as when 12 bits were read as 16."""
        return self.high < _DARK

    @property
    def nearly_white(self) -> bool:
        """Whether hardly any pixel is darker than 15/16 of white, as when levels were clipped to 8 bits."""
        return self.low > _BRIGHT

    @property
    def surrounded(self) -> bool:
        """Whether the mask covers the image's border, as when it is inverted or has no drawing at all."""
        return self.rim >= _RIM


def unusable(samples: Sequence[Sample], facts: Sequence[Facts | None]) -> list[Problem]:
    """Problems that make a whole data set unusable for training: masks without a lesion, or images without tones.

    Args:
        facts: statistics of each sample; None for one that could not be read

    Returns:
        a problem for each image of a lesion class with an empty mask, and one for each fault of nearly all images
    """
    problems = []
    known = [(sample, fact) for sample, fact in zip(samples, facts, strict=True) if fact is not None]
    for sample, fact in known:
        if sample.masks and sample.label in ("benign", "malignant") and fact.lesion == 0:
            path = sample.masks[0]
            message = (
                f"mask {sample.shown(path)} is empty but {sample.id} is {sample.label}: draw the lesion, correct the "
                "class or remove the image"
            )
            problems.append(Problem("empty mask of a lesion class", sample.public(path), message, sample.id))
    drawn = [(sample, fact) for sample, fact in known if sample.masks and sample.label != "normal"]

    def look(kind: str, among: list[tuple[Sample, Facts]], is_so: Callable[[Facts], bool], words: str) -> None:
        cases = [sample for sample, fact in among if is_so(fact)]
        if cases and len(cases) >= NEARLY_ALL * len(among):
            message = f"{len(cases)} of {len(among)} {words}"
            problems.append(Problem(kind, cases[0].public(cases[0].image), message))

    look(
        "masks without a lesion",
        drawn,
        lambda fact: fact.lesion == 0,
        "masks read as empty: is the lesion white (255) on black, and are images without one called normal?",
    )
    look(
        "masks without a background",
        drawn,
        lambda fact: fact.surrounded,
        "masks cover the whole border of their image: are they inverted, or is the drawing only in the transparency?",
    )
    look(
        "images nearly black",
        known,
        lambda fact: fact.nearly_black,
        "images are nearly black: their levels do not reach a sixteenth of white, as when 12 bits were stored in 16 or "
        "fractions in 8; scale them to 0..255",
    )
    look(
        "images nearly white",
        known,
        lambda fact: fact.nearly_white,
        "images are nearly white: levels above 255 were clipped; scale them to 0..255",
    )
    return problems
