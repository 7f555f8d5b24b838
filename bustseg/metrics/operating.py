"""Choice of threshold, smallest component and peak on validation images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bustseg.masks import MaskRule, PostProcess, evidence_of, labelled, probability_of
from bustseg.metrics.rows import DiceRows
from bustseg.presence import detection_auc

THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(15))
"""Candidates for the probability above which a pixel belongs to a lesion."""

MIN_AREAS = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
"""Candidates for the share of the image below which a component is removed."""

PEAKS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
"""Candidates for a component's smallest peak probability, where false positives are limited."""

Wish = Literal["dice", "detection"]


@dataclass(frozen=True)
class OperatingPoint:
    """Settings of a model's masks, and their results.

    Attributes:
        threshold: probability above which a pixel belongs to a lesion
        min_area: share of the image below which a component is removed
        dice_empty_one, dice_lesion: mean Dice over the images; the second over those with a lesion, NaN without one
        false_positive_rate_normal: share of the images without a lesion on which anything is predicted, NaN without one
    """

    threshold: float
    min_area: float
    dice_empty_one: float
    dice_lesion: float
    false_positive_rate_normal: float


class OperatingPoints(DiceRows):
    """Mean Dice over images for every pair of :data:`THRESHOLDS` and :data:`MIN_AREAS`.

    Keeps 105 numbers (0.8 kB) per image. Components are 8-connected, as in :class:`bustseg.masks.PostProcess`.

    Args:
        postprocess: its ``max_confidence_gap`` and ``min_peak_probability`` remove doubtful components first; its other
            settings are ignored
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, postprocess: PostProcess | None = None, **kwargs: Any) -> None:
        super().__init__(settings=len(THRESHOLDS) * len(MIN_AREAS), **kwargs)
        self.postprocess = postprocess or PostProcess()

    def values_of(self, logits: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        return _dice(logits, lesion, self.postprocess).ravel()

    def compute(self) -> Tensor:
        """Means of all pairs (105, 3), float64 on the CPU; no rows without images. Every process must call it.

        Columns: Dice ``empty_one``, Dice ``lesion``, false positives on normals; thresholds outside, areas inside.
        """
        return _means(*self.per_image())

    def points(self) -> list[OperatingPoint]:
        """The result of :meth:`compute` as named points."""
        return _named(self.compute())

    def recommended(self) -> OperatingPoint | None:
        """The simplest point that is not clearly worse than the best one; None without images.

        The highest of 105 means of Dice ``empty_one`` over a few dozen images is partly luck, and extreme settings
        (especially large areas, which lose small lesions) do not generalise. So among all points whose mean lies within
        one standard error of the best, paired by image, the one is chosen that is the fewest grid steps away from a
        threshold of 0.5 and no smallest component; among equals the one with the higher Dice. (One-standard-error rule:
        Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.)
        """
        dice, lesion = self.per_image()
        if not len(dice):
            return None
        points = _named(_means(dice, lesion))
        behind = dice[:, [int(dice.mean(0).argmax())]] - dice
        error = behind.std(0, correction=min(1, len(dice) - 1)) / math.sqrt(len(dice))
        good = (behind.mean(0) <= error + 1e-12).tolist()
        return min(
            (point for point, close in zip(points, good, strict=True) if close),
            key=lambda point: (_steps(point), -point.dice_empty_one),
        )


@dataclass(frozen=True)
class QuietPoint:
    """Settings of a model's masks that leave most images without a lesion empty, and their results.

    Attributes:
        threshold: probability above which a pixel belongs to a lesion
        peak: smallest peak probability of a component (``min_peak_probability``)
        dice_lesion: mean Dice over the images with a lesion
        missed: share of these on which nothing is predicted
        false_positive_rate_normal: share of the others on which anything is
    """

    threshold: float
    peak: float
    dice_lesion: float
    missed: float
    false_positive_rate_normal: float


class QuietPoints(DiceRows):
    """Dice of each image, and whether anything is predicted on it, for every pair of :data:`THRESHOLDS` and `PEAKS`.

    Keeps 480 numbers (3.8 kB) per image.

    Args:
        postprocess: its ``min_area_px_relative`` and ``max_confidence_gap`` are applied too; its
            ``min_peak_probability`` is chosen here
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, postprocess: PostProcess | None = None, **kwargs: Any) -> None:
        super().__init__(settings=2 * len(THRESHOLDS) * len(PEAKS), **kwargs)
        self.postprocess = postprocess or PostProcess()

    def values_of(self, logits: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        return _quiet(logits, lesion, self.postprocess)

    def compute(self) -> Tensor:
        """Columns of :class:`QuietPoint` (240, 5), float64; no rows unless there are images with and without a lesion.

        Thresholds outside, peaks inside. Every process must call it.
        """
        rows, lesion = self.per_image()
        if not lesion.any() or lesion.all():
            return torch.zeros(0, 5, dtype=torch.float64)
        dice, found = rows.chunk(2, dim=1)
        pairs = torch.tensor([(threshold, peak) for threshold in THRESHOLDS for peak in PEAKS], dtype=torch.float64)
        means = torch.stack([dice[lesion].mean(0), 1 - found[lesion].mean(0), found[~lesion].mean(0)], dim=1)
        return torch.cat([pairs, means], dim=1)

    def chosen(self, most: Wish, max_false_positives: float) -> QuietPoint | None:
        """The best point by ``most`` among those with few enough false positives; None if there is none.

        Among equals the lower peak wins, then the threshold nearer to 0.5.

        Args:
            most: ``dice`` of the lesions, or ``detection``, the share of lesion images that are marked
            max_false_positives: share of the images without a lesion that may be marked, 0 to 1
        """
        points = [QuietPoint(*row) for row in self.compute().tolist()]
        quiet = [point for point in points if point.false_positive_rate_normal <= max_false_positives + 1e-12]
        if not quiet:
            return None

        def worth(point: QuietPoint) -> tuple[float, ...]:
            wanted = (point.dice_lesion, -point.missed)
            return (*(wanted if most == "dice" else wanted[::-1]), -point.peak, -abs(point.threshold - 0.5))

        return max(quiet, key=lambda point: tuple(round(value, 9) for value in worth(point)))


class PresenceEvidence(DiceRows):
    """The evidence of a lesion in each image (:func:`bustseg.masks.evidence_of`).

    Args:
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings=1, **kwargs)

    def values_of(self, logits: np.ndarray, lesion: np.ndarray) -> np.ndarray:
        return np.array([evidence_of(logits)], np.float64)

    def compute(self) -> Tensor:
        """AUC of presence, float64 on the CPU; nan if all images or none have a lesion. Every process must call it."""
        evidence, lesion = self.per_image()
        return torch.from_numpy(detection_auc(evidence[:, 0].numpy(), lesion.numpy()))[0]


def _quiet(logits: np.ndarray, lesion: np.ndarray, postprocess: PostProcess) -> np.ndarray:
    """Dice of one image (H, W) for all pairs, then whether anything is predicted, float64 (480,)."""
    probability = probability_of(logits)
    dice, found = np.empty((2, len(THRESHOLDS), len(PEAKS)))
    for row, threshold in enumerate(THRESHOLDS):
        mask = MaskRule(threshold).above(logits).view(np.uint8)
        for column, peak in enumerate(PEAKS):
            # a higher peak removes further components, unless the gap then refers to another component
            own = replace(postprocess, min_peak_probability=peak)(mask, probability).astype(bool)
            total = own.sum() + lesion.sum()
            dice[row, column] = 2 * (own & lesion).sum() / total if total else 1
            found[row, column] = own.any()
    return np.concatenate([dice.ravel(), found.ravel()])


def _means(dice: Tensor, lesion: Tensor) -> Tensor:
    """Columns of :meth:`OperatingPoints.compute` from Dice per image and point (N, 105) and lesion presence (N,)."""
    if not len(dice):
        return torch.zeros(0, 3, dtype=torch.float64)
    return torch.stack([dice.mean(0), dice[lesion].mean(0), 1 - dice[~lesion].mean(0)], dim=1)


def _named(means: Tensor) -> list[OperatingPoint]:
    """The rows of :func:`_means` with their settings; empty without rows."""
    pairs = [(threshold, area) for threshold in THRESHOLDS for area in MIN_AREAS]
    return [OperatingPoint(*pair, *row) for pair, row in zip(pairs, means.tolist(), strict=False)]


def _dice(logits: np.ndarray, lesion: np.ndarray, postprocess: PostProcess) -> np.ndarray:
    """Dice of one image (H, W) for all pairs, float64 (thresholds, areas); two empty masks count 1."""
    probability = probability_of(logits)
    result = np.empty((len(THRESHOLDS), len(MIN_AREAS)))
    smallest = np.array(MIN_AREAS) * lesion.size
    for row, threshold in zip(result, THRESHOLDS, strict=True):
        areas, labels = labelled(MaskRule(threshold).above(logits))
        hits = np.bincount(labels[lesion], minlength=len(areas) + 1)[1:]
        kept = (areas[:, None] >= smallest) & postprocess.trusted(areas, labels, probability)[:, None]
        total = (areas[:, None] * kept).sum(0) + lesion.sum()
        row[:] = np.where(total > 0, 2 * (hits[:, None] * kept).sum(0) / np.maximum(total, 1), 1)
    return result


def _steps(point: OperatingPoint) -> int:
    """Number of grid steps between a point and a threshold of 0.5 without a smallest component."""
    return abs(THRESHOLDS.index(point.threshold) - THRESHOLDS.index(0.5)) + MIN_AREAS.index(point.min_area)
