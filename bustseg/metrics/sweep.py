"""Per-image Dice by threshold, without keeping an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bustseg.metrics.curves import SWEEP
from bustseg.metrics.rows import DiceRows, check_shapes, lesion_pixels


class DiceSweep(DiceRows):
    """Mean Dice over images as a function of the threshold.

    Keeps 99 numbers (0.8 kB) per image: its Dice at every threshold of :data:`bustseg.metrics.curves.SWEEP`.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings=len(SWEEP), **kwargs)
        self.register_buffer("logits", torch.logit(SWEEP).float(), persistent=False)

    logits: Tensor

    def update(self, logits: Tensor, mask: Tensor, index: Tensor) -> None:
        """Count one batch.

        Args:
            logits: (B, 1, H, W), any float type; NaN counts as background
            mask: (B, 1, H, W) of 0 and 1, any type
            index: (B,) positions of the images in the data set

        Raises:
            ValueError: the shapes do not fit together
        """
        check_shapes(logits, mask, index)
        if not len(logits):
            return
        n, cells = len(logits), len(SWEEP) + 1
        flat = torch.nan_to_num(logits.detach().float().flatten(1), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # how many of the thresholds a pixel exceeds, strictly
        passed = torch.bucketize(flat, self.logits.to(flat.device))
        cell = (2 * torch.arange(n, device=flat.device)[:, None] + lesion_pixels(mask).flatten(1)) * cells + passed
        counts = torch.bincount(cell.flatten(), minlength=2 * n * cells).view(n, 2, cells)
        # pixels that exceed the 1st, 2nd, ... threshold; the CPU has float64 everywhere
        above = counts.flip(2).cumsum(2).flip(2).cpu()
        size, (fp, tp) = above[:, 1, :1], above[:, :, 1:].unbind(1)
        dice = torch.where(size > 0, 2 * tp.double() / (tp + fp + size).clamp_min(1), (fp == 0).double())
        self.append(index, size[:, 0], dice, flat.device)

    def compute(self) -> dict[str, Tensor]:
        """Mean over images at every threshold of ``SWEEP``, float64 (99,) on the CPU, by name.

        ``dice_lesion``, ``dice_paper`` and ``dice_empty_one`` (the conventions of :mod:`bustseg.metrics.overlap`), and
        ``false_positive_rate_normal``, the share of the images without a lesion on which anything is predicted. A
        curve that the images cannot define has no key. Every process must call it.
        """
        dice, lesion = self.per_image()
        if not len(dice):
            return {}
        result = {"dice_empty_one": dice.mean(0), "dice_paper": (dice * lesion[:, None]).mean(0)}
        if lesion.any():
            result["dice_lesion"] = dice[lesion].mean(0)
        if not lesion.all():
            result["false_positive_rate_normal"] = 1 - dice[~lesion].mean(0)
        return result


def best_threshold(dice: Tensor) -> tuple[float, float]:
    """Threshold of ``SWEEP`` with the highest of ``dice`` (99,), on a plateau the one nearest to 0.5; and that Dice."""
    distance = torch.where(dice >= dice.max() - 1e-12, (SWEEP - 0.5).abs(), torch.inf)
    place = int(distance.argmin())
    return float(SWEEP[place]), float(dice[place])
