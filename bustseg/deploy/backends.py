"""Backends that compute a network, with one interface: torch (eager or compiled), or the runtime of an export format.

Nothing is imported before it is used: torch takes seconds to import, and predicting needs one runtime only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from bustseg.deploy.exported import ExportedModel
from bustseg.deploy.formats import Backend, find_format
from bustseg.errors import UserError

if TYPE_CHECKING:
    import torch

    from bustseg.task import SegmentationTask


class TorchBackend:
    """A task in torch, in float32 by default.

    Args:
        task: the task; it is put into evaluation mode
        device: where to compute
        compiled: compile the network for the shapes that occur (seconds at the first call; needs a C++ compiler)
    """

    def __init__(self, task: SegmentationTask, device: str | torch.device = "cpu", compiled: bool = False) -> None:
        import torch

        self.name = "compiled" if compiled else "eager"
        self.task = task.to(device).eval()
        self.device = torch.device(device)
        self._forward = torch.compile(self.task.forward, dynamic=False) if compiled else self.task.forward

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
            return self._forward(batch).float().cpu().numpy()


def exported_backend(model: ExportedModel, threads: int | None = None, mirrored: bool = True) -> Backend:
    """The backend of an exported model: the runtime of its format.

    Args:
        model: the exported model
        threads: the machine's cores when not given
        mirrored: also predict each image's mirror image, if the model was exported with it

    Raises:
        UserError: the runtime is not installed, or cannot load the file, or the mirror image cannot be left out
    """
    format = find_format(model.metadata["format"])
    if mirrored or not model.metadata.get("flip"):
        return format.open(model, threads or cores())
    if format.open_without_mirror is None:
        raise UserError(f"{model.folder} cannot leave the mirror image out: export it with --format openvino")
    return format.open_without_mirror(model, threads or cores())


def cores() -> int:
    """Number of cores that this process may use, or ``OMP_NUM_THREADS`` if that is lower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores
