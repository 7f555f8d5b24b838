"""Metrics, one file per family: overlap, curves over thresholds, distances between outlines, connected components."""

from bustseg.metrics.components import ComponentCounts, match_components
from bustseg.metrics.curves import Calibration, PixelCurves
from bustseg.metrics.overlap import CONVENTIONS, METRICS, SegmentationMetrics, aggregate, overlap_scores
from bustseg.metrics.surface import surface_distances

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Calibration",
    "ComponentCounts",
    "PixelCurves",
    "SegmentationMetrics",
    "aggregate",
    "match_components",
    "overlap_scores",
    "surface_distances",
]
