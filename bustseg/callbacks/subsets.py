"""Scores of the other subsets in a test: one more pass over train and val with the tested weights."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bustseg.data.datamodule import Batch, UltrasoundDataModule
from bustseg.progress import console, track
from bustseg.runs.checkpoint import read_checkpoint
from bustseg.runs.record import Point
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask


class SubsetCallback(Callback):
    """A callback that receives the predictions for the test images, and for other subsets where they are scored too."""

    def on_subset_batch(self, task: SegmentationTask, subset: str, logits: Tensor, masks: Tensor, batch: Batch) -> None:
        """Take one batch.

        Args:
            task: the tested task
            subset: ``train``, ``val`` or ``test``
            logits: (B, 1, H, W) float32
            masks: bool (B, 1, H, W), made from the logits by the task's :attr:`~SegmentationTask.mask_rule`
            batch: on the same device
        """

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(pl_module, SegmentationTask):
            self.on_subset_batch(pl_module, "test", outputs["logits"], outputs["masks"], batch)


def log_subset(trainer: Trainer, subset: str, metrics: dict[str, float]) -> None:
    """Log metrics of a test as ``subset/name``; those of other subsets at the epoch of the tested weights.

    There they fit into the history of the training. Every process must call it.
    """
    values = {f"{subset}/{name}": value for name, value in metrics.items()}
    if subset == "test":
        # the metrics have been reduced over ranks already
        trainer.lightning_module.log_dict(values, rank_zero_only=False)
    elif trainer.is_global_zero:
        epoch = weights_epoch(trainer)
        history = {} if (run := run_of(trainer)) is None else run.record.history
        new = {name: value for name, value in values.items() if not _is_known(history.get(name, []), epoch, value)}
        for logger in trainer.loggers:
            logger.log_metrics({**new, "epoch": epoch}, step=epoch)


def _is_known(points: Iterable[Point], epoch: int, value: float) -> bool:
    """Whether the training has already logged this value, up to the rounding of sums in another order."""
    return any(step == epoch and math.isclose(known, value, rel_tol=1e-5) for step, known, _ in points)


def weights_epoch(trainer: Trainer) -> int:
    """Epoch of the tested or validated weights, counted from 0."""
    path = trainer.ckpt_path
    return _epoch_of(Path(path), Path(path).stat().st_mtime_ns) if path else trainer.current_epoch


@lru_cache(maxsize=8)
def _epoch_of(path: Path, modified_ns: int) -> int:
    """Epoch of a checkpoint, cached while the file is unchanged, since every subset's metrics need it."""
    return int(read_checkpoint(path)["epoch"])


class TestPasses(Callback):
    """At the end of a test, scores other subsets without augmentation, and reports where the test's time went.

    Args:
        subsets: subsets besides ``test`` that are also scored once, for their AUC, curves and tables (paper, table 2);
            ``[]`` for none
    """

    __test__ = False  # pytest would collect it by its name

    def __init__(self, subsets: list[Literal["train", "val"]] = ["train", "val"]) -> None:  # noqa: B006 (a YAML default)
        self.subsets = list(subsets)
        self.seconds: dict[str, float] = {}
        """How the time of the last test was spent, as scores (``test/seconds``)."""
        self._seconds = {"forward": 0.0, "other_subsets": 0.0}
        self._images = 0
        self._started = self._batch_started = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds = {"forward": 0.0, "other_subsets": 0.0}
        self._images = 0
        self._started = time.perf_counter()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._batch_started = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._seconds["forward"] += time.perf_counter() - self._batch_started
        self._images += len(batch["index"])

    @torch.inference_mode()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs before the listening callbacks draw, since it comes before them in the trainer's list."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        listeners = [callback for callback in trainer.callbacks if isinstance(callback, SubsetCallback)]  # type: ignore[attr-defined]
        if not (listeners and isinstance(pl_module, SegmentationTask) and isinstance(datamodule, UltrasoundDataModule)):
            return
        started = time.perf_counter()
        for subset in [] if trainer.fast_dev_run else self.subsets:  # type: ignore[attr-defined]
            if not len(datamodule.indices[subset]):
                continue
            loader = datamodule.loader(subset)
            batches = track(loader, f"scoring {subset}", total=len(loader)) if trainer.is_global_zero else loader
            for batch in batches:
                if not len(batch["index"]):
                    continue
                batch = trainer.strategy.batch_to_device(batch, pl_module.device)
                with trainer.precision_plugin.forward_context():
                    logits = pl_module(batch["image"]).float()
                masks = pl_module.mask_rule.masks(logits)
                for listener in listeners:
                    listener.on_subset_batch(pl_module, subset, logits, masks, batch)
        self._seconds["other_subsets"] = time.perf_counter() - started

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = trainer.strategy.reduce(torch.tensor(self._images, device=pl_module.device), reduce_op="sum")
        if not trainer.is_global_zero:
            return
        total = time.perf_counter() - self._started
        forward, other = self._seconds["forward"], self._seconds["other_subsets"]
        beyond = total - forward - other
        seconds = {"seconds": total, "seconds_forward": forward, "seconds_other_subsets": other}
        seconds["seconds_report"] = beyond
        self.seconds = {f"test/{name}": value for name, value in seconds.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.seconds, step=0)
        others = f"{' and '.join(self.subsets)} {other:.1f} s, " if self.subsets else ""
        console.print(
            f"test: {int(images)} images in {total:.1f} s "
            f"(scores {forward:.1f} s, {others}tables and pictures {beyond:.1f} s)",
            highlight=False,
        )
