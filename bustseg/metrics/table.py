"""One row per image: overlap in every convention, outlines, probabilities, lesions found and missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bustseg.data.sources import LABELS, Sample
from bustseg.metrics.components import match_components
from bustseg.metrics.overlap import overlap_scores
from bustseg.metrics.rows import RowMetric, check_shapes, lesion_pixels, logit_threshold
from bustseg.metrics.surface import surface_distances

COLUMNS = {
    "image": "id of the image, as in split files",
    "label": "class",
    "group": "patient or set of near-duplicates, where the split or the source knows it",
    "size_third": "small, medium or large: third of the lesion images of this table by lesion_px; empty for normals",
    "lesion_px": "pixels of the lesion in the evaluated image",
    "lesion_share": "lesion_px as a share of the image",
    "predicted_px": "pixels predicted as lesion",
    "tp": "true positive pixels; the convention pooled sums tp, fp and fn over the images",
    "fp": "false positive pixels",
    "fn": "false negative pixels",
    "tn": "true negative pixels",
    **{
        f"{metric}_{convention}": f"{metric} of the image; an image without a lesion {what}"
        for convention, what in (
            ("paper", "counts 0"),
            ("lesion", "is left out (empty cell)"),
            ("empty_one", "counts 1 if nothing is predicted, else 0"),
        )
        for metric in ("precision", "recall", "f1", "iou", "dice")
    },
    "hd95": "95th percentile Hausdorff distance in pixels of the evaluated image; a missed lesion counts the diagonal, "
    "an image without a lesion is left out",
    "assd": "average symmetric surface distance in pixels, with the same rules",
    "hd95_relative": "hd95 as a share of the image diagonal",
    "assd_relative": "assd as a share of the image diagonal",
    "mean_probability": "mean predicted probability over the predicted pixels; empty if there are none",
    "max_probability": "highest predicted probability in the image",
    "lesions_found": "connected components (8 neighbours) of the mask of which at least one pixel was predicted",
    "lesions_missed": "components of the mask of which none was",
    "lesions_spurious": "components of the prediction that touch no lesion",
}
"""Columns of the per-image table, in order, and what they say."""

SIZES = ("small", "medium", "large")
_COUNTS = ("lesions_found", "lesions_missed", "lesions_spurious")
_FLOATS = ("hd95", "assd", "hd95_relative", "assd_relative", "mean_probability", "max_probability")
_SUMMARISED = ("dice_lesion", "iou_lesion", "precision_lesion", "recall_lesion", *_FLOATS[:4])


class ImageShapes(RowMetric):
    """What the confusion counts of an image do not say: outlines, components, probabilities. 80 bytes per image.

    Args:
        threshold: probability above which a pixel is predicted as lesion
        kwargs: options of :class:`torchmetrics.Metric`
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(columns=1 + len(_COUNTS) + len(_FLOATS), **kwargs)
        self.logit_threshold = logit_threshold(threshold)

    def update(self, logits: Tensor, mask: Tensor, index: Tensor) -> None:
        """Measure one batch, on the CPU.

        Args:
            logits: (B, 1, H, W), any float type; NaN counts as probability 0
            mask: (B, 1, H, W) of 0 and 1, any type
            index: (B,) positions of the images in the data set

        Raises:
            ValueError: the shapes do not fit together
        """
        check_shapes(logits, mask, index)
        values = torch.nan_to_num(logits.detach().float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        predicted = (values > self.logit_threshold)[:, 0].cpu().numpy()
        probability = values.sigmoid()[:, 0].cpu().numpy()
        lesion = lesion_pixels(mask)[:, 0].cpu().numpy()
        assert isinstance(self.rows, list)
        rows = np.empty((len(index), self.columns), dtype=np.int64)
        for row, position, own, heat, truth in zip(rows, index.tolist(), predicted, probability, lesion, strict=True):
            distances = surface_distances(own, truth)
            mean = heat[own].mean(dtype=np.float64) if own.any() else np.nan
            floats = np.array([*(distances[name] for name in _FLOATS[:4]), mean, heat.max()], dtype=np.float64)
            # floats travel as their bits: an integer table is gathered exactly
            row[:] = [position, *match_components(own, truth), *floats.view(np.int64)]
        self.rows.append(torch.from_numpy(rows).to(logits.device))

    def per_image(self) -> dict[str, np.ndarray]:
        """Columns by name, one entry per image, sorted by ``index``; under DDP every process must call it."""
        rows = self.merged_images().numpy()
        floats = np.ascontiguousarray(rows[:, 1 + len(_COUNTS) :]).view(np.float64)
        names = ("index", *_COUNTS)
        return {name: rows[:, i] for i, name in enumerate(names)} | {
            name: floats[:, i] for i, name in enumerate(_FLOATS)
        }

    def compute(self) -> dict[str, Tensor]:
        """Nothing: :func:`summarise` has the means."""
        return {}


def size_thirds(lesion_px: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Third of every image by its lesion's area, and the two areas that divide them.

    The thirds are those of the images that have a lesion: up to the first limit ``small``, up to the second ``medium``.

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
) -> pd.DataFrame:
    """The per-image table, with the columns of :data:`COLUMNS`.

    Args:
        counts: of :meth:`bustseg.metrics.SegmentationMetrics.per_image`
        shapes: of :meth:`ImageShapes.per_image`, for the same images
        samples: the data set that ``index`` points into
        groups: group by image id, where it is known beyond the samples' own

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
    }
    return pd.DataFrame({name: values[name] for name in COLUMNS})


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Means of a per-image table over all lesion images, per class and per third of the lesion size.

    Returns:
        ``overall``; ``by_class`` and ``by_size``, which hold the same per name; and ``size_limits_px``, the areas that
        divide the thirds. Each has ``images``, ``lesion_images``, ``missed``, and (only with lesion images) the means
        of Dice, IoU, precision and recall in the convention ``lesion`` and of the distances; also
        ``lesion_detection_rate``, the share of the connected components that were found, and
        ``spurious_per_image``, the regions invented per image (all images, normals too).
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
        result |= {name: float(lesions[name].mean()) for name in _SUMMARISED}
        found = int(table["lesions_found"].sum())
        result["lesion_detection_rate"] = found / (found + int(table["lesions_missed"].sum()))
    if len(table):
        result["spurious_per_image"] = float(table["lesions_spurious"].mean())
    return result


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The part of a summary that is worth a metric of the run, by name (without the subset)."""
    names = ("hd95", "assd", "hd95_relative", "assd_relative", "lesion_detection_rate", "spurious_per_image")
    overall = summary["overall"]
    metrics = {name: overall[name] for name in names if name in overall}
    for part in (summary["by_class"], summary["by_size"]):
        for key, means in part.items():
            # Dice per class is among the overlap scores already
            own = ("hd95", "assd") if part is summary["by_class"] else ("dice_lesion", "hd95", "assd")
            metrics |= {f"{name}_{key}": means[name] for name in own if name in means}
    return metrics
