"""The loss and the learning rate within an epoch."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

LOSS, LEARNING_RATE = "train/loss_step", "train/lr_step"
"""Metrics over optimiser steps. A name that ends in ``_step`` is logged by step, not by epoch."""

PER_EPOCH = 10
"""Fewest values per epoch, if it has as many batches."""

FIRST_SECONDS = 60.0
"""Longest time for which the values of the first epoch are held back."""


class Step(NamedTuple):
    """The latest values of one optimiser step.

    Attributes:
        step: its number
        loss: loss of its last batch, on the first process
        lr: learning rate of the first group of parameters
    """

    step: int
    loss: float
    lr: float


@dataclass
class _Copy:
    """A loss that is being copied to the host.

    Attributes:
        value: the copy, valid once it has arrived
        arrived: event of its arrival; None where there is nothing to wait for
    """

    step: int
    value: Tensor
    lr: float
    arrived: torch.cuda.Event | None


class StepMetrics(Callback):
    """Logs the loss and the learning rate within an epoch, and keeps the latest, without waiting for the device.

    Python runs ahead of the GPU. Reading the loss would make Python wait in every step, so the loss is copied
    asynchronously and read in a later step, once it has arrived.

    Values are logged about :data:`PER_EPOCH` times per epoch (or every ``trainer.log_every_n_steps`` steps, if that is
    more often), and not more often than ``every_seconds``, since each is a transaction of the store.

    MLflow lists the metrics of a run, and offers those of several runs for comparison, in the order in which each was
    first written. So that scores come first, the values of the first epoch are logged together with its scores, unless
    it takes longer than ``first_seconds``.

    Args:
        every_seconds: least time between two values
        first_seconds: longest time for which the values of the first epoch are held back
    """

    def __init__(self, every_seconds: float = 1.0, first_seconds: float = FIRST_SECONDS) -> None:
        self.every_seconds = every_seconds
        self.first_seconds = first_seconds
        self.latest: Step | None = None
        self._copy: _Copy | None = None
        self._logged_step = -1
        self._logged_at = -math.inf
        self._held: list[Step] = []
        self._hold_until = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.latest = self._copy = None
        self._logged_step, self._logged_at = trainer.global_step, -math.inf
        self._held = []
        self._hold_until = time.monotonic() + self.first_seconds

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_held(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write_held(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not trainer.is_global_zero or not isinstance(loss, Tensor):
            return
        if self._copy is None:
            self._copy = _begin_copy(loss * trainer.accumulate_grad_batches, trainer)
        if self._copy.arrived is not None and not self._copy.arrived.query():
            return
        self.latest = Step(self._copy.step, float(self._copy.value), self._copy.lr)
        self._copy = None
        self._log(trainer, self.latest)

    def _log(self, trainer: Trainer, latest: Step) -> None:
        batches = trainer.num_training_batches
        wanted = max(int(batches // PER_EPOCH), 1) if math.isfinite(batches) else trainer.log_every_n_steps  # type: ignore[attr-defined]
        interval = min(wanted, trainer.log_every_n_steps or wanted)  # type: ignore[attr-defined]
        now = time.monotonic()
        if latest.step - self._logged_step < interval or now - self._logged_at < self.every_seconds:
            return
        self._logged_step, self._logged_at = latest.step, now
        self._held.append(latest)
        # a run that is continued has its scores since its first epoch
        if trainer.current_epoch > 0 or now >= self._hold_until:
            self._write_held(trainer)

    def _write_held(self, trainer: Trainer) -> None:
        held, self._held = self._held, []
        for values in held:
            for logger in trainer.loggers:
                logger.log_metrics({LOSS: values.loss, LEARNING_RATE: values.lr}, step=values.step)


def _begin_copy(loss: Tensor, trainer: Trainer) -> _Copy:
    lr = next((float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups), math.nan)
    if loss.device.type != "cuda":
        return _Copy(trainer.global_step, loss.detach(), lr, None)
    # into pinned memory, which makes the copy asynchronous
    value = loss.detach().to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(loss.device))
    return _Copy(trainer.global_step, value, lr, arrived)
