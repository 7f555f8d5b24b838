"""The export format ``onnx``: written by torch's exporters, computed by ONNX Runtime.

Libraries are imported on first use: prediction needs the runtime but not torch.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg.deploy.backends import cores
from bustseg.deploy.formats import ExportFormat, NetworkToWrite, missing
from bustseg.errors import UserError, brief

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
"""ONNX operator set: the first whose Resize supports this bilinear upsampling; every runtime since 2023 reads it."""


class OnnxRuntimeBackend:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file, images in and logits out
        threads: threads per image; the machine's cores when not given

    Raises:
        UserError: ONNX Runtime is not installed, or cannot load the file
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing(["onnxruntime"]) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"ONNX Runtime cannot load {path}: {brief(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: images})[0]


def write_onnx(network: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write a network as ONNX: input ``image`` ``uint8`` (B, 1, h, w), output ``logits``, with any B.

    torch has two exporters. The older one takes a second instead of fifteen and folds BatchNorm, but lacks a few
    operators; the newer one is used where the older fails.

    Args:
        network: in evaluation mode, such as a :class:`bustseg.deploy.export.DeployedNetwork`
        size: (h, w)
        path: the file

    Raises:
        UserError: neither can write this network
    """
    import torch

    from bustseg.runs.store import one_line

    example = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"], "opset_version": OPSET}
    batch: dict[str, Any] = {"image": {0: "batch"}, "logits": {0: "batch"}}
    with quiet_libraries(), torch.no_grad():
        try:
            torch.onnx.export(network, (example,), str(path), **names, dynamic_axes=batch, dynamo=False)
            return
        except Exception as error:
            first = error
        try:
            dynamic = {"image": {0: torch.export.Dim("batch", min=1, max=4096)}}
            torch.onnx.export(
                network, (example,), str(path), **names, dynamic_shapes=dynamic, dynamo=True, external_data=False
            )
        except ImportError as error:
            raise missing([str(error.name)]) from error
        except Exception as error:
            name = type(getattr(network, "network", network)).__name__
            raise UserError(f"torch cannot export {name} to ONNX: {one_line(error)} ({one_line(first)})") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress warnings, log lines and progress of exporters, which describe only their internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            for library in ("torch", "onnx", "onnxscript", "onnxruntime", "nncf", "openvino"):
                warnings.filterwarnings("ignore", module=rf"{library}\b")
            import torch

            # about code that a tracer cannot follow, which the check of the exported file would find
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            yield
    finally:
        logging.disable(level)


def _quantise(path: Path, calibration: np.ndarray) -> None:
    """int8 with ONNX Runtime's static quantisation; weights have 7 bits, as for OpenVINO."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, images: np.ndarray) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None, None]}

    prepared = path.with_name("prepared.onnx")
    with quiet_libraries():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            Images(calibration),
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["Conv"],
        )
    prepared.unlink()


def _write(what: NetworkToWrite) -> Path:
    path = what.folder / "model.onnx"
    write_onnx(what.network, what.size, path)
    if what.precision == "int8":
        assert what.check.calibration is not None
        _quantise(path, what.check.calibration)
    return path


FORMAT = ExportFormat(
    "onnx",
    write=_write,
    open=lambda model, threads: OnnxRuntimeBackend(model.path, threads),
    runtime=OnnxRuntimeBackend.name,
    # ONNX Runtime does not compute in bf16 on CPUs
    precisions=("fp32", "int8"),
    packages=lambda precision: ("onnx", "onnxruntime"),
)
