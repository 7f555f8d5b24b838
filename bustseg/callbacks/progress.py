"""Progress of a training or a test: a line per epoch, and on a terminal one bar below it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn

from bustseg.callbacks.steps import StepMetrics
from bustseg.progress import clock, console, error_console, hide, label, make_bar, show

WATCHED = ("train/loss", "val/loss", "val/dice_lesion", "val/dice_paper", "val/auc_pixel")

VALIDATION_COST = 1 / 3
"""Assumed time of a validation batch, which has no backward pass, in training batches, until an epoch was measured."""

_RECENT = 5
"""Number of recent epochs whose mean predicts the time of the next ones."""

_KNOWN_AFTER = 3
"""Batches after which the first epoch's speed is shown; the first batch is a warm-up and does not count."""


@dataclass
class Pace:
    """The speed of a training, and the time left.

    Attributes:
        epochs: number of epochs of the whole training; None when unlimited
        left_after: epochs that follow the present one; None when unlimited
        batches: finished batches of the present epoch; one of the validation counts :data:`VALIDATION_COST`
        of: all batches of the epoch, counted the same way
    """

    epochs: int | None = None
    left_after: int | None = None
    batches: float = 0.0
    of: float = 0.0
    _seconds: list[float] = field(default_factory=list)
    _started: float = 0.0
    _warm: tuple[float, float] | None = None

    def begin_epoch(self, epoch: int, epochs: int | None, of: float) -> None:
        """Start an epoch, counted from 0, of ``of`` batches."""
        self.epochs = epochs
        self.left_after = None if epochs is None else max(epochs - epoch - 1, 0)
        self.batches, self.of = 0.0, of
        self._started, self._warm = time.perf_counter(), None

    def advance(self, batches: float) -> None:
        """Add finished batches."""
        self.batches += batches
        if self._warm is None:
            self._warm = (time.perf_counter(), self.batches)

    def end_epoch(self) -> float:
        """End the epoch; returns its duration in seconds."""
        seconds = time.perf_counter() - self._started
        self._seconds = [*self._seconds, seconds][-_RECENT:]
        self.batches = self.of
        return seconds

    @property
    def epoch_seconds(self) -> float | None:
        """Duration of an epoch with its validation in seconds; None while it is unknown."""
        if self._seconds:
            return statistics.fmean(self._seconds)
        if self._warm is None or self.batches - self._warm[1] < _KNOWN_AFTER:
            return None
        return (time.perf_counter() - self._warm[0]) / (self.batches - self._warm[1]) * self.of

    @property
    def left(self) -> float | None:
        """Seconds to the end of the training if it does not stop early; None while unknown."""
        seconds = self.epoch_seconds
        if seconds is None or self.left_after is None or not math.isfinite(self.of):
            return None
        return seconds * (self.left_after + 1 - min(self.batches / max(self.of, 1), 1))


class TrainingBar(ProgressBar):
    """One bar on standard error: the epoch, its batches, the current loss and learning rate, and the time left.

    Args:
        pace: speed of the training, measured by :class:`EpochLines`
        steps: source of the current loss and learning rate
    """

    def __init__(self, pace: Pace, steps: StepMetrics) -> None:
        super().__init__()
        self.pace, self.steps = pace, steps
        self._enabled = True
        self._bar: Progress | None = None
        self._where = ""
        self._since = 0.0

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False
        self._stop()

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        console.print(*args, **kwargs)

    def _begin(self, where: str, total: float) -> None:
        """Start to count ``total`` batches."""
        if not (self._enabled and error_console.is_terminal):
            return
        self._where, self._since = where, time.perf_counter()
        if self._bar is None:
            where_column, numbers = TextColumn("{task.fields[where]}"), TextColumn("{task.fields[numbers]}")
            self._bar = make_bar(where_column, BarColumn(bar_width=None), numbers, expand=True)
            self._bar.add_task("", where="", numbers="")
            self._update(0, total)
            show(self._bar)
        else:
            self._update(0, total)

    def _update(self, done: int, total: float | None = None) -> None:
        if self._bar is None:
            return
        (task,) = self._bar.tasks
        known = total if total is not None else task.total
        total = None if known is None or not math.isfinite(known) else known
        width = error_console.width
        where = "  ".join(part for part in (label(), self._where) if part)
        numbers = f"{done}/{total:.0f}" if total is not None else f"{done}"
        for text in self._numbers(done, total):
            # a shorter text is better than a line that wraps
            if len(where) + len(numbers) + len(text) + 12 <= width:
                numbers += f"  {text}"
        self._bar.update(task.id, completed=done, total=total, where=where, numbers=numbers)

    def _numbers(self, done: int, total: float | None) -> list[str]:
        """The texts after the count, the most useful first."""
        if self._where.startswith("epoch"):
            left = self.pace.left
            latest = self.steps.latest
            texts = [] if latest is None else [f"loss {latest.loss:.4f}"]
            texts += [] if left is None else [f"{clock(left)} left"]
            return texts + ([] if latest is None else [f"lr {latest.lr:.1e}"])
        if not done or total is None:
            return []
        return [f"{clock((time.perf_counter() - self._since) / done * (total - done))} left"]

    def _stop(self) -> None:
        if self._bar is not None:
            hide(self._bar)
            self._bar = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(f"{_epoch(trainer)}  train", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update(batch_idx + 1)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            inside = trainer.state.fn == "fit"
            total = _total(trainer.num_val_batches)
            self._begin(f"{_epoch(trainer)}  val  " if inside else "validate", total)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._update(batch_idx + 1)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", _total(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(batch_idx + 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()


class EpochLines(Callback):
    """One line per epoch with the watched metrics and the time; logs throughput, time with validation, GPU memory.

    Args:
        pace: what it measures
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self._started = 0.0
        self._images = 0
        self._estimated = False
        self._columns: Columns | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._estimated, self._columns = False, None
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        self._images = 0
        validation = _total(trainer.num_val_batches) if trainer.enable_validation else 0
        of = trainer.num_training_batches + VALIDATION_COST * validation
        self.pace.begin_epoch(trainer.current_epoch, _epochs(trainer), of)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["index"])
        self.pace.advance(1)
        left = None if self._estimated else self.pace.left
        if left is not None:
            self._estimated = True
            if trainer.is_global_zero and (self.pace.left_after or 0) > 0:
                seconds = self.pace.epoch_seconds or 0.0
                epochs = (self.pace.left_after or 0) + 1
                console.print(
                    f"time      about {clock(left)}: {epochs} epochs of {clock(seconds)}, fewer if it stops early",
                    highlight=False,
                )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.pace.advance(VALIDATION_COST)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and self._images:
            seconds = time.perf_counter() - self._started
            pl_module.log("train/images_per_second", self._images * trainer.world_size / seconds, rank_zero_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self.pace.end_epoch()
        self._estimated = True
        pl_module.log("train/epoch_seconds", seconds, rank_zero_only=True)
        if trainer.strategy.root_device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(trainer.strategy.root_device) / 2**30
            pl_module.log("train/peak_memory_gib", peak, rank_zero_only=True)
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        values = {name: float(metrics[name]) for name in WATCHED if name in metrics}
        if console.is_terminal:
            if self._columns is None:
                self._columns = Columns.that_fit(list(values), _epoch(trainer), console.width)
                console.print(self._columns.head(), highlight=False, markup=False, style="bold")
            line = self._columns.line(_epoch(trainer), values, seconds, self.pace.left)
        else:
            line = plain_line(_epoch(trainer), values, seconds, self.pace.left)
        console.print(line, highlight=False, markup=False)


def plain_line(epoch: str, values: Mapping[str, float], seconds: float, left: float | None) -> str:
    """A line with the names of its numbers, for files and pipes."""
    words = [epoch, *(f"{name} {value:.4f}" for name, value in values.items()), f"{seconds:.1f} s"]
    return "  ".join([*words, f"{clock(left)} left"] if left else words)


@dataclass(frozen=True)
class Columns:
    """The columns of the epoch lines on a terminal.

    Attributes:
        metrics: heading of each metric, by name
        epoch: width of the epoch's column
    """

    metrics: Mapping[str, str]
    epoch: int

    @classmethod
    def that_fit(cls, names: Sequence[str], epoch: str, width: int) -> Columns:
        """Columns that fit the terminal: with full names, else with short names, else as many as fit.

        Args:
            names: of the metrics
            epoch: such as ``epoch 1/10``
            width: of the terminal, in characters
        """
        room = max(len(epoch.removeprefix("epoch ")), len("epoch"))
        full = cls({name: name for name in names}, room)
        if full.width <= width:
            return full
        short = {name: "loss" if name == "train/loss" else name.removeprefix("val/") for name in names}
        if "val/loss" in short:
            short["val/loss"] = "val/loss"
        while cls(short, room).width > width and short:
            short.popitem()
        return cls(short, room)

    @property
    def width(self) -> int:
        """Characters of a line."""
        return len(self.head())

    def head(self) -> str:
        """The headings."""
        return self._joined("epoch", self.metrics, "time", "left")

    def line(self, epoch: str, values: Mapping[str, float], seconds: float, left: float | None) -> str:
        """The line of an epoch."""
        cells = {name: _four_digits(values[name]) for name in self.metrics if name in values}
        time_left = "" if left is None else clock(left)
        return self._joined(epoch.removeprefix("epoch "), cells, f"{seconds:.1f} s", time_left)

    def _joined(self, epoch: str, cells: Mapping[str, str], seconds: str, left: str) -> str:
        numbers = [f"{cells.get(name, ''):>{max(len(heading), 6)}}" for name, heading in self.metrics.items()]
        return "  ".join([f"{epoch:>{self.epoch}}", *numbers, f"{seconds:>7}", f"{left:>7}"])


def _four_digits(value: float) -> str:
    """Four decimals of a small number, fewer of a large one, so that it fits its column."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.5g}"


def _total(batches: Any) -> float:
    """Total number of batches of an evaluation; Lightning keeps one number per loader."""
    return sum(batches) if isinstance(batches, list) else batches


def _epochs(trainer: Trainer) -> int | None:
    limit = trainer.max_epochs
    return None if limit is None or limit < 0 else limit


def _epoch(trainer: Trainer) -> str:
    """The epoch as text, such as ``epoch 1/10``, counted from 1."""
    epochs = _epochs(trainer)
    return f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs is not None else "")
