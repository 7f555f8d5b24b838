"""Metrics, one file per family: overlap."""

from bustseg.metrics.overlap import CONVENTIONS, METRICS, SegmentationMetrics, aggregate, overlap_scores

__all__ = ["CONVENTIONS", "METRICS", "SegmentationMetrics", "aggregate", "overlap_scores"]
