"""Runs compared image by image."""

from bustseg.compare.analysis import Comparison, RunTable, compare, load_run, load_runs, read_groups

__all__ = ["Comparison", "RunTable", "compare", "load_run", "load_runs", "read_groups"]
