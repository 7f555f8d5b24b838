"""Progress of a training: a bar where someone watches, one line per epoch where output is kept."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from bustseg.progress import console

WATCHED = ("train/loss", "val/loss", "val/dice_lesion", "val/dice_paper", "val/auc_pixel")


class WatchedProgressBar(RichProgressBar):
    """Rich bar with the numbers that people watch."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        for name in WATCHED[2:]:
            if name in trainer.callback_metrics:
                items[name] = float(trainer.callback_metrics[name])
        return items


class EpochLines(Callback):
    """One line per epoch with the watched metrics and the time; logs throughput, time with validation, GPU memory."""

    def __init__(self) -> None:
        self._started = 0.0
        self._images = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["index"])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and self._images:
            seconds = time.perf_counter() - self._started
            pl_module.log("train/images_per_second", self._images * trainer.world_size / seconds, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.perf_counter() - self._started
        pl_module.log("train/epoch_seconds", seconds, rank_zero_only=True)
        if trainer.strategy.root_device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 2**30
            pl_module.log("train/peak_memory_gib", peak, rank_zero_only=True)
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        shown = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in WATCHED if name in metrics)
        total = trainer.max_epochs
        console.print(f"epoch {trainer.current_epoch + 1}/{total}  {shown}  {seconds:.1f} s", highlight=False)
