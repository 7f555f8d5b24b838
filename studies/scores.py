"""Per-image scores that several studies use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bustseg.statistics import Bootstrap


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of one image's mask and true mask (H, W); 1 where neither has a lesion."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask.astype(bool) & truth.astype(bool)).sum()) / total if total else 1.0


def mean_with_interval(draws: Bootstrap, values: np.ndarray, counted: np.ndarray) -> str:
    """Mean over selected images, with its 95 % interval; ``-`` if there are none.

    Args:
        draws: bootstrap over the images
        values: one value per image (N,)
        counted: the selected images, bool (N,)
    """
    if not counted.any():
        return "-"
    found = draws.ratio((values * counted).astype(float)[:, None], counted.astype(float)[:, None]).interval()
    return f"{found.estimate[0]:.3f} [{found.low[0]:.3f}, {found.high[0]:.3f}]"
