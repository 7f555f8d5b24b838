"""From an ultrasound image of any size to a mask of that size, with the same preprocessing as in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg.data.images import to_grey, to_uint8
from bustseg.deploy.backends import TorchBackend, exported_backend
from bustseg.deploy.confidence import CALIBRATION, TRAINING_IMAGES, Calibration, ImageRange
from bustseg.deploy.exported import METADATA, ExportedModel, is_exported, sha256
from bustseg.deploy.formats import Backend
from bustseg.deploy.prediction import Prediction
from bustseg.errors import DataError, UserError
from bustseg.masks import PostProcess, evidence_of

if TYPE_CHECKING:  # an exported model needs no torch, whose import takes seconds
    import torch

    from bustseg.task import SegmentationTask


def as_grey(image: np.ndarray) -> np.ndarray:
    """An image of any common type as grey ``uint8`` (H, W), as in training.

    Levels are scaled as in :func:`bustseg.data.images.to_uint8`, colours are weighted as in
    :func:`bustseg.data.sources.to_grey`, an alpha channel is dropped.

    Args:
        image: (H, W), (H, W, 1), (H, W, 2) of grey and alpha, (H, W, 3) in RGB order or (H, W, 4) in RGBA order;
            booleans, integers that fit in 8 bits, ``uint16``, or floats from 0 to 1

    Raises:
        DataError: another shape or type, values outside its range, or 16 bits of which only the lower ones are used
    """
    image = np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or 0 in image.shape:
        raise DataError(f"an image of shape {image.shape} cannot be used: give (H, W), or (H, W, 3) for colour")
    if image.ndim == 2:
        return to_uint8(image)
    return to_uint8(image[..., 0]) if channels < 3 else to_grey(np.ascontiguousarray(to_uint8(image[..., :3])))


class Predictor:
    """Segments images of any size. Safe to call from several threads at once.

    Examples:
        >>> predictor = Predictor("latest")  # doctest: +SKIP
        >>> predictor(np.asarray(Image.open("scan.png"))).mask  # doctest: +SKIP

    Args:
        model: an exported folder, a task, or what :func:`bustseg.runs.resolve.resolve_checkpoint` accepts: a file,
            a run, a registered model, ``latest``
        device: where to compute; exported models compute on the CPU
        threshold: probability above which a pixel belongs to a lesion; the model's when not given
        image_size: (H, W) that the network sees; the model's when not given
        threads: threads of an exported model; the machine's cores when not given
        backend: backend to use instead of the model's own

    Attributes:
        backend: computes the network
        exported: the exported model, if it is one
        task: the task, unless the model is an exported one
        path: file that identifies the model: the checkpoint or the exported folder's metadata
        framing: how an image becomes the network's input
        rule: turns logits into masks, see :mod:`bustseg.masks`
        calibration, images: calibration of the model's probabilities and range of its training images, from its record;
            see :mod:`bustseg.deploy.confidence`

    Raises:
        UserError: no such model, one whose runtime is not installed, or a task without an image size
    """

    def __init__(
        self,
        model: SegmentationTask | ExportedModel | str | Path,
        device: str | torch.device = "cpu",
        threshold: float | None = None,
        image_size: tuple[int, int] | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        record: Mapping[str, Any]
        self.exported: ExportedModel | None = None
        self.task: SegmentationTask | None = None
        self.path: Path | None = None
        if isinstance(model, str | Path) and is_exported(model):
            model = ExportedModel.read(model)
        if isinstance(model, ExportedModel):
            self.exported, self.path, record = model, model.folder / METADATA, model.metadata
            if str(device) != "cpu":
                raise UserError(f"{model.folder} is exported for the CPU and cannot compute on {device}")
            if image_size not in (None, model.image_size):
                raise UserError(f"{model.folder} takes only images of {model.image_size}")
            self.backend = backend or exported_backend(model, threads)
            self.framing, self.rule = model.framing, model.mask_rule
        else:
            from bustseg.runs.checkpoint import load_task, trained_framing
            from bustseg.runs.resolve import resolve_checkpoint
            from bustseg.task import SegmentationTask

            if isinstance(model, SegmentationTask):
                self.task = model
            else:
                self.path = resolve_checkpoint(str(model))
                self.task = load_task(self.path, device)
            record = self.task.record or {}
            self.backend = backend or TorchBackend(self.task, device)
            self.rule = self.task.mask_rule
            self.framing = trained_framing(self.task, image_size)
        if threshold is not None:
            self.rule = replace(self.rule, threshold=threshold)
        self.calibration = Calibration.from_dict(record.get(CALIBRATION))
        self.images = ImageRange.from_dict(record.get(TRAINING_IMAGES))

    @property
    def image_size(self) -> tuple[int, int]:
        """(h, w) that the network sees."""
        return self.framing.size

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to a lesion."""
        return self.rule.threshold

    @property
    def postprocess(self) -> PostProcess:
        """The post-processing of the masks."""
        return self.rule.postprocess

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :attr:`path`, 64 hex digits; empty for a task that was not read from a file."""
        return "" if self.path is None else sha256(self.path)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """An image as the network's input: grey ``uint8`` of ``image_size``, resampled as in the training's cache."""
        return self.framing.fit(as_grey(image))

    def logits(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Logits ``float32`` (B, 1, h, w) of prepared images, (h, w) being ``image_size``."""
        return self.backend(np.stack(prepared)[:, None])

    def finish(
        self,
        logits: np.ndarray,
        shape: tuple[int, int],
        threshold: float | None = None,
        prepared: np.ndarray | None = None,
    ) -> Prediction:
        """Turn logits (1, h, w) into a prediction of ``shape`` (H, W); they are resampled before the sigmoid.

        Args:
            logits: those of one image from :meth:`logits`
            shape: the image's own size
            threshold: takes the place of the predictor's own
            prepared: the image from :meth:`prepare`, to compare it with the training images
        """
        rule = self.rule if threshold is None else replace(self.rule, threshold=threshold)
        own = self.framing.restore(logits[0], shape)
        return Prediction.of(own, rule, self.calibration, prepared, self.images, evidence_of(logits[0]))

    def __call__(self, image: np.ndarray, threshold: float | None = None) -> Prediction:
        """Prediction for one image, see :func:`as_grey` for what it may be.

        Args:
            image: the image
            threshold: takes the place of the predictor's own, for this image

        Raises:
            DataError: an image that cannot be used
        """
        return next(self.predict_many([image], batch_size=1, threshold=threshold))

    def predict_many(
        self, images: Iterable[np.ndarray], batch_size: int = 16, threshold: float | None = None
    ) -> Iterator[Prediction]:
        """Predictions for images of any sizes, in order; holds one batch at a time."""
        stream = iter(images)
        while chunk := list(islice(stream, batch_size)):
            prepared = [self.prepare(image) for image in chunk]
            for image, view, logits in zip(chunk, prepared, self.logits(prepared), strict=True):
                yield self.finish(logits, np.asarray(image).shape[:2], threshold, view)
