"""Conversion of masks to and from polygons, run lengths and PNG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from bustseg.errors import DataError

Ring = list[list[int]]


def polygons(mask: np.ndarray) -> list[dict[str, Any]]:
    """Outlines of a mask's 8-connected components, through the centres of their border pixels.

    Filling ``outer`` and clearing the inside of ``holes`` (their rings belong to the lesion) restores the mask.

    Args:
        mask: 0 and 1 (H, W)

    Returns:
        for each component ``{"outer": [[x, y], ...], "holes": [[[x, y], ...], ...]}``, pixels counted from 0 at the top
        left; the largest component first
    """
    found, hierarchy = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None:
        return []
    rings: list[Ring] = [contour[:, 0].tolist() for contour in found]
    parents = hierarchy[0][:, 3]
    outer = [index for index, parent in enumerate(parents) if parent < 0]
    outer.sort(key=lambda index: -cv2.contourArea(found[index]))
    return [
        {"outer": rings[index], "holes": [rings[hole] for hole in np.flatnonzero(parents == index)]} for index in outer
    ]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask of 0 and 1 (H, W): column by column, zeros first.

    Source: https://github.com/cocodataset/cocoapi (``pycocotools.mask``, uncompressed RLE).
    """
    flat = np.asarray(mask, np.uint8).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def from_run_lengths(size: list[int], counts: list[int]) -> np.ndarray:
    """The mask, ``uint8`` of 0 and 1 (H, W), of :func:`run_lengths`.

    Raises:
        DataError: the counts do not fill the size
    """
    if any(count < 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise DataError(f"the run lengths must add up to {size[0]} x {size[1]} pixels")
    values = np.arange(len(counts), dtype=np.uint8) & 1
    return np.repeat(values, counts).reshape((size[0], size[1]), order="F")
