"""The registry of metrics, used by everything that measures, logs, prints, stores or compares a metric.

There are four kinds:

* :class:`OverlapMetric`, a quotient of confusion counts. It is scored under the four conventions of
  :data:`CONVENTIONS`, and its name in a run ends in one: ``dice_lesion``.
* :class:`ImageMetric`, one number per image, measured on its masks; the score is its mean over images: ``hd95``.
* :class:`RateMetric`, a quotient of two sums over the rows of the per-image table: ``missed_lesion_rate``.
* :class:`Metric` itself, for values that are computed elsewhere (curves, losses, times, heat maps) and only described
  here.

A package adds its own with :func:`register`, or with an entry point of the group ``bustseg.metrics`` that refers to a
metric or a sequence of metrics; every command then measures, logs, prints and compares it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from bustseg.classes import offered
from bustseg.data.sources import LABELS
from bustseg.errors import UserError
from bustseg.masks import evidence_of, logit_of
from bustseg.metrics.components import ComponentCounts, match_components
from bustseg.metrics.surface import surface_distances

ENTRY_POINTS = "bustseg.metrics"
"""Group of entry points under which an installed package offers metrics."""

EMPTY_MASK = {
    "paper": "counts 0 in every metric, whatever is predicted (so that even a perfect model stays below 1)",
    "lesion": "is left out: the mean over images that have a lesion",
    "empty_one": "counts 1 if the prediction is empty too, else 0",
    "pooled": "adds to one confusion matrix over all pixels of all images",
}
"""How each convention treats an image whose mask is empty."""

CONVENTIONS = tuple(EMPTY_MASK)
"""Names of the conventions, as used after the metric in a score's name."""

SIZES = ("small", "medium", "large")
"""Thirds of the lesion images by the area of their lesion."""

COUNTS = ("tp", "fp", "fn", "tn")
"""Columns with the confusion counts of an image, in pixels."""

Columns = Mapping[str, np.ndarray]
"""Columns of the per-image table by name, each (n,)."""

Images = Literal["lesion", "normal", "all"]
Prominence = Literal["headline", "usual", "detail"]


@dataclass(frozen=True)
class Metric:
    """The description of a metric.

    Attributes:
        name: its name in a run's metrics, after ``test/`` and before a convention, class or size
        title: heading of a column
        description: its meaning, in words that fit after its name and a colon
        formula: how it is computed, in plain text
        higher_is_better: its direction; None where neither direction is better
        digits: decimals of a single score; an estimate with an interval is shown with one less
        unit: such as ``px``; empty for shares
        prominence: ``headline`` for metrics in every table, ``usual`` for metrics that are also compared and logged in
            a run, ``detail`` for metrics that are only in files such as ``tables/test_scores.csv``
        by_class, by_size: how prominent its scores of each class, and of each third of the lesion sizes, are; None
            where a test does not score them
        alias_of: name of a metric with the same values; only that one is logged
    """

    name: str
    title: str = ""
    description: str = ""
    formula: str = ""
    higher_is_better: bool | None = True
    digits: int = 4
    unit: str = ""
    prominence: Prominence = "usual"
    by_class: Prominence | None = None
    by_size: Prominence | None = None
    alias_of: str | None = None

    def text(self, value: float | None, sign: bool = False, interval: bool = False) -> str:
        """A value as text; empty for None and nan.

        Args:
            value: the value
            sign: whether positive values get a plus sign, as for differences
            interval: whether it is shown with its interval
        """
        if value is None or math.isnan(value):
            return ""
        return f"{value:{'+' if sign else ''}.{max(self.digits - interval, 0)}f}"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return self.higher_is_better is False


@dataclass(frozen=True)
class OverlapMetric(Metric):
    """A quotient of confusion counts from 0 (all wrong) to 1 (all right), under the four conventions.

    Attributes:
        terms: function from ``tp, fp, fn, tn`` (float64 arrays of equal shape) to numerator and denominator of that
            shape; a quotient 0 / 0 counts 0
        charted_in: the conventions in which it is logged as a metric of a run; in the others it is only in files
    """

    terms: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = field(
        kw_only=True
    )
    charted_in: tuple[str, ...] = field(default=CONVENTIONS, kw_only=True)

    def score(self, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
        """The quotient in float64, and 0 where its denominator is 0 (nothing was predicted)."""
        numerator, denominator = self.terms(*(np.asarray(count, dtype=np.float64) for count in (tp, fp, fn, tn)))
        return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) > 0)


@dataclass(frozen=True)
class ImageResult:
    """The prediction for one image, from which metrics and columns are measured.

    Attributes:
        prediction: bool (H, W)
        mask: bool (H, W)
        probability: float32 (H, W)
    """

    prediction: np.ndarray
    mask: np.ndarray
    probability: np.ndarray

    @cached_property
    def evidence(self) -> float:
        """Evidence that there is a lesion, see :func:`bustseg.masks.evidence_of`."""
        return evidence_of(logit_of(self.probability))

    @cached_property
    def distances(self) -> Mapping[str, float]:
        """Distances between the outlines, see :func:`bustseg.metrics.surface_distances`."""
        return surface_distances(self.prediction, self.mask)

    @cached_property
    def components(self) -> ComponentCounts:
        """Lesions found, missed and invented."""
        return match_components(self.prediction, self.mask)


@dataclass(frozen=True)
class Column:
    """A further number per image in the per-image table.

    Attributes:
        name: of the column
        description: what it says
        measure: function from an image's result to its value, nan where it has none
        whole: whether it is a count
    """

    name: str
    description: str
    measure: Callable[[ImageResult], float]
    whole: bool = False


@dataclass(frozen=True)
class RateMetric(Metric):
    """A quotient of two sums over images.

    Attributes:
        terms: function from the columns of the per-image table to numerator and denominator of each image, both (n,);
            the score is undefined when the denominators sum to 0
        columns: the columns that it needs
        images: the images that it is about
        is_mean: whether every denominator is 0 or 1, so that the score is a mean over images
    """

    terms: Callable[[Columns], tuple[np.ndarray, np.ndarray]] = field(kw_only=True)
    columns: tuple[str, ...] = field(default=COUNTS, kw_only=True)
    images: Images = field(default="all", kw_only=True)
    is_mean: bool = field(default=True, kw_only=True)

    def value(self, columns: Columns) -> float | None:
        """The score of a set of images; None where the set does not define it."""
        numerator, denominator = (np.asarray(term, dtype=np.float64).sum() for term in self.terms(columns))
        return float(numerator / denominator) if denominator > 0 else None


@dataclass(frozen=True)
class ImageMetric(Metric):
    """One number per image, measured on its masks; the score is its mean over images.

    Attributes:
        measure: function from an image's result to its value, which must be a number on the images that it is about
        images: the images that count in the mean; the others have nan in the per-image table
    """

    measure: Callable[[ImageResult], float] = field(kw_only=True)
    images: Images = field(default="lesion", kw_only=True)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs."""
        return (self.name, *COUNTS)

    @property
    def column(self) -> Column:
        """Its column in the per-image table."""
        left_out = {"lesion": "; empty for an image without a lesion", "normal": "; empty for an image with one"}
        return Column(self.name, self.description + left_out.get(self.images, ""), self._measure)

    def _measure(self, image: ImageResult) -> float:
        about = self.images == "all" or bool(image.mask.any()) == (self.images == "lesion")
        return self.measure(image) if about else math.nan

    def terms(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Its value and whether it counts, for each image."""
        values = np.asarray(columns[self.name], dtype=np.float64)
        counted = ~np.isnan(values)
        if self.images != "all":
            counted &= ((columns["tp"] + columns["fn"]) > 0) == (self.images == "lesion")
        return np.where(counted, values, 0), counted.astype(np.float64)

    def value(self, columns: Columns) -> float | None:
        """The mean over the images that count; None without any."""
        numerator, denominator = self.terms(columns)
        return float(numerator.sum() / denominator.sum()) if denominator.any() else None


TableMetric = RateMetric | ImageMetric
"""A metric without a convention, computed from the columns of a per-image table."""

_Kind = TypeVar("_Kind", bound=Metric)

_METRICS: dict[str, Metric] = {}
_COLUMNS: dict[str, Column] = {}


def register(*metrics: Metric, replace: bool = False) -> None:
    """Add metrics; from then on each is measured, logged, printed and compared in this process.

    Args:
        metrics: the metrics
        replace: replace a metric with the same name, such as when a notebook's cell runs again

    Raises:
        UserError: a name that is taken by another metric, or that is not valid in a run
    """
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise UserError(f"{metric!r} is not a metric: give a bustseg.metrics.Metric")
        if not metric.name.isidentifier():
            raise UserError(f"invalid name of a metric, {metric.name!r}: use letters, digits and underscores")
        taken = metric.name in _COLUMNS or (metric.name in _METRICS and not replace)
        if taken and _METRICS.get(metric.name) != metric:
            raise UserError(f"there is already a metric or column with the name {metric.name}")
        _METRICS[metric.name] = metric


def unregister(name: str) -> None:
    """Remove a registered metric."""
    _METRICS.pop(name, None)


def register_columns(*columns: Column) -> None:
    """Add columns of the per-image table that are not metrics."""
    _COLUMNS.update({column.name: column for column in columns})


def all_metrics() -> tuple[Metric, ...]:
    """Every metric in the order of registration, those of installed packages last.

    Raises:
        UserError: an installed package's entry point cannot be used
    """
    _register_installed()
    return tuple(_METRICS.values())


@functools.cache
def _register_installed() -> None:
    register(*offered(ENTRY_POINTS, "metrics"))


def of_kind(kind: type[_Kind]) -> list[_Kind]:
    """The metrics of a class, such as :class:`OverlapMetric`, in the order of registration."""
    return [metric for metric in all_metrics() if isinstance(metric, kind)]


def overlap_metrics() -> list[OverlapMetric]:
    """The metrics that are scored under the four conventions."""
    return of_kind(OverlapMetric)


def table_metrics() -> list[TableMetric]:
    """The metrics without a convention that are computed from a per-image table."""
    return [metric for metric in all_metrics() if isinstance(metric, RateMetric | ImageMetric)]


def measured_columns() -> list[Column]:
    """The columns of the per-image table that are measured on the masks: of metrics first, then the others."""
    return [*(metric.column for metric in of_kind(ImageMetric)), *_COLUMNS.values()]


class Score(NamedTuple):
    """The parts of a score's full name.

    Attributes:
        metric: the metric
        convention: of :data:`CONVENTIONS`; empty for metrics that have none
        part: class, third of the lesion sizes or encoder that it is restricted to; empty for all images
    """

    metric: Metric
    convention: str = ""
    part: str = ""

    @property
    def prominence(self) -> Prominence:
        """Its prominence: that of its metric, or of its metric's scores of classes or sizes."""
        if self.part in LABELS:
            return self.metric.by_class or "detail"
        return (self.metric.by_size or "detail") if self.part in SIZES else self.metric.prominence

    @property
    def title(self) -> str:
        """Heading of a column: ``Dice (lesion)``, ``HD95 (px), malignant``."""
        inside = self.convention or self.metric.unit
        text = self.metric.title + (f" ({inside})" if inside else "")
        return f"{text}, {self.part}" if self.part else text

    @property
    def description(self) -> str:
        """Its meaning, with its convention and part."""
        text = self.metric.description
        if self.convention:
            text += f"; an image whose mask is empty {EMPTY_MASK[self.convention]}"
        return f"{text} ({self.part})" if self.part else text


def metric(name: str) -> Metric:
    """The metric with a name; a plain one where none is registered (a callback may log anything)."""
    all_metrics()
    return _METRICS.get(name) or Metric(name, title=name, higher_is_better=None)


def find(name: str) -> Score | None:
    """The parts of a score's full name, such as ``test/dice_lesion_benign``; None where no metric has that name."""
    name = name.rpartition("/")[2]
    all_metrics()
    if name in _METRICS:
        return Score(_METRICS[name])
    stem, _, part = name.rpartition("_")
    if not stem:
        return None
    if part in (*LABELS, *SIZES) or part.removeprefix("encoder").isdigit():
        inner = find(stem)
        return None if inner is None or inner.part else inner._replace(part=part)
    for convention in CONVENTIONS:
        base = name.removesuffix(f"_{convention}")
        if base != name and isinstance(_METRICS.get(base), OverlapMetric):
            return Score(_METRICS[base], convention)
    return None


def score(name: str) -> Score:
    """The parts of a score's full name; a plain metric of that name where none is registered."""
    return find(name) or Score(metric(name.rpartition("/")[2]))


def charted(name: str) -> bool:
    """Whether a value is logged as a metric of a run, each of which gets a chart.

    Scores of secondary interest are left out: metrics of prominence ``detail``, and overlap metrics in rarely used
    conventions. Unknown names are kept: whoever logs them wants to see them.

    Args:
        name: full name, such as ``test/dice_lesion``
    """
    stage, _, short = name.rpartition("/")
    found = find(short) if stage in ("train", "val", "test") else None
    if found is None:
        return True
    own = found.metric
    outside = isinstance(own, OverlapMetric) and bool(found.convention) and found.convention not in own.charted_in
    return found.prominence != "detail" and not outside and not found.part.startswith("encoder")


def logged_name(name: str) -> str:
    """The name under which a score is logged: that of the metric of which it is an alias, else its own."""
    found = find(name)
    if found is None or found.metric.alias_of is None:
        return name
    stage, slash, short = name.rpartition("/")
    return f"{stage}{slash}{found.metric.alias_of}{short.removeprefix(found.metric.name)}"


def value_of(scores: Mapping[str, Any], name: str) -> float | None:
    """A score by its name, or by the name under which it is logged; None where it is missing."""
    found = scores.get(name)
    if found is None:
        found = scores.get(logged_name(name))
    return None if found is None else float(found)


def single_scores(scores: Iterable[str], *prominence: Prominence) -> list[str]:
    """Select the scores without a convention, or of one class, size or encoder, in the registry's order.

    Args:
        scores: full names, without ``test/``
        prominence: which metrics; headline and usual ones by default
    """
    wanted = prominence or ("headline", "usual")
    order = {known.name: place for place, known in enumerate(all_metrics())}
    found = [(name, parts) for name in scores if (parts := find(name)) and parts.prominence in wanted]
    return [
        name
        for name, parts in sorted(found, key=lambda pair: (order[pair[1].metric.name], pair[1].part != "", pair[0]))
        if not parts.convention or parts.part
    ]


def headline_scores(scores: Iterable[str]) -> list[str]:
    """Select the few scores of a short table, in the registry's order, Dice first.

    These are the headline metrics in every convention and the other overlap metrics in the convention ``lesion``,
    without classes, sizes and the loss.

    Args:
        scores: full names, without ``test/``
    """
    names = list(scores)
    overlap = [name for name in names if (found := find(name)) and found.convention and not found.part]
    shown: dict[str, list[str]] = {"headline": [], "usual": []}
    for known in reversed(overlap_metrics()):
        if known.prominence in shown:
            conventions = CONVENTIONS if known.prominence == "headline" else ("lesion",)
            own = [f"{known.name}_{convention}" for convention in conventions]
            shown[known.prominence] += [name for name in own if name in overlap]
    singles = [name for name in single_scores(names, "headline") if not score(name).part and name != "loss"]
    return [*shown["headline"], *shown["usual"], *singles]
