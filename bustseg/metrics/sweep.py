"""Scores of each image at every threshold, without storing images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bustseg.metrics.curves import SWEEP
from bustseg.metrics.rows import RowMetric, check_shapes, lesion_pixels

SHARES = torch.cat([torch.linspace(0, 1, 61), 1 - torch.logspace(-4, -1.8, 40)]).double().unique()
"""Shares of an image's pixels, rising; denser at the top, where the few background pixels with high logits are."""

_FAR = 1e4  # logits beyond any that occur


class ImageSweeps(NamedTuple):
    """Counts of n images at any threshold.

    Attributes:
        positions: (n,) positions of the images in the data set
        lesion, background: (n,) numbers of such pixels
        tp, fp: (n, 99) numbers of these pixels above each threshold of :data:`SWEEP`
        lesion_logits, background_logits: (n, shares) quantiles of these pixels' logits at :data:`SHARES`; nan for an
            image without such pixels
    """

    positions: np.ndarray
    lesion: np.ndarray
    background: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    lesion_logits: np.ndarray
    background_logits: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """Dice of each image at each threshold of :data:`SWEEP`, float64 (n, 99); two empty masks count 1."""
        size = self.lesion[:, None]
        score = 2 * self.tp / np.maximum(self.tp + self.fp + size, 1)
        return np.where(size > 0, score, (self.fp == 0).astype(float))

    def above(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lesion and background pixels of each image above logits ``levels`` (k,), both float64 (n, k).

        Interpolated between the shares: the error is at most a sixtieth of an image's pixels of one kind, and far less
        over all images.
        """
        return tuple(  # type: ignore[return-value]
            np.stack(
                [
                    np.zeros(len(levels)) if not pixels else pixels * (1 - np.interp(levels, logits, SHARES.numpy()))
                    for pixels, logits in zip(total, known, strict=True)
                ]
            )
            for total, known in ((self.lesion, self.lesion_logits), (self.background, self.background_logits))
        )


class ThresholdSweep(RowMetric):
    """Scores as functions of the threshold, image by image.

    Keeps 3.2 kB per image: its true and false positive pixels above each threshold of :data:`SWEEP`, and for
    thresholds anywhere the logits of its lesion and background pixels at the :data:`SHARES`.

    Args:
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(columns=3 + 2 * len(SWEEP) + 2 * len(SHARES), **kwargs)
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
        lesion = lesion_pixels(mask).flatten(1)
        # number of thresholds that a pixel strictly exceeds
        passed = torch.bucketize(flat, self.logits.to(flat.device))
        cell = (2 * torch.arange(n, device=flat.device)[:, None] + lesion) * cells + passed
        counts = torch.bincount(cell.flatten(), minlength=2 * n * cells).view(n, 2, cells)
        # number of pixels that exceed none, the 1st, 2nd, ... threshold
        above = counts.flip(2).cumsum(2).flip(2)
        (background_px, lesion_px), (fp, tp) = above[:, :, 0].unbind(1), above[:, :, 1:].unbind(1)
        values, order = flat.sort(1)
        lesion_rank = lesion.gather(1, order).cumsum(1)
        background_rank = torch.arange(1, flat.shape[1] + 1, device=flat.device) - lesion_rank
        shares = [_at_shares(values, lesion_rank), _at_shares(values, background_rank)]
        own = torch.stack([index.to(lesion_px), lesion_px, background_px], dim=1)
        # floats are stored as their bits: an integer table is gathered exactly
        rows = torch.cat([own, tp, fp], dim=1).cpu()
        assert isinstance(self.rows, list)
        self.rows.append(torch.cat([rows, *(share.view(torch.int64) for share in shares)], dim=1).to(flat.device))

    def per_image(self) -> ImageSweeps:
        """The counts of each image, sorted by index. Every process must call it."""
        rows = self.merged_images()
        own, tp, fp, *shares = rows.split([3, len(SWEEP), len(SWEEP), len(SHARES), len(SHARES)], dim=1)
        logits = (share.contiguous().view(torch.float64).numpy() for share in shares)
        positions, lesion, background = own.numpy().T
        return ImageSweeps(positions, lesion, background, tp.numpy(), fp.numpy(), *logits)

    def compute(self) -> dict[str, Tensor]:
        """Mean over images at every threshold of ``SWEEP``, float64 (99,) on the CPU, by name.

        ``dice_lesion``, ``dice_paper`` and ``dice_empty_one`` (the conventions of :mod:`bustseg.metrics.overlap`), and
        ``false_positive_rate_normal``, the share of the images without a lesion on which anything is predicted. An
        undefined curve has no key. Every process must call it.
        """
        return sweep_means(self.per_image())


def _at_shares(values: Tensor, rank: Tensor) -> Tensor:
    """Value of the pixels of one kind at each of the :data:`SHARES`, float64 (B, shares) on the CPU.

    Args:
        values: (B, N) rising
        rank: (B, N) number of pixels of the kind up to and including each
    """
    total = rank[:, -1:]
    shares = SHARES.to(rank.device, torch.float32)
    wanted = (shares * (total - 1).clamp_min(0)).round().long() + 1
    place = torch.searchsorted(rank.contiguous(), wanted).clamp_max(values.shape[1] - 1)
    found = values.gather(1, place).cpu().double().clamp(-_FAR, _FAR)  # infinite ones cannot be interpolated
    return torch.where(total.cpu() > 0, found, torch.nan)


def sweep_means(images: ImageSweeps) -> dict[str, Tensor]:
    """The curves of :meth:`ThresholdSweep.compute`."""
    if not len(images.positions):
        return {}
    dice, lesion = torch.from_numpy(images.dice), torch.from_numpy(images.lesion > 0)
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
