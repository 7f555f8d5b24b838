"""Metrics, one file per family: overlap, curves over thresholds."""

from bustseg.metrics.curves import Calibration, PixelCurves
from bustseg.metrics.overlap import CONVENTIONS, METRICS, SegmentationMetrics, aggregate, overlap_scores

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "Calibration",
    "PixelCurves",
    "SegmentationMetrics",
    "aggregate",
    "overlap_scores",
]
