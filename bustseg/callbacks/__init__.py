"""Lightning callbacks: progress, checkpoints, records, tables and pictures of a run."""

from bustseg.callbacks.averaging import MovingAverage
from bustseg.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from bustseg.callbacks.continued import ContinuedFit
from bustseg.callbacks.curves import TestCurves
from bustseg.callbacks.explain import ExplainCallback
from bustseg.callbacks.frozen import FrozenFeatures
from bustseg.callbacks.interrupts import Interrupts
from bustseg.callbacks.model import ModelRecorder
from bustseg.callbacks.opening import Opening
from bustseg.callbacks.operating import OperatingPointSearch
from bustseg.callbacks.panels import PredictionPanels
from bustseg.callbacks.per_image import ImageTables
from bustseg.callbacks.pictures import EpochPictures
from bustseg.callbacks.progress import EpochLines, TrainingBar
from bustseg.callbacks.record import RunRecorder
from bustseg.callbacks.scores import ScoreTable
from bustseg.callbacks.steps import StepMetrics
from bustseg.callbacks.subsets import TestPasses
from bustseg.callbacks.system import SystemMetrics

__all__ = [
    "BestCheckpoint",
    "ContinuedFit",
    "EpochLines",
    "EpochPictures",
    "ExplainCallback",
    "FrozenFeatures",
    "ImageTables",
    "Interrupts",
    "LastCheckpoint",
    "ModelRecorder",
    "MovingAverage",
    "Opening",
    "OperatingPointSearch",
    "PredictionPanels",
    "RunRecorder",
    "ScoreTable",
    "StepMetrics",
    "SystemMetrics",
    "TestCurves",
    "TestPasses",
    "TrainingBar",
]
