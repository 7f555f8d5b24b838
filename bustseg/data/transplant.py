"""Lesions and tissue moved from one training image to another, blended so that no edge shows.

Where normal images come from one scanner and lesions from another, a network can tell them apart by the look of the
scanner. A lesion moved into a normal image, and tissue moved over a lesion, have the look of the image around them, so
that only the lesion itself is left to learn from. Tissue is also moved beside lesions, so that the blending is no sign
of a lesion.

Source of the blending: Perez, Gangnet and Blake 2003, Poisson image editing, ACM Transactions on Graphics 22(3).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""Image ``uint8`` (H, W) and its mask, ``uint8`` 0 or 1 (H, W)."""

_RIM = 0.35
"""Width of the tissue that is moved with a lesion, as a share of the lesion's shorter side."""
_NARROWEST = 6
"""Least width of the tissue around a lesion in pixels: OpenCV takes three pixels off a region before it blends it, and
a border within the lesion would spread the lesion's grey levels over the whole region."""
_LARGEST = 0.6  # of the image's side: what is larger has no surroundings to be blended with
_DARK = 12  # grey level below which a pixel is taken for the frame around the picture, which has no tissue
_TRIES = 8


def transplant(target: Pair, donor: Pair, rng: np.random.Generator) -> Pair:
    """A target with a piece of a donor, or the target itself where no piece fits.

    A normal target gets a lesion of the donor if it has one. In a target with a lesion, tissue is put over the lesion
    (the target's own where it has enough, else the donor's) or beside it (the donor's), each in half of the draws.

    Args:
        target: image and mask that are changed
        donor: image and mask from which a piece is taken, of the same shape
        rng: where the draws come from
    """
    if not target[1].any():
        piece = _lesion_of(donor, rng) if donor[1].any() else None
        return target if piece is None else _anywhere(target, *piece, rng)
    if rng.random() < 0.5:
        return _over_lesion(target, donor, rng)
    shape = _grown(target[1], _rim(target[1]))
    shape = _window(shape, _bounds(shape))
    tissue = _tissue(donor, shape, rng)
    if tissue is None:
        return target
    return _anywhere(target, tissue, np.zeros_like(shape), shape, rng)


def _lesion_of(donor: Pair, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A lesion with its rim: picture, mask, and the region to be moved; None where the rim leaves the picture."""
    image, mask = donor
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    largest = 1 + int(np.argmax(stats[1:count, cv2.CC_STAT_AREA]))
    lesion = (labels == largest).astype(np.uint8)
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(1.5))))
    region = _grown(lesion, max(_rim(lesion), math.ceil(_NARROWEST / scale)))
    bounds = _bounds(region)
    if _leaves(bounds, image.shape) or _no_tissue(_window(image, bounds), _window(region - lesion, bounds)):
        return None
    picture, part, shape = (_window(array, bounds) for array in (image, lesion, region))
    if scale * max(shape.shape) > _LARGEST * min(image.shape):
        return None
    height, width = (round(side * scale) for side in shape.shape)
    if rng.random() < 0.5:
        picture, part, shape = picture[:, ::-1], part[:, ::-1], shape[:, ::-1]
    size = (width, height)
    return (
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR),
        cv2.resize(np.ascontiguousarray(part), size, interpolation=cv2.INTER_NEAREST),
        cv2.resize(np.ascontiguousarray(shape), size, interpolation=cv2.INTER_NEAREST),
    )


def _over_lesion(target: Pair, donor: Pair, rng: np.random.Generator) -> Pair:
    """The target with tissue over all of its lesions; the target itself where they are too large or at the border."""
    image, mask = target
    region = _grown(mask, max(_NARROWEST, _rim(mask) // 2))
    bounds = _bounds(region)
    if _leaves(bounds, image.shape):
        return target
    shape = _window(region, bounds)
    tissue = None
    for source in (target, donor):  # the image's own tissue fits best
        tissue = _tissue(source, shape, rng)
        if tissue is not None:
            break
    if tissue is None:
        return target
    return _blend(image, tissue, shape, bounds[0], bounds[2]), np.zeros_like(mask)


def _tissue(source: Pair, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A window of a source that has the size of ``shape`` and, within it, no lesion."""
    image, _ = source
    height, width = shape.shape
    if height > _LARGEST * image.shape[0] or width > _LARGEST * image.shape[1]:
        return None
    place = _place(source, shape, rng)
    return None if place is None else image[_at(place, shape)]


def _anywhere(target: Pair, picture: np.ndarray, part: np.ndarray, shape: np.ndarray, rng: np.random.Generator) -> Pair:
    """The piece blended in at a random place where there is tissue and no lesion."""
    image, mask = target
    height, width = shape.shape
    if height >= image.shape[0] - 2 or width >= image.shape[1] - 2:
        return target
    place = _place(target, shape, rng)
    if place is None:
        return target
    mixed = mask.copy()
    mixed[_at(place, shape)] |= part
    return _blend(image, picture, shape, *place), mixed


def _place(pair: Pair, shape: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """First row and column of a random place where ``shape`` covers tissue and no lesion; None if none is found."""
    image, mask = pair
    for _ in range(_TRIES):
        place = (
            int(rng.integers(1, image.shape[0] - shape.shape[0])),
            int(rng.integers(1, image.shape[1] - shape.shape[1])),
        )
        window = _at(place, shape)
        if not (mask[window] & shape).any() and not _no_tissue(image[window], shape):
            return place
    return None


def _at(place: tuple[int, int], shape: np.ndarray) -> tuple[slice, slice]:
    """The window of the size of ``shape`` that begins at a place."""
    (top, left), (height, width) = place, shape.shape
    return np.s_[top : top + height, left : left + width]


def _blend(image: np.ndarray, picture: np.ndarray, shape: np.ndarray, top: int, left: int) -> np.ndarray:
    """``picture`` blended into ``image`` where ``shape`` is set, its first pixel at ``top``, ``left``."""
    # OpenCV centres the bounds of the region, to which it adds a border of one pixel
    region = cv2.copyMakeBorder(shape, 1, 1, 1, 1, cv2.BORDER_CONSTANT) * np.uint8(255)
    source = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    centre = (
        int(left - 1 + (columns[0] + columns[-1] + 1) // 2),
        int(top - 1 + (rows[0] + rows[-1] + 1) // 2),
    )
    piece, surroundings = (cv2.cvtColor(array, cv2.COLOR_GRAY2BGR) for array in (source, image))
    cloned = np.asarray(cv2.seamlessClone(piece, surroundings, region, centre, cv2.NORMAL_CLONE))[..., 0]
    blended = image.copy()
    window = _at((top, left), shape)
    # outside the region, its rounding changes grey levels by one
    blended[window][shape > 0] = cloned[window][shape > 0]
    return blended


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1)))


def _rim(mask: np.ndarray) -> int:
    top, bottom, left, right = _bounds(mask)
    return max(_NARROWEST, round(_RIM * min(bottom - top, right - left)))


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _window(array: np.ndarray, bounds: tuple[int, int, int, int]) -> np.ndarray:
    return array[bounds[0] : bounds[1], bounds[2] : bounds[3]]


def _leaves(bounds: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    top, bottom, left, right = bounds
    return top <= 1 or left <= 1 or bottom >= shape[0] - 1 or right >= shape[1] - 1


def _no_tissue(window: np.ndarray, region: np.ndarray) -> bool:
    grey = window[region > 0]
    return bool(grey.mean() < 20 or (grey < _DARK).mean() > 0.2)
