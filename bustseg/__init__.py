"""bustseg: breast-tumour segmentation in ultrasound with PyTorch Lightning and MLflow.

The Python API is :func:`fit`, :func:`resume`, :func:`validate`, :func:`test` and :class:`Predictor`, with
:class:`Experiment` for what is trained. Each is imported on first use, since they need torch: `import bustseg` alone
stays fast.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bustseg.api import fit, resume, test, validate
    from bustseg.deploy.predictor import Predictor
    from bustseg.experiment import Experiment

__version__ = "0.1.0"

# Telemetry is off: MLflow and NNCF report usage, albumentations checks for newer versions on import, and the Hugging
# Face hub is told which library fetches weights. setdefault keeps a user's own choice.
for _name, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("NO_ALBUMENTATIONS_UPDATE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("NNCF_CI", "1"),
):
    os.environ.setdefault(_name, _value)

__all__ = ["Experiment", "Predictor", "__version__", "fit", "resume", "test", "validate"]

_HOMES = {
    **dict.fromkeys(("fit", "resume", "test", "validate"), "bustseg.api"),
    "Experiment": "bustseg.experiment",
    "Predictor": "bustseg.deploy.predictor",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
