"""Frozen encoders without augmentation: their features are computed once per run instead of once per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.data.datamodule import Batch, UltrasoundDataModule
from bustseg.data.transforms import Augmentation
from bustseg.progress import console
from bustseg.task import SegmentationTask


@runtime_checkable
class SplitNetwork(Protocol):
    """A network in two parts, the first of which may be frozen."""

    @property
    def frozen(self) -> bool:
        """Whether :meth:`encode` is not trained and gives the same features for the same image."""

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features, each (B, ...), of images (B, C, H, W)."""

    def decode(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits (B, 1, H, W) from the features of images of ``size`` (H, W)."""


def usable(task: Any, data: Any) -> bool:
    """Whether an image's features are the same in each epoch: a frozen part, and no augmentation."""
    if not (isinstance(task, SegmentationTask) and isinstance(data, UltrasoundDataModule)):
        return False
    same_image = not Augmentation(data.augmentation) and set(task.train_scale.values()) == {1.0}
    return same_image and isinstance(task.network, SplitNetwork) and task.network.frozen


def size_gib(features: Sequence[Tensor], images: int) -> float:
    """GiB that features of these shapes (B, ...) take for a number of images."""
    return images * sum(own[0].numel() * own.element_size() for own in features) / 2**30


class FrozenFeatures(Callback):
    """Caches the features of a frozen network part for each training and validation image, and passes them to the task.

    Active in a fit whose network is a frozen :class:`SplitNetwork`, if there is no augmentation. The features are
    computed when an image is first seen and kept in the same precision and on the same device, so a training gives the
    same result with and without the cache; random layers (dropout) come after them. Networks whose features exceed the
    limit, such as those with skip connections, are trained as usual.

    Args:
        max_gib: memory for the features in GiB (702 images at 224 px with the paper's three encoders take 0.36 in
            float32); 0 turns the cache off
    """

    def __init__(self, max_gib: float = 2.0) -> None:
        self.max_gib = max_gib
        self._active = False
        self._rows = torch.empty(0, dtype=torch.int64)
        self._known = torch.empty(0, dtype=torch.bool)
        self._kept: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._kept = []
        self._active = self.max_gib > 0 and usable(pl_module, datamodule)
        if self._active:
            used = [index for subset in ("train", "val") for index in datamodule.indices[subset].tolist()]
            self._rows = torch.full((len(datamodule.samples),), -1)
            self._rows[used] = torch.arange(len(used))
            self._known = torch.zeros(len(used), dtype=torch.bool)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._active, self._kept = False, []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._active, self._kept = False, []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._add_features(trainer, pl_module, batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add_features(trainer, pl_module, batch)

    def _add_features(self, trainer: Trainer, task: LightningModule, batch: Batch) -> None:
        # checked at each batch, since another callback may unfreeze the encoders at some epoch
        if not (self._active and isinstance(task, SegmentationTask) and task.network.frozen):
            return
        rows = self._rows[batch["index"].cpu()]
        new = ~self._known[rows]
        if new.any():
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                found = task.network.encode(task.normalise(batch["image"][new.to(batch["image"].device)]))  # type: ignore[operator]
            if not self._kept and not self._make_room(found):
                return
            for kept, own in zip(self._kept, found, strict=True):
                kept[rows[new].to(kept.device)] = own
            self._known[rows[new]] = True
        batch["features"] = [kept[rows.to(kept.device)] for kept in self._kept]

    def _make_room(self, features: Sequence[Tensor]) -> bool:
        """Reserve memory for the features of all images, shaped like ``features``; False when they exceed the limit."""
        images = len(self._known)
        gib = size_gib(features, images)
        if gib > self.max_gib:
            self._active = False
            console.print(
                f"frozen encoders: the features of {images} images take {gib:.1f} GiB, more than "
                f"frozen_features.max_gib ({self.max_gib:g}), and are computed again in each epoch",
                highlight=False,
            )
            return False
        # not as inference tensors, although Lightning validates in inference mode: training reads them too
        with torch.inference_mode(False):
            for own in features:
                channels_last = own.ndim == 4 and own.is_contiguous(memory_format=torch.channels_last)
                self._kept.append(
                    torch.empty(
                        (images, *own.shape[1:]),
                        dtype=own.dtype,
                        device=own.device,
                        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
                    )
                )
        console.print(
            f"frozen encoders: the features of {images} images are computed once and kept ({gib:.2f} GiB)",
            highlight=False,
        )
        return True
