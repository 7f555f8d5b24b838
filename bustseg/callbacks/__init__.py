"""What a run leaves behind."""

from bustseg.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from bustseg.callbacks.explain import ExplainCallback
from bustseg.callbacks.panels import PredictionPanels
from bustseg.callbacks.progress import EpochLines, WatchedProgressBar
from bustseg.callbacks.record import RunRecorder

__all__ = [
    "BestCheckpoint",
    "EpochLines",
    "ExplainCallback",
    "LastCheckpoint",
    "PredictionPanels",
    "RunRecorder",
    "WatchedProgressBar",
]
