"""The per-image table: overlap in every convention, outline distances, probabilities, lesions found and missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bustseg.data.sources import LABELS, Sample
from bustseg.masks import MaskRule, probability_of
from bustseg.metrics.overlap import overlap_scores
from bustseg.metrics.registry import (
    COUNTS,
    SIZES,
    ImageResult,
    measured_columns,
    overlap_metrics,
    table_metrics,
)
from bustseg.metrics.rows import RowMetric, check_shapes, lesion_pixels
from bustseg.presence import Presence, calibration_error, detection_auc

PRESENCE = ("presence_auc", "presence_ece")
"""Scores of :func:`presence_scores`."""


def columns() -> dict[str, str]:
    """Columns of the per-image table, in order, with their meaning."""
    of_normals = {
        "paper": "counts 0",
        "lesion": "is left out (empty cell)",
        "empty_one": "counts 1 if nothing is predicted, else 0",
    }
    return {
        "image": "id of the image, as in split files",
        "label": "class",
        "group": "patient or set of near-duplicates, where known from the split or the source",
        "size_third": "small, medium or large: third of the lesion images of this table by lesion_px; empty for "
        "normals",
        "lesion_px": "pixels of the lesion in the evaluated image",
        "lesion_share": "lesion_px as a share of the image",
        "predicted_px": "pixels predicted as lesion",
        "tp": "true positive pixels; the convention pooled sums tp, fp and fn over the images",
        "fp": "false positive pixels",
        "fn": "false negative pixels",
        "tn": "true negative pixels",
        **{
            f"{metric.name}_{convention}": f"{metric.description}; an image without a lesion {what}"
            for convention, what in of_normals.items()
            for metric in overlap_metrics()
        },
        **{column.name: column.description for column in measured_columns()},
        "presence": "probability that there is a lesion, fitted on the evidence of the validation images; empty where "
        "these lack images with or without a lesion, and for the validation images themselves",
    }


class ImageShapes(RowMetric):
    """The values per image beyond the confusion counts: the :func:`bustseg.metrics.registry.measured_columns`.

    Outlines, components, probabilities, and further registered columns; 8 bytes per number and image.

    Args:
        threshold: probability above which a pixel is predicted as lesion
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        self.measured = measured_columns()
        super().__init__(columns=1 + len(self.measured), **kwargs)
        self.rule = MaskRule(threshold)

    def update(self, logits: Tensor, mask: Tensor, index: Tensor, predicted: Tensor | None = None) -> None:
        """Measure one batch, on the CPU.

        Args:
            logits: (B, 1, H, W), any float type; NaN counts as probability 0
            mask: (B, 1, H, W) of 0 and 1, any type
            index: (B,) positions of the images in the data set
            predicted: masks bool (B, 1, H, W) from the logits, if more than the threshold was applied

        Raises:
            ValueError: the shapes do not fit together
        """
        check_shapes(logits, mask, index)
        values = torch.nan_to_num(logits.detach().float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        found = (self.rule.masks(values) if predicted is None else predicted)[:, 0].cpu().numpy()
        probability = [probability_of(plane) for plane in values[:, 0].cpu().numpy()]
        lesion = lesion_pixels(mask)[:, 0].cpu().numpy()
        assert isinstance(self.rows, list)
        rows = np.empty((len(index), self.columns), dtype=np.int64)
        for row, position, *maps in zip(rows, index.tolist(), found, lesion, probability, strict=True):
            image = ImageResult(*maps)
            numbers = np.array([column.measure(image) for column in self.measured], dtype=np.float64)
            # floats are stored as their bits: an integer table is gathered exactly
            row[:] = [position, *numbers.view(np.int64)]
        self.rows.append(torch.from_numpy(rows).to(logits.device))

    def per_image(self) -> dict[str, np.ndarray]:
        """Columns by name, one entry per image, sorted by ``index``; under DDP every process must call it."""
        rows = self.merged_images().numpy()
        numbers = np.ascontiguousarray(rows[:, 1:]).view(np.float64)
        measured = {
            column.name: numbers[:, place].astype(np.int64) if column.whole else numbers[:, place]
            for place, column in enumerate(self.measured)
        }
        return {"index": rows[:, 0], **measured}

    def compute(self) -> dict[str, Tensor]:
        """Nothing: :func:`summarise` has the means."""
        return {}


def size_thirds(lesion_px: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Third of every image by its lesion's area, and the two areas that separate the thirds.

    The thirds are taken over the images that have a lesion: up to the first limit ``small``, up to the second
    ``medium``.

    Args:
        lesion_px: (n,) pixels of the lesion, 0 for none

    Returns:
        names of :data:`SIZES` ("" without a lesion), object (n,), and the limits in pixels (none without lesions)
    """
    thirds = np.full(len(lesion_px), "", dtype=object)
    lesion = lesion_px > 0
    if not lesion.any():
        return thirds, []
    limits = np.quantile(lesion_px[lesion], [1 / 3, 2 / 3])
    thirds[lesion] = np.array(SIZES, dtype=object)[np.searchsorted(limits, lesion_px[lesion])]
    return thirds, limits.tolist()


def image_table(
    counts: Mapping[str, Tensor],
    shapes: Mapping[str, np.ndarray],
    samples: Sequence[Sample],
    groups: Mapping[str, str] | None = None,
    presence: Presence | None = None,
) -> pd.DataFrame:
    """The per-image table, with the columns of :func:`columns`.

    Args:
        counts: from :meth:`bustseg.metrics.SegmentationMetrics.per_image`
        shapes: from :meth:`ImageShapes.per_image`, for the same images
        samples: the data set that ``index`` points into
        groups: group by image id, in addition to the samples' own groups
        presence: converts the evidence of a lesion into a probability

    Raises:
        ValueError: counts and shapes are of different images
    """
    index = counts["index"].numpy()
    if not np.array_equal(index, shapes["index"]):
        raise ValueError("counts and shapes are of different images")
    tp, fp, fn, tn = (counts[name].numpy() for name in ("tp", "fp", "fn", "tn"))
    own = [samples[i] for i in index]
    lesion_px = tp + fn
    values: dict[str, Any] = {
        "image": [sample.id for sample in own],
        "label": [LABELS[code] for code in counts["label"].tolist()],
        "group": [(groups or {}).get(sample.id) or sample.group or "" for sample in own],
        "size_third": size_thirds(lesion_px)[0],
        "lesion_px": lesion_px,
        "lesion_share": lesion_px / np.maximum(tp + fp + fn + tn, 1),
        "predicted_px": tp + fp,
        **{"tp": tp, "fp": fp, "fn": fn, "tn": tn},
        **{name: score.numpy() for name, score in overlap_scores(tp, fp, fn, tn).items()},
        **shapes,
        "presence": presence(shapes["presence_evidence"]) if presence else np.full(len(index), np.nan),
    }
    return pd.DataFrame({name: values[name] for name in columns()})


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Means of a per-image table over all lesion images, per class and per third of the lesion size.

    Returns:
        ``overall``; ``by_class`` and ``by_size``, which hold the same per name; and ``size_limits_px``, the areas that
        divide the thirds. Each has ``images``, ``lesion_images``, ``missed``, and where defined the overlap metrics in
        the convention ``lesion`` and the metrics without a convention.
    """
    lesions = table[table["lesion_px"] > 0]
    return {
        "overall": _means(table),
        "by_class": {name: _means(table[table["label"] == name]) for name in LABELS if (table["label"] == name).any()},
        "by_size": {name: _means(part) for name in SIZES if len(part := table[table["size_third"] == name])},
        "size_limits_px": size_thirds(lesions["lesion_px"].to_numpy())[1],
    }


def _means(table: pd.DataFrame) -> dict[str, Any]:
    lesions = table[table["lesion_px"] > 0]
    result: dict[str, Any] = {
        "images": len(table),
        "lesion_images": len(lesions),
        "missed": int((lesions["tp"] == 0).sum()),
    }
    if len(lesions):
        names = [f"{metric.name}_lesion" for metric in overlap_metrics() if metric.alias_of is None]
        result |= {name: float(lesions[name].mean()) for name in names}
    columns = as_columns(table)
    values = {metric.name: metric.value(columns) for metric in table_metrics()}
    return result | presence_scores(table) | {name: value for name, value in values.items() if value is not None}


def presence_scores(table: pd.DataFrame) -> dict[str, float]:
    """``presence_auc`` and ``presence_ece`` of a per-image table, where its images define them."""
    if "presence_evidence" not in table:
        return {}
    lesion = (table["lesion_px"] > 0).to_numpy()
    auc = float(detection_auc(table["presence_evidence"].to_numpy(), lesion)[0])
    scores = {} if np.isnan(auc) else {"presence_auc": auc}
    if len(table) and table["presence"].notna().all():
        scores["presence_ece"] = float(calibration_error(table["presence"].to_numpy(), lesion)[0])
    return scores


def as_columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """A per-image table's numeric columns by name."""
    return {str(name): table[name].to_numpy() for name in table.select_dtypes("number")}


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The part of a summary that becomes metrics of the run, by name (without the subset).

    Scores of the confusion counts are not included: :func:`bustseg.metrics.aggregate` computes those.
    """
    found = {name: summary["overall"][name] for name in PRESENCE if name in summary["overall"]}
    for metric in table_metrics():
        if metric.name in summary["overall"] and not set(metric.columns) <= set(COUNTS):
            found[metric.name] = summary["overall"][metric.name]
        for wanted, parts in ((metric.by_class, summary["by_class"]), (metric.by_size, summary["by_size"])):
            own = {part: means[metric.name] for part, means in parts.items() if metric.name in means}
            found |= {f"{metric.name}_{part}": value for part, value in own.items() if wanted}
    for overlap in overlap_metrics():
        if overlap.by_size:
            name = f"{overlap.name}_lesion"
            found |= {f"{name}_{part}": means[name] for part, means in summary["by_size"].items() if name in means}
    return found
