"""The names under which earlier configurations and scripts know what is now in :mod:`bustseg.runs`."""

from bustseg.runs.opening import open_store
from bustseg.runs.tracker import Tracker

__all__ = ["Tracker", "open_store"]
