"""A trained network as an MLflow model: images of any size in, masks and probabilities of that size out.

The model includes its weights, bustseg's code and its requirements, so that ``mlflow.pyfunc.load_model`` and
``mlflow models serve`` need nothing else. It holds no pickled code: :func:`_load_pyfunc` rebuilds the network from the
configuration in the checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bustseg.data.sources import read_native
from bustseg.deploy.prediction import Prediction
from bustseg.deploy.predictor import Predictor
from bustseg.disclaimer import NOTICE
from bustseg.errors import DataError, UserError
from bustseg.runs.checkpoint import load_task
from bustseg.runs.logged_model import WEIGHTS
from bustseg.trust import trusting

if TYPE_CHECKING:
    pass

_ENCODINGS = ("array", "png")


class SegmentationModel:
    """The object that MLflow calls. See :func:`signature` for its input and output."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Predictions, one mapping per image.

        Args:
            model_input: a number array of one image (H, W) or (H, W, 3), of several (N, H, W) or (N, H, W, 3), or
                images as PNG, JPEG or TIFF bytes or as base64 text; or a table or mapping whose ``image`` is any of
                these
            params: ``threshold`` (the training's by default) and ``encoding``: ``array``, or ``png`` for base64 text
                of a PNG (mask: 0 and 255; probability: 16 bits, 65535 is 1), a hundredth of the size in JSON

        Raises:
            MlflowException: input that cannot be used; a server answers it with status 400
        """
        from mlflow.exceptions import MlflowException

        options = params or {}
        encoding, threshold = options.get("encoding") or "array", options.get("threshold")
        try:
            if encoding not in _ENCODINGS:
                raise DataError(f"unknown encoding {encoding!r}: use {' or '.join(_ENCODINGS)}")
            if threshold is not None and not 0 <= threshold <= 1:
                raise DataError(f"the threshold is {threshold}: give a value from 0 to 1")
            images = as_images(model_input)
            return [
                _as_record(prediction, encoding)
                for prediction in self.predictor.predict_many(images, threshold=threshold)
            ]
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _load_pyfunc(path: str) -> SegmentationModel:
    """MLflow's entry point: ``path`` is the model's folder.

    The configuration may name modules that are part of the model: MLflow has already put them on Python's path, so
    whoever could change them could run anything. Functions and everything else are still refused.
    """
    brought = [file.stem for file in (Path(path) / "code").glob("*") if file.stem.isidentifier()]
    with trusting([name for name in brought if name != "bustseg"]):
        return SegmentationModel(Predictor(load_task(Path(path) / WEIGHTS)))


def as_images(value: Any) -> list[np.ndarray]:
    """The images in an array, list, mapping or table, in the forms that :meth:`SegmentationModel.predict` accepts.

    Raises:
        DataError: the value cannot be converted into images
    """
    if hasattr(value, "columns") or isinstance(value, Mapping):
        if "image" not in value:
            raise DataError(f"the input has {', '.join(map(str, value)) or 'no columns'}: name the images `image`")
        value = value["image"]
        value = value.tolist() if hasattr(value, "tolist") and not isinstance(value, np.ndarray) else value
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OSU":
        return _split(value)
    items = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(items, str | bytes):
        return [_decode(items)]
    if not isinstance(items, list | tuple) or not len(items):
        raise DataError(f"{type(items).__name__} does not hold an image: give an array, or PNG bytes or base64 text")
    if any(isinstance(item, str | bytes | np.ndarray) for item in items):
        return [image for item in items for image in as_images(item)]
    try:
        return _split(np.array(items))
    except ValueError:  # images of different sizes
        return [image for item in items for image in _split(np.array(item))]


def _split(array: np.ndarray) -> list[np.ndarray]:
    """One image or a stack as a list of images; a last dimension of three or four is a colour."""
    colour = array.ndim >= 3 and array.shape[-1] in (1, 3, 4)
    if array.ndim == 2 + colour:
        return [array]
    if array.ndim == 3 + colour:
        return list(array)
    raise DataError(f"an array of shape {array.shape} holds no images: give (H, W) or (N, H, W), or with 3 for colour")


def _decode(data: str | bytes) -> np.ndarray:
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError("a text in the input is not base64 of an image file") from error
    try:
        with tempfile.TemporaryDirectory() as folder:  # the reader needs a path
            path = Path(folder) / "image"
            path.write_bytes(data)
            return read_native(path)
    except DataError as error:
        raise DataError("bytes in the input are not a readable PNG, JPEG or TIFF image") from error


def _as_record(prediction: Prediction, encoding: str) -> dict[str, Any]:
    mask: Any = prediction.mask
    probability: Any = prediction.probability
    if encoding == "png":
        mask = _png(mask * np.uint8(255))
        probability = _png(np.rint(probability * 65535).astype(np.uint16))
    return {
        "mask": mask,
        "probability": probability,
        "presence": prediction.presence,
        "lesion_probability": prediction.lesion_probability,
        "area_px": prediction.area_px,
        "notice": NOTICE,
    }


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
