"""Pictures of a few fixed validation images during training, for MLflow's image charts."""

from __future__ import annotations

import math
import time
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.figures.colours import PREDICTION, TRUTH
from bustseg.figures.outlines import draw_outline
from bustseg.masks import MaskRule
from bustseg.runs.run import Run
from bustseg.runs.tracker import Tracker, runs_logger
from bustseg.task import SegmentationTask

KEY = "val/predictions"
"""The chart's name, listed among those of the validation."""

LOGGED_IMAGES = "mlflow.loggedImages"
"""Tag that tells MLflow's UI that a run has images over steps."""

SIDE = 256
"""Longest side of an image in the picture, in pixels."""


class EpochPictures(Callback):
    """During a fit, shows the predictions for the same few validation images, epoch by epoch.

    Each epoch gives one picture of all of them, with the outlines of annotation and prediction, stored as ``log_image``
    would: MLflow's UI shows it with a slider over epochs. The predictions are those of the validation, so nothing is
    computed twice. Only runs in an MLflow store get these pictures.

    With several processes, only images of the first are shown.

    Args:
        images: how many images, with lesions of all sizes and one without
        pictures: about the most pictures of one fit, at equal distances
    """

    def __init__(self, images: int = 4, pictures: int = 25) -> None:
        self.images = images
        self.pictures = pictures
        self._chosen: list[int] = []
        self._found: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._chosen = choose(datamodule, self.images) if isinstance(datamodule, UltrasoundDataModule) else []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._wanted(trainer) or not isinstance(pl_module, SegmentationTask):
            return
        places = [place for place, index in enumerate(batch["index"].tolist()) if index in self._chosen]
        if not places:
            return
        masks = MaskRule(pl_module.threshold).masks(outputs[places])
        for place, mask in zip(places, masks, strict=True):
            planes = (batch["image"][place, 0], batch["mask"][place, 0], mask[0])
            self._found[int(batch["index"][place])] = tuple(plane.cpu().numpy().astype(np.uint8) for plane in planes)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = runs_logger(trainer)
        if self._found and isinstance(logger, Tracker) and logger.pictures:
            tiles = [outlined(*self._found[index]) for index in self._chosen if index in self._found]
            log_picture(logger.run, KEY, side_by_side(tiles), trainer.current_epoch)
            self._found = {}

    def _wanted(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return False
        epochs = trainer.max_epochs
        every = math.ceil(epochs / self.pictures) if epochs is not None and epochs > 0 else 10
        return trainer.current_epoch % every == 0


def choose(datamodule: UltrasoundDataModule, n: int) -> list[int]:
    """Positions of the validation images to show: lesions evenly spaced in size, and a normal image if there is one."""
    indices = [int(index) for index in datamodule.indices["val"]]
    normal = [index for index in indices if datamodule.samples[index].label == "normal"][: min(1, n - 1)]
    lesions = [index for index in indices if datamodule.samples[index].label != "normal"]
    places = np.linspace(0, len(lesions) - 1, min(n - len(normal), len(lesions))).round().astype(int)
    return [*(lesions[place] for place in places), *normal]


def outlined(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """An image with the outlines of its mask and of the predicted one.

    Args:
        image: grey ``uint8`` (H, W)
        truth, prediction: ``uint8`` of 0 and 1, (H, W)

    Returns:
        ``uint8`` (h, w, 3), RGB, its longer side at most :data:`SIDE`
    """
    scale = min(1.0, SIDE / max(image.shape))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    drawn = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2RGB)
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        draw_outline(drawn, small, colour)
    return drawn


def side_by_side(tiles: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures of equal height in a row, with white gaps."""
    between = np.full((tiles[0].shape[0], gap, 3), 255, np.uint8)
    row = [part for tile in tiles for part in (tile, between)]
    return np.concatenate(row[:-1], axis=1)


def log_picture(run: Run, key: str, picture: np.ndarray, step: int) -> None:
    """Store a picture where MLflow's ``log_image`` would, through the same path as all files of a run.

    An epoch that is computed again after an interruption replaces its picture.

    Args:
        run: the run
        key: name of the chart
        picture: ``uint8`` (H, W, 3)
        step: its position on the chart's slider
    """
    stem = f"{key.replace('/', '~')}+step+{step}+timestamp+"
    folder = run.files / "images"
    earlier = sorted(path.name for path in folder.glob(f"{stem}*.png")) if folder.is_dir() else []
    name = Path(earlier[0]).stem if earlier else f"{stem}{time.time_ns() // 1_000_000}+{uuid.uuid4()}"
    folder.mkdir(parents=True, exist_ok=True)
    # the UI shows the small file, and the large one on a click
    for path in (folder / f"{name}.png", folder / f"{name}+compressed.webp"):
        Image.fromarray(picture).save(path)
        run.add_file(path, "images", show=False)
    if not earlier:
        run.set_tags({LOGGED_IMAGES: True})
