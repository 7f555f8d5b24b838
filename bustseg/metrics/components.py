"""Lesions as connected components: found, missed, or invented."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # 8-connectivity


class ComponentCounts(NamedTuple):
    """Connected components of one image.

    Attributes:
        found: lesions of the mask with at least one predicted pixel
        missed: lesions of the mask without any predicted pixel
        spurious: components of the prediction that touch no lesion
    """

    found: int
    missed: int
    spurious: int


def match_components(prediction: np.ndarray, mask: np.ndarray) -> ComponentCounts:
    """Count the lesions found, missed and invented, with 8-connectivity.

    Args:
        prediction: bool of shape (H, W)
        mask: bool of shape (H, W)

    Raises:
        ValueError: the shapes differ or are not two-dimensional
    """
    if prediction.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must have the same shape (H, W)")
    prediction, mask = prediction.astype(bool), mask.astype(bool)
    lesions, n_lesions = ndimage.label(mask, _NEIGHBOURS)
    regions, n_regions = ndimage.label(prediction, _NEIGHBOURS)
    both = prediction & mask
    found = len(np.unique(lesions[both]))
    return ComponentCounts(found, n_lesions - found, n_regions - len(np.unique(regions[both])))
