"""The name under which older configurations know :class:`bustseg.runs.tracker.Tracker`."""

from bustseg.runs.tracker import Tracker

__all__ = ["Tracker"]
