"""Metrics: their registry, and one file per family: overlap, curves, distances, components, tables."""

from bustseg.metrics import definitions as _definitions  # noqa: F401 (registers what bustseg brings)
from bustseg.metrics.components import ComponentCounts, match_components
from bustseg.metrics.curves import Calibration, PixelCurves
from bustseg.metrics.operating import OperatingPoint, OperatingPoints, PresenceEvidence, QuietPoint, QuietPoints
from bustseg.metrics.overlap import SegmentationMetrics, aggregate, overlap_scores
from bustseg.metrics.registry import (
    CONVENTIONS,
    EMPTY_MASK,
    ImageMetric,
    ImageResult,
    Metric,
    OverlapMetric,
    RateMetric,
    overlap_metrics,
    register,
    table_metrics,
    unregister,
)
from bustseg.metrics.surface import surface_distances
from bustseg.metrics.sweep import ThresholdSweep, best_threshold
from bustseg.metrics.table import ImageShapes, image_table, summarise

__all__ = [
    "CONVENTIONS",
    "EMPTY_MASK",
    "Calibration",
    "ComponentCounts",
    "ImageMetric",
    "ImageResult",
    "ImageShapes",
    "Metric",
    "OperatingPoint",
    "OperatingPoints",
    "OverlapMetric",
    "PixelCurves",
    "PresenceEvidence",
    "QuietPoint",
    "QuietPoints",
    "RateMetric",
    "SegmentationMetrics",
    "ThresholdSweep",
    "aggregate",
    "best_threshold",
    "image_table",
    "match_components",
    "overlap_metrics",
    "overlap_scores",
    "register",
    "summarise",
    "surface_distances",
    "table_metrics",
    "unregister",
]
