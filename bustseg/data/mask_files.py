"""Reading a mask file: which pixels are lesion, and whether that is plausible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bustseg.data.images import count_pages, read_picture
from bustseg.errors import DataError

HALF = 127
"""Level above which a mask's pixel is lesion unless the source says otherwise: half of white at any bit depth."""

_MOST_LABELS = 8
"""Levels beside black that a mask has at most where they stand for classes."""

_LABEL = 0.2
"""Share of a mask's drawing that one level covers at least where it stands for a class."""


@dataclass(frozen=True)
class MaskFile:
    """The content of a mask file.

    Attributes:
        levels: ``uint8`` (H, W); for a colour mask the brightest channel, so that every colour counts
        lesion: ``bool`` (H, W)
        kind: short name of the fault, for counting; empty for a usable file
        fault: what is wrong and what to do, as the part of a sentence after the file's name
    """

    levels: np.ndarray
    lesion: np.ndarray
    kind: str = ""
    fault: str = ""

    def cut(self, box: tuple[int, int, int, int]) -> MaskFile:
        """The part inside a box (top, left, height, width)."""
        top, left, height, width = box
        part = np.s_[top : top + height, left : left + width]
        return MaskFile(self.levels[part], self.lesion[part], self.kind, self.fault)


def read_mask(path: Path, lesion_above: int = HALF) -> MaskFile:
    """Read a mask file and check whether its levels are plausible.

    Args:
        lesion_above: level above which a pixel is lesion, in the file's own levels; :data:`HALF` is half of white

    Raises:
        DataError: the file is missing, truncated or not an image
    """
    picture = read_picture(path)
    pages = count_pages(path, animations=True)
    stored = picture.pixels if picture.pixels.ndim == 2 else picture.pixels.max(axis=2)
    if not np.isfinite(stored).all():
        raise DataError(f"mask {path} holds levels that are not numbers: draw it again")
    # a mask has no tones, so a level beyond white shows where white is
    white = max(picture.white, float(stored.max()))
    levels = stored if stored.dtype == np.uint8 else (np.clip(stored, 0, None) * (255 / white)).astype(np.uint8)
    lesion = stored > (white / 2 if lesion_above == HALF else lesion_above)
    kind = fault = ""
    if pages > 1:
        kind = "mask of several pages"
        fault = f"holds {pages} pictures, of which one would be read: save their union, or each as a mask of its own"
    elif _only_transparent(picture.pixels, picture.alpha):
        kind = "mask drawn in transparency"
        fault = (
            "has one colour everywhere and its drawing only in the transparency: flatten it, the lesion white on black"
        )
    elif lesion_above == HALF and stored.any() and not lesion.any():
        kind = "mask too dark to count"
        fault = (
            f"has no level above {stored.max():g} of {white:g}, so that it reads as empty: scale its lesion to "
            f"{white:g}, or set the source's lesion_above"
        )
    elif lesion_above == HALF and (labels := _labels(stored, lesion)):
        kind = "mask of several levels"
        fault = (
            f"has the levels {', '.join(f'{level:g}' for level in labels)} beside 0, of which only those above "
            f"{white / 2:g} would be lesion: draw the lesion in {white:g} and all else in 0, or set the source's "
            "lesion_above"
        )
    return MaskFile(levels, lesion, kind, fault)


def _labels(stored: np.ndarray, lesion: np.ndarray) -> list[float]:
    """Levels of a mask that is drawn in few of them, one of which covers much and counts for nothing; else none.

    Smoothed outlines and the noise of JPEG have more levels, none of which covers as much.

    Args:
        stored: (H, W), as the file holds it
        lesion: what is read as lesion of it
    """
    dark = stored[(stored > 0) & ~lesion]
    lit = dark.size + int(lesion.sum())
    if dark.size < _LABEL * lit:
        return []
    levels, counts = np.unique(stored[stored > 0], return_counts=True)
    classes = [level for level, count in zip(levels, counts, strict=True) if count >= _LABEL * lit]
    if len(levels) > _MOST_LABELS or not any(
        _is_area(stored == level) for level in np.unique(dark) if level in classes
    ):
        return []
    return [float(level) for level in levels]


def _is_area(region: np.ndarray) -> bool:
    """Whether a region (H, W) is more than a line: some pixel has only pixels of it around."""
    return bool(cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8)).any())


def _only_transparent(pixels: np.ndarray, alpha: np.ndarray | None) -> bool:
    if alpha is None or alpha.min() == alpha.max():
        return False
    colours = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    return bool((colours == colours[0]).all())
