"""What a prediction depends on, without gradients: how much it changes when a part of the image is covered.

Works for anything that gives logits, including an exported network, since it needs only predictions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bustseg.explain.gradcam import as_heat
from bustseg.masks import MaskRule

METHOD = "Occlusion"
"""Name of the method in options, pictures and tables."""

CELLS = 14
"""Number of rows and of columns of cells that an image is divided into; a map has one value per cell."""

_BATCH = 25
"""Number of covered images that are predicted at once."""


def occlusion_map(
    logits_of: Callable[[list[np.ndarray]], np.ndarray], image: np.ndarray, rule: MaskRule
) -> tuple[np.ndarray, np.ndarray]:
    """Heat of one image by occlusion: high where covering the image lowers the evidence for the predicted lesion.

    A square of two by two cells with the image's mean level is moved over the image one cell at a time (partly outside
    at the border). The target is, as for Grad-CAM here, the mean logit over the lesion that is predicted without a
    cover, or over the whole image when nothing is predicted; a position's value is the drop of the target. A cell's
    heat is the mean of the four positions that cover it, clipped at 0. The map is resized to the image (bilinear) and
    divided by its maximum.

    Source: Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2, who use a class's score.

    Args:
        logits_of: function from prepared grey images, ``uint8`` (h, w) each, to logits ``float32`` (B, 1, h, w)
        image: one of these
        rule: turns the logits into the predicted lesion

    Returns:
        heat ``float32`` (h, w) in 0..1, all 0 where no cover lowers the target; and logits ``float32`` (h, w) of the
        image without a cover
    """
    logits = logits_of([image])[0, 0]
    lesion = rule.mask(logits).astype(bool)
    region = lesion if lesion.any() else np.ones_like(lesion)
    target = logits[region].mean(dtype=np.float64)
    rows, columns = (np.rint(np.linspace(0, side, CELLS + 1)).astype(int) for side in image.shape)
    level = np.uint8(round(float(image.mean())))
    covered = []
    for i in range(CELLS + 1):
        for j in range(CELLS + 1):
            one = image.copy()
            one[_span(rows, i), _span(columns, j)] = level
            covered.append(one)
    values = [
        plane[0][region].mean(dtype=np.float64)
        for start in range(0, len(covered), _BATCH)
        for plane in logits_of(covered[start : start + _BATCH])
    ]
    fall = target - np.reshape(values, (CELLS + 1, CELLS + 1))
    cells = (fall[:-1, :-1] + fall[1:, :-1] + fall[:-1, 1:] + fall[1:, 1:]) / 4
    return as_heat(cells[None], image.shape)[0], logits


def _span(edges: np.ndarray, place: int) -> slice:
    """Pixels that a cover at a position hides: its own cell and the one before it, inside the image."""
    return slice(edges[max(place - 1, 0)], edges[min(place + 1, CELLS)])
