"""What a run leaves behind."""

from bustseg.callbacks.averaging import MovingAverage
from bustseg.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from bustseg.callbacks.continued import ContinuedFit
from bustseg.callbacks.curves import TestCurves
from bustseg.callbacks.explain import ExplainCallback
from bustseg.callbacks.frozen import FrozenFeatures
from bustseg.callbacks.interrupts import Interrupts
from bustseg.callbacks.model import ModelRecorder
from bustseg.callbacks.operating import OperatingPointSearch
from bustseg.callbacks.panels import PredictionPanels
from bustseg.callbacks.per_image import ImageTables
from bustseg.callbacks.progress import EpochLines, WatchedProgressBar
from bustseg.callbacks.record import RunRecorder
from bustseg.callbacks.subsets import TestPasses

__all__ = [
    "BestCheckpoint",
    "ContinuedFit",
    "EpochLines",
    "ExplainCallback",
    "FrozenFeatures",
    "ImageTables",
    "Interrupts",
    "LastCheckpoint",
    "ModelRecorder",
    "MovingAverage",
    "OperatingPointSearch",
    "PredictionPanels",
    "RunRecorder",
    "TestCurves",
    "TestPasses",
    "WatchedProgressBar",
]
