"""Overlap metrics (precision, recall, IoU, Dice, and registered ones) under the literature's four conventions.

=============  ==============================================================================================
convention     an image whose mask is empty
=============  ==============================================================================================
``paper``      counts 0 in every metric, whatever is predicted (Anari et al. 2025, recovered from their models
               17, 18 and 20, which predict a lesion everywhere)
``lesion``     is left out: the mean over the images that have a lesion
``empty_one``  counts 1 if the prediction is empty too, else 0 (nnU-Net challenges, most 2-D benchmarks)
``pooled``     adds to one confusion matrix over all pixels of all images
=============  ==============================================================================================

Under each of them an image that has a lesion and an empty prediction counts 0 in every metric. F1 equals Dice for
binary masks; both are reported because the paper does so.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bustseg.data.sources import LABELS
from bustseg.masks import MaskRule
from bustseg.metrics.registry import CONVENTIONS, COUNTS, RateMetric, of_kind, overlap_metrics
from bustseg.metrics.rows import RowMetric, lesion_pixels

Counts = Tensor | np.ndarray


def _arrays(*counts: Counts) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(torch.as_tensor(count).cpu(), dtype=np.float64) for count in counts)


def overlap_scores(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> dict[str, Tensor]:
    """Score of every image under the conventions that are means over images.

    Args:
        tp, fp, fn, tn: pixel counts per image, integers of shape (n,)

    Returns:
        ``{metric}_{convention}`` -> float64 of shape (n,) for every :class:`bustseg.metrics.OverlapMetric`, for the
        conventions ``paper``, ``lesion`` (nan for an image that this convention leaves out) and ``empty_one``
    """
    counts = _arrays(tp, fp, fn, tn)
    has_lesion = counts[0] + counts[2] > 0
    both_empty = ~has_lesion & (counts[1] == 0)
    metrics = overlap_metrics()
    own = {metric.name: np.where(has_lesion, metric.score(*counts), 0.0) for metric in metrics}
    by_convention = {
        "paper": own,
        "lesion": {name: np.where(has_lesion, score, math.nan) for name, score in own.items()},
        "empty_one": {name: score + both_empty for name, score in own.items()},
    }
    return {
        f"{name}_{convention}": torch.from_numpy(score)
        for convention, scores in by_convention.items()
        for name, score in scores.items()
    }


def aggregate(tp: Counts, fp: Counts, fn: Counts, tn: Counts, label: Counts | None = None) -> dict[str, Tensor]:
    """Scores of a set of images, under all four conventions.

    Args:
        tp, fp, fn, tn: pixel counts per image, integers of shape (n,)
        label: classes as codes of :data:`bustseg.data.sources.LABELS`, shape (n,); None leaves out the scores per class

    Returns:
        scalars in float64, never nan. An undefined score has no key; which keys exist depends only on the masks and
        labels, never on the predictions:

        * ``{metric}_{convention}`` for every :class:`bustseg.metrics.OverlapMetric` and convention of
          :data:`CONVENTIONS` (``lesion`` and ``pooled`` only if an image has a lesion)
        * ``{metric}_lesion_benign`` and ``{metric}_lesion_malignant`` for those with ``by_class``: the convention
          ``lesion`` over one class
        * every :class:`bustseg.metrics.RateMetric` that needs only the counts, such as ``missed_lesion_rate``
    """
    counts = _arrays(tp, fp, fn, tn)
    result: dict[str, float] = {}
    if not len(counts[0]):
        return {}
    scores = {name: score.numpy() for name, score in overlap_scores(tp, fp, fn, tn).items()}
    has_lesion = counts[0] + counts[2] > 0
    for convention in CONVENTIONS:
        for metric in overlap_metrics():
            name = f"{metric.name}_{convention}"
            if convention in ("paper", "empty_one"):
                result[name] = scores[name].mean()
            elif has_lesion.any():
                own = scores[f"{metric.name}_lesion"][has_lesion]
                result[name] = float(own.mean() if convention == "lesion" else metric.score(*(c.sum() for c in counts)))
    if label is not None:
        codes = np.asarray(torch.as_tensor(label).cpu())
        for name in ("benign", "malignant"):
            chosen = has_lesion & (codes == LABELS.index(name))
            for metric in overlap_metrics() if chosen.any() else ():
                if metric.by_class:
                    result[f"{metric.name}_lesion_{name}"] = scores[f"{metric.name}_lesion"][chosen].mean()
    columns = dict(zip(COUNTS, counts, strict=True))
    for rate in of_kind(RateMetric):
        if set(rate.columns) <= set(COUNTS) and (value := rate.value(columns)) is not None:
            result[rate.name] = value
    return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in result.items()}


class SegmentationMetrics(RowMetric):
    """Overlap scores of a data set under all four conventions, from the confusion counts of its images.

    A pixel is predicted as lesion where ``sigmoid(logit) > threshold``, strictly: a network whose logits are all 0
    predicts nothing at 0.5. NaN counts as background. Every image counts once, however often a sampler repeats it.

    Args:
        threshold: probability in [0, 1]
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(columns=6, **kwargs)
        self.threshold = threshold
        self.rule = MaskRule(threshold)

    def update(
        self, logits: Tensor, mask: Tensor, label: Tensor, index: Tensor, predicted: Tensor | None = None
    ) -> None:
        """Count one batch. Nothing here waits for a GPU.

        Args:
            logits: (B, 1, H, W), any float type
            mask: (B, 1, H, W) of 0 and 1, any type
            label: (B,) codes of :data:`bustseg.data.sources.LABELS`
            index: (B,) positions of the images in the data set
            predicted: masks bool (B, 1, H, W) from the logits, if more than the threshold was applied

        Raises:
            ValueError: the shapes do not fit together
        """
        if logits.shape != mask.shape or not len(logits) == len(label) == len(index):
            raise ValueError(
                f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must have the same shape (B, 1, H, W), "
                f"label {tuple(label.shape)} and index {tuple(index.shape)} the shape (B,)"
            )
        predicted = (self.rule.masks(logits) if predicted is None else predicted).flatten(1)
        lesion = lesion_pixels(mask).flatten(1)
        tp = (predicted & lesion).sum(1)
        fp = predicted.sum(1) - tp
        fn = lesion.sum(1) - tp
        tn = predicted.shape[1] - tp - fp - fn
        columns = (index.to(tp), label.to(tp), tp, fp, fn, tn)
        assert isinstance(self.rows, list)
        self.rows.append(torch.stack(columns, dim=1))

    def per_image(self) -> dict[str, Tensor]:
        """Counts of every image, once each and sorted by index; under DDP every process must call it.

        Returns:
            ``index``, ``label``, ``tp``, ``fp``, ``fn``, ``tn`` -> int64 of shape (n,) on the CPU
        """
        return dict(zip(("index", "label", "tp", "fp", "fn", "tn"), self.merged_images().unbind(1), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Scalars of :func:`aggregate` over all images seen, on the metric's device; empty if there were none."""
        counts = self.per_image()
        scores = aggregate(counts["tp"], counts["fp"], counts["fn"], counts["tn"], counts["label"])
        if not scores:
            return {}
        values = torch.stack(list(scores.values()))
        if self.device.type == "mps":  # MPS has no float64
            values = values.float()
        return dict(zip(scores, values.to(self.device).unbind(), strict=True))
