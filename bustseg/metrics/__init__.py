"""Metrics, one file per family: overlap, curves over thresholds, distances between outlines, components, tables."""

from bustseg.metrics.components import ComponentCounts, match_components
from bustseg.metrics.curves import Calibration, PixelCurves
from bustseg.metrics.operating import OperatingPoint, OperatingPoints
from bustseg.metrics.overlap import CONVENTIONS, METRICS, SegmentationMetrics, aggregate, overlap_scores
from bustseg.metrics.surface import surface_distances
from bustseg.metrics.sweep import DiceSweep, best_threshold
from bustseg.metrics.table import ImageShapes, image_table, summarise

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Calibration",
    "ComponentCounts",
    "DiceSweep",
    "ImageShapes",
    "OperatingPoint",
    "OperatingPoints",
    "PixelCurves",
    "SegmentationMetrics",
    "aggregate",
    "best_threshold",
    "image_table",
    "match_components",
    "overlap_scores",
    "summarise",
    "surface_distances",
]
