"""The export format ``openvino``: OpenVINO converts an ONNX file, and computes the result."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg.deploy.backends import cores
from bustseg.deploy.formats import ExportFormat, NetworkToWrite, missing
from bustseg.deploy.onnx_format import quiet_libraries, write_onnx
from bustseg.errors import UserError, brief
from bustseg.progress import console

if TYPE_CHECKING:
    from bustseg.deploy.exported import ExportedModel

FIRST_LAYERS = 3
"""Number of consecutive convolutions after the input that stay in float32 in an int8 model."""

RESTORED_LAYERS, RANKING_IMAGES = 16, 24
"""Limits of the search for layers that are not suited to int8: layers restored to float32, images to rank them by."""


class OpenVINOBackend:
    """A network file in OpenVINO on the CPU.

    One image is computed by all threads together, several by one thread each: on two cores the second takes about
    two thirds of the time that a batch takes. In both cases the graph is compiled for one image, with known shapes.

    Args:
        path: OpenVINO's ``.xml`` or an ONNX file, images in and logits out
        precision: precision of floating-point layers. OpenVINO chooses bf16 by itself on some CPUs, so ``f32`` must be
            requested; ``bf16`` on a CPU without it computes in float32
        threads: the machine's cores when not given
        mirrored: include the mirror image, if the graph has it; without it a prediction takes half the time

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
            raise UserError(f"OpenVINO cannot load {path}: {brief(error)}") from error
        self._model = model
        self._own = threading.local()  # an infer request belongs to one thread
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
        return np.array(result, dtype=np.float32)  # the next image overwrites the request's memory

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
    """Remove the mirror image from a graph of :class:`bustseg.deploy.export.DeployedNetwork`; others are unchanged.

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
        raise missing(["openvino"]) from error
    return openvino.Core()


def _nncf() -> Any:
    # it reports its use to a server unless it believes that it runs in a test
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet_libraries():
            import nncf
    except ImportError as error:
        raise missing(["nncf"]) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantisation(nncf: Any) -> dict[str, Any]:
    # CPUs without VNNI add products of 8 bits in 16 bits, which can overflow; with weights of 7 bits they cannot
    fix = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    return {"preset": nncf.QuantizationPreset.MIXED, "advanced_parameters": fix}


def _quantise(network: Any, what: NetworkToWrite) -> Any:
    """int8 weights and activations; layers that lose more Dice than allowed stay in float32."""
    from bustseg.deploy.check import decisive, dice_of, largest_drop

    nncf = _nncf()
    check, rule = what.check, what.rule
    assert check.calibration is not None
    samples = nncf.Dataset([image[None, None] for image in check.calibration])
    options = {**_quantisation(nncf), "subset_size": len(check.calibration)}
    scope = nncf.IgnoredScope(
        # the layers next to the input are the most sensitive: their few channels have the widest ranges
        names=_first_convolutions(network, FIRST_LAYERS),
        # with one thread, OpenVINO 2026.4 multiplies the small int8 matrices of channel attention wrongly
        types=["MatMul"],
        validate=False,
    )
    with quiet_libraries():
        quantised = nncf.quantize(network.clone(), samples, ignored_scope=scope, **options)
    masks = check.masks
    if masks is None:
        return quantised
    before = dice_of(what.reference, masks, rule)
    if largest_drop(before, dice_of(_compiled_logits(quantised, check.images), masks, rule)) <= what.max_dice_drop:
        return quantised
    console.print(
        "int8 loses too much Dice: searching for the layers that must stay in float32 (minutes, up to "
        f"{RESTORED_LAYERS} layers)",
        highlight=False,
    )
    judged_by = decisive(before)

    def validate(compiled: Any, samples: Any) -> tuple[float, None]:
        images, wanted = zip(*samples, strict=True)
        logits = np.concatenate([compiled(image[None, None])[0][:, 0] for image in images])
        found = dice_of(logits, np.stack(wanted), rule)
        # a subset may lack images with or without a lesion
        return min(found[name] for name in judged_by if name in found), None

    with quiet_libraries():
        return nncf.quantize_with_accuracy_control(
            network,
            calibration_dataset=samples,
            validation_dataset=nncf.Dataset(list(zip(check.images, masks, strict=True))),
            validation_fn=validate,
            max_drop=what.max_dice_drop,
            preset=options["preset"],
            subset_size=options["subset_size"],
            ignored_scope=scope,
            advanced_quantization_parameters=options["advanced_parameters"],
            # layers are compared on few images, and a network that needs more of them in float32 is not suited to int8
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                max_num_iterations=RESTORED_LAYERS, ranking_subset_size=RANKING_IMAGES
            ),
        )


def _first_convolutions(network: Any, layers: int) -> list[str]:
    """Names of the convolutions that have fewer than ``layers`` others between them and the image."""
    depth: dict[str, int] = {}
    found = []
    for operation in network.get_ordered_ops():
        before = max((depth[source.get_node().get_friendly_name()] for source in operation.input_values()), default=0)
        convolution = operation.get_type_name() in ("Convolution", "GroupConvolution")
        depth[operation.get_friendly_name()] = before + convolution
        if convolution and before < layers:
            found.append(operation.get_friendly_name())
    return found


def _compiled_logits(network: Any, images: np.ndarray) -> np.ndarray:
    compiled = openvino_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled(image[None, None])[0][:, 0] for image in images])


def _write(what: NetworkToWrite) -> Path:
    onnx = what.folder / "model.onnx"
    write_onnx(what.network, what.size, onnx)
    import openvino

    network = openvino_core().read_model(onnx)
    if what.precision == "int8":
        # int8 layers with a free batch crash OpenVINO on CPUs with AMX (openvino #37577)
        network.reshape([1, 1, *what.size])
        network = _quantise(network, what)
        network.reshape([-1, 1, *what.size])
    # 16 bits halve the file; float32 must stay unchanged
    path = what.folder / "model.xml"
    openvino.save_model(network, path, compress_to_fp16=what.precision == "bf16")
    del network
    onnx.unlink()
    return path


def _open(model: ExportedModel, threads: int, mirrored: bool = True) -> OpenVINOBackend:
    precision = "bf16" if model.metadata["precision"] == "bf16" else "f32"
    return OpenVINOBackend(model.path, precision, threads, mirrored)


FORMAT = ExportFormat(
    "openvino",
    write=_write,
    open=_open,
    open_without_mirror=lambda model, threads: _open(model, threads, mirrored=False),
    runtime=OpenVINOBackend.name,
    precisions=("fp32", "bf16", "int8"),
    packages=lambda precision: ("onnx", "openvino", *(["nncf"] if precision == "int8" else [])),
)
