"""Overlap metrics (precision, recall, F1, IoU, Dice) under the four conventions that the literature mixes.

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
binary masks; both are given because the paper reports both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bustseg.data.sources import LABELS
from bustseg.metrics.rows import RowMetric, lesion_pixels, logit_threshold

METRICS = ("precision", "recall", "f1", "iou", "dice")
"""Overlap metrics, as they stand in a metric's name before the convention."""

CONVENTIONS = ("paper", "lesion", "empty_one", "pooled")
"""What becomes of an image whose mask is empty, as it stands in a metric's name after the metric."""

Counts = Tensor | np.ndarray


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient in float64, and 0 where nothing was predicted (the only 0 / 0 on an image that has a lesion)."""
    return numerator.double() / denominator.clamp_min(1)


def _overlap(tp: Tensor, fp: Tensor, fn: Tensor) -> dict[str, Tensor]:
    dice = _ratio(2 * tp, 2 * tp + fp + fn)
    return {
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": dice,
        "iou": _ratio(tp, tp + fp + fn),
        "dice": dice,
    }


def overlap_scores(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> dict[str, Tensor]:
    """Score of every image under the conventions that are means over images.

    Args:
        tp, fp, fn, tn: pixel counts per image, integers of shape (n,)

    Returns:
        ``{metric}_{convention}`` -> float64 of shape (n,), for the conventions ``paper``, ``lesion`` (nan for an image
        that this convention leaves out) and ``empty_one``
    """
    tp, fp, fn = (torch.as_tensor(count) for count in (tp, fp, fn))
    has_lesion = tp + fn > 0
    # tp is 0 without a lesion, so that every quotient is 0 there: the paper's convention needs no special case
    paper = _overlap(tp, fp, fn)
    left_out = torch.where(has_lesion, 0.0, math.nan)
    both_empty = (~has_lesion & (fp == 0)).double()
    scores = {f"{name}_paper": score for name, score in paper.items()}
    scores |= {f"{name}_lesion": score + left_out for name, score in paper.items()}
    scores |= {f"{name}_empty_one": score + both_empty for name, score in paper.items()}
    return scores


def aggregate(tp: Counts, fp: Counts, fn: Counts, tn: Counts, label: Counts | None = None) -> dict[str, Tensor]:
    """Scores of a set of images, under all four conventions.

    Args:
        tp, fp, fn, tn: pixel counts per image, integers of shape (n,)
        label: classes as codes of :data:`bustseg.data.sources.LABELS`, shape (n,); None leaves the scores per class out

    Returns:
        scalars in float64, never nan. A score that the set cannot define has no key, and which keys there are depends
        on the masks and labels alone, never on the predictions:

        * ``{metric}_{convention}`` for every metric of :data:`METRICS` and convention of :data:`CONVENTIONS`
          (``lesion`` and ``pooled`` only if an image has a lesion)
        * ``dice_lesion_benign``, ``iou_lesion_benign``, and the same for ``malignant``: the convention ``lesion`` over
          one class
        * ``missed_lesion_rate``: share of the lesion images on which no lesion pixel was found
        * ``false_positive_rate_normal``: share of the images with an empty mask on which anything was predicted
        * ``false_positive_pixels_normal``: mean share of the pixels predicted on those images
    """
    tp, fp, fn, tn = (torch.as_tensor(count) for count in (tp, fp, fn, tn))
    result: dict[str, Tensor] = {}
    if not len(tp):
        return result
    scores = overlap_scores(tp, fp, fn, tn)
    has_lesion = tp + fn > 0
    any_lesion = bool(has_lesion.any())
    pooled = _overlap(tp.sum(), fp.sum(), fn.sum())
    for convention in CONVENTIONS:
        for name in METRICS:
            if convention in ("paper", "empty_one"):
                result[f"{name}_{convention}"] = scores[f"{name}_{convention}"].mean()
            elif any_lesion:
                score = scores[f"{name}_lesion"][has_lesion].mean() if convention == "lesion" else pooled[name]
                result[f"{name}_{convention}"] = score
    if label is not None:
        label = torch.as_tensor(label)
        for name in ("benign", "malignant"):
            own = has_lesion & (label == LABELS.index(name))
            if own.any():
                result[f"dice_lesion_{name}"] = scores["dice_lesion"][own].mean()
                result[f"iou_lesion_{name}"] = scores["iou_lesion"][own].mean()
    if any_lesion:
        result["missed_lesion_rate"] = (tp[has_lesion] == 0).double().mean()
    if not has_lesion.all():
        false, pixels = fp[~has_lesion], (fp + tn)[~has_lesion]
        result["false_positive_rate_normal"] = (false > 0).double().mean()
        result["false_positive_pixels_normal"] = (false.double() / pixels).mean()
    return result


class SegmentationMetrics(RowMetric):
    """Overlap scores of a data set under all four conventions, from the confusion counts of its images.

    A pixel is predicted as lesion where ``sigmoid(logit) > threshold``, strictly: a network that gives 0 everywhere
    predicts nothing at 0.5. NaN counts as background. Every image counts once, however often a sampler repeats it.

    Args:
        threshold: probability in [0, 1]
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(columns=6, **kwargs)
        self.threshold = threshold
        self.logit_threshold = logit_threshold(threshold)

    def update(self, logits: Tensor, mask: Tensor, label: Tensor, index: Tensor) -> None:
        """Count one batch. Nothing here waits for a GPU.

        Args:
            logits: (B, 1, H, W), any float type
            mask: (B, 1, H, W) of 0 and 1, any type
            label: (B,) codes of :data:`bustseg.data.sources.LABELS`
            index: (B,) positions of the images in the data set

        Raises:
            ValueError: the shapes do not fit together
        """
        if logits.shape != mask.shape or not len(logits) == len(label) == len(index):
            raise ValueError(
                f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must have the same shape (B, 1, H, W), "
                f"label {tuple(label.shape)} and index {tuple(index.shape)} the shape (B,)"
            )
        # float32: a bfloat16 tensor would round the threshold to its own coarse grid
        predicted = (logits.detach().float() > self.logit_threshold).flatten(1)
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
        if self.device.type == "mps":  # which has no float64
            values = values.float()
        return dict(zip(scores, values.to(self.device).unbind(), strict=True))
