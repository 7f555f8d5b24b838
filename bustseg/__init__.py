"""bustseg: breast-tumour segmentation in ultrasound with PyTorch Lightning and MLflow.

The Python API is :func:`fit`, :func:`resume`, :func:`validate`, :func:`test` and :class:`Predictor`, with
:class:`Experiment` for what is trained. Each is imported when it is first used: they bring torch, `import bustseg`
brings nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bustseg.api import fit, resume, test, validate
    from bustseg.deploy.predictor import Predictor
    from bustseg.experiment import Experiment

__version__ = "0.1.0"

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
