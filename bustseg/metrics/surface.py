"""Distances between the outlines of two masks: HD95 and ASSD."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def _surface(mask: np.ndarray) -> np.ndarray:
    """Pixels of ``mask`` (H, W) that have a 4-neighbour outside it; outside of the array is background."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def surface_distances(prediction: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Distances between the outlines of a prediction and its mask, for one image.

    HD95 is the larger of the two directed 95th percentiles, ASSD the mean over the outline pixels of both masks;
    outline pixels are defined as in MONAI (the mask without its erosion by a 4-neighbourhood).

    Args:
        prediction: bool of shape (H, W)
        mask: bool of shape (H, W)

    Returns:
        ``hd95`` and ``assd`` in pixels, ``hd95_relative`` and ``assd_relative`` as shares of the image diagonal. A
        missed lesion (empty prediction) counts the diagonal: if it were dropped, the mean would improve with every
        missed lesion. All are nan for an image whose mask is empty: leave it out of the mean, since the false-positive
        rate on normals counts it.

    Raises:
        ValueError: the shapes differ or are not two-dimensional
    """
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must have the same shape (H, W)")
    prediction, mask = prediction.astype(bool), mask.astype(bool)
    diagonal = math.hypot(*mask.shape)
    if not mask.any():
        hd95 = assd = math.nan
    elif not prediction.any():
        hd95 = assd = diagonal
    else:
        # no outline pixel lies outside the bounding box of the union, so the distances do not change
        box = ndimage.find_objects((prediction | mask).astype(np.uint8))[0]
        ours, theirs = _surface(prediction[box]), _surface(mask[box])
        to_mask = ndimage.distance_transform_edt(~theirs)[ours]
        to_prediction = ndimage.distance_transform_edt(~ours)[theirs]
        hd95 = float(max(np.percentile(to_mask, 95), np.percentile(to_prediction, 95)))
        assd = float(np.concatenate([to_mask, to_prediction]).mean())
    return {"hd95": hd95, "assd": assd, "hd95_relative": hd95 / diagonal, "assd_relative": assd / diagonal}
