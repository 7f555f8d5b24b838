"""What computes a network: torch (eager or compiled), ONNX Runtime or OpenVINO, behind one call.

Nothing is imported before it is used: torch takes seconds to import, and predicting needs one runtime only.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg.deploy.exported import ExportedModel
from bustseg.deploy.formats import FORMATS, Backend, find_format
from bustseg.errors import UserError

if TYPE_CHECKING:
    import torch

    from bustseg.task import SegmentationTask


def missing(package: str, extra: str) -> UserError:
    """The error for a package of an extra that is not installed."""
    return UserError(f"{package} is not installed: pip install 'bustseg[{extra}]'")


class TorchBackend:
    """A task in torch, in float32 unless told otherwise.

    Args:
        task: the task; it is put into evaluation mode
        device: where to compute
        compiled: compile the network for the shapes that come (seconds at the first call; needs a C++ compiler)
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


class OnnxRuntimeBackend:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file, images in and logits out
        threads: threads of one image; the machine's cores when not given

    Raises:
        UserError: ONNX Runtime is not installed, or cannot load the file
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("onnxruntime", "deploy") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"ONNX Runtime cannot load {path}: {_one_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: images})[0]


class OpenVINOBackend:
    """A network file in OpenVINO on the CPU.

    One image is computed by all threads together, several by one thread each: on two cores the second takes about
    two thirds of the time that a batch takes. Either way the graph is compiled for one image, whose shapes are known.

    Args:
        path: OpenVINO's ``.xml`` or an ONNX file, images in and logits out
        precision: what floating-point layers compute in. OpenVINO takes bf16 by itself on some CPUs, so that ``f32``
            must be asked for; ``bf16`` on a CPU without it computes in float32
        threads: the machine's cores when not given
        mirrored: with the image's mirror image, where the graph has it; without, it takes half the time

    Raises:
        UserError: OpenVINO is not installed, or cannot load the file
    """

    name = "openvino"

    def __init__(self, path: Path, precision: str = "f32", threads: int | None = None, mirrored: bool = True) -> None:
        self._core = openvino_core()
        self._threads = threads or cores()
        self._precision = precision
        try:
            model = self._core.read_model(path)
            _, channels, height, width = model.input(0).partial_shape
            model.reshape([1, channels, height, width])
            if not mirrored:
                _cut_mirror(model)
            self._single = self._compile(model, "LATENCY", 1)
        except Exception as error:
            raise UserError(f"OpenVINO cannot load {path}: {_one_line(error)}") from error
        self._model = model
        self._own = threading.local()  # an infer request is one thread's
        self._lock = threading.Lock()
        self._queue: Any = None

    def _compile(self, model: Any, hint: str, streams: int) -> Any:
        wanted = {
            "PERFORMANCE_HINT": hint,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        return self._core.compile_model(model, "CPU", wanted)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if len(images) > 1 and self._threads > 1:
            return self._many(images)
        if not hasattr(self._own, "request"):
            self._own.request = self._single.create_infer_request()
        request = self._own.request
        results = [self._copy(request.infer({0: image[None]}, share_inputs=True)[0]) for image in images]
        return results[0] if len(results) == 1 else np.concatenate(results)

    @staticmethod
    def _copy(result: np.ndarray) -> np.ndarray:
        return np.array(result, dtype=np.float32)  # the request's own memory is written again by the next image

    def _many(self, images: np.ndarray) -> np.ndarray:
        with self._lock:  # callers share the streams
            if self._queue is None:
                import openvino

                self._queue = openvino.AsyncInferQueue(self._compile(self._model, "THROUGHPUT", self._threads))
            results: list[Any] = [None] * len(images)

            def keep(request: Any, index: int) -> None:
                results[index] = self._copy(request.get_output_tensor(0).data)

            self._queue.set_callback(keep)
            for index, image in enumerate(images):
                self._queue.start_async({0: image[None]}, index, share_inputs=True)
            self._queue.wait_all()
        return np.concatenate(results)


def _cut_mirror(model: Any) -> None:
    """Take the mirror image out of a graph of :class:`bustseg.deploy.export.DeployedNetwork`; others stay as they are.

    There an image and its mirror image are one batch, and the result is the mean of their logits.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Concat" or node.get_attributes()["axis"] != 0 or node.get_input_size() != 2:
            continue
        image, mirror = (node.input_value(k) for k in (0, 1))
        if mirror.get_node().get_type_name() == "Slice" and mirror.get_node().input_value(0) == image:
            break
    else:
        return
    result = model.get_results()[0]
    first = (
        result.input_value(0).get_node().input_value(0).get_node().input_value(0).get_node()
    )  # mean, sum, first half
    if first.get_type_name() != "Slice":
        return
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(image)
    result.input(0).replace_source_output(first.input_value(0))
    model.validate_nodes_and_infer_types()


def openvino_core() -> Any:
    """OpenVINO's runtime.

    Raises:
        UserError: OpenVINO is not installed
    """
    try:
        import openvino
    except ImportError as error:
        raise missing("openvino", "deploy") from error
    return openvino.Core()


def exported_backend(model: ExportedModel, threads: int | None = None, mirrored: bool = True) -> Backend:
    """What computes an exported model: ONNX Runtime for ONNX, OpenVINO for its own format, else what brings it.

    Args:
        model: the exported model
        threads: the machine's cores when not given
        mirrored: look at each image's mirror image, too, where the model was exported so

    Raises:
        UserError: the runtime is not installed, or cannot load the file, or the mirror image is a part of it
    """
    if not mirrored and model.metadata["format"] != "openvino" and model.metadata.get("flip"):
        raise UserError(f"{model.folder} cannot leave the mirror image out: export it with --format openvino")
    if model.metadata["format"] not in FORMATS:
        return find_format(model.metadata["format"]).open(model.path, threads or cores())
    if model.metadata["format"] == "onnx":
        return OnnxRuntimeBackend(model.path, threads)
    precision = "bf16" if model.metadata["precision"] == "bf16" else "f32"
    return OpenVINOBackend(model.path, precision, threads, mirrored)


def cores() -> int:
    """Cores that this process may use, or ``OMP_NUM_THREADS`` if that says fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
