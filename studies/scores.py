"""Scores that several studies take of single images."""

from __future__ import annotations

import numpy as np


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one image's mask and true mask (H, W); 1 where neither has a lesion."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask.astype(bool) & truth.astype(bool)).sum()) / total if total else 1.0
