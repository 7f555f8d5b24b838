"""The scores of a per-image table as quotients of two sums over images, as the bootstrap needs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bustseg.metrics import CONVENTIONS, OverlapMetric, overlap_metrics, table_metrics
from bustseg.metrics.registry import COUNTS, ImageMetric, all_metrics
from bustseg.metrics.table import as_columns


def known_metrics() -> list[str]:
    """Names of the metrics that can be compared."""
    return [metric.name for metric in (*overlap_metrics(), *table_metrics())]


def usual_metrics() -> list[str]:
    """Names of the metrics that are compared by default, the headline's first."""
    known = [metric for metric in all_metrics() if metric.name in known_metrics()]
    overlap = [metric for metric in known if isinstance(metric, OverlapMetric)]
    others = [metric for metric in known if not isinstance(metric, OverlapMetric)]
    # the overlap metrics at the start of a table, Dice first
    first = [metric for metric in reversed(overlap) if metric.prominence == "headline"]
    ordered = dict.fromkeys((*first, *overlap, *others))
    return [metric.name for metric in ordered if metric.prominence != "detail"]


@dataclass(frozen=True)
class Measure:
    """A score that is a ratio of two sums over images, or a mean over images.

    Attributes:
        name: name as in MLflow, such as ``dice_lesion``
        metric: ``dice``
        convention: such as ``lesion``; for a metric without conventions ``lesion`` if it is about lesion images, else
            empty
        terms: numerator and denominator per image, both (n,)
        scores: (n,) score per image, nan for an image that does not count; None for pooled scores
    """

    name: str
    metric: str
    convention: str
    terms: tuple[np.ndarray, np.ndarray]
    scores: np.ndarray | None


def measures(frame: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[Measure]:
    """The scores of a per-image table, in the order of ``metrics`` (default: the usual ones) and conventions."""
    lesion = (frame["lesion_px"] > 0).to_numpy()
    columns = as_columns(frame)
    counts = [columns[name].astype(np.float64) for name in COUNTS]
    of_table = {metric.name: metric for metric in table_metrics() if set(metric.columns) <= set(columns)}
    of_overlap = {metric.name: metric for metric in overlap_metrics()}
    found: list[Measure] = []
    for name in usual_metrics() if metrics is None else metrics:
        if name in of_table:
            metric = of_table[name]
            numerator, denominator = (np.asarray(term, dtype=np.float64) for term in metric.terms(columns))
            # a mean over images has a value for each image, a quotient of other sums has not
            is_mean = isinstance(metric, ImageMetric) or metric.is_mean
            scores = np.where(denominator > 0, numerator, np.nan) if is_mean else None
            convention = "lesion" if metric.images == "lesion" else ""
            found.append(Measure(name, name, convention, (numerator, denominator), scores))
        for convention in CONVENTIONS if name in of_overlap else ():
            full = f"{name}_{convention}"
            if convention != "pooled":
                scores = columns[full]
                counted = ~np.isnan(scores)
                found.append(
                    Measure(full, name, convention, (np.where(counted, scores, 0), counted.astype(float)), scores)
                )
            elif lesion.any():
                numerator, denominator = of_overlap[name].terms(*counts)
                # where nothing is predicted at all, precision is 0 and not 0 / 0
                denominator = denominator if denominator.any() else np.ones(len(frame))
                found.append(Measure(full, name, convention, (numerator, denominator), None))
    return found


def drawn_together(images: Iterable[str], groups: Mapping[str, str]) -> np.ndarray:
    """The name of the unit that the bootstrap draws, for each image: its group, else the image itself.

    Args:
        images: ids
        groups: group by image id, for images with a known group
    """
    return np.array([f"group {groups[image]}" if image in groups else f"image {image}" for image in images], object)
