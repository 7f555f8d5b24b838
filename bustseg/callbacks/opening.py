"""The opening lines of a run: its name, data, network and device, printed before the first batch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.callbacks.record import device_name, network_tags
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.progress import console, done_waiting
from bustseg.redact import redact
from bustseg.runs.tracker import Tracker, runs_logger
from bustseg.task import SegmentationTask

UI = "BUSTSEG_UI"
"""Environment variable with the tracking server's address for browsers, if it differs from the store's."""

_DIGITS = 12
"""Digits of a digest that are shown, enough to distinguish data sets by eye; the run has all of them."""


class Opening(Callback):
    """Prints what a fit, a validation or a test starts with."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        say_opening(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            say_opening(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        say_opening(trainer, pl_module)


def say_opening(trainer: Trainer, task: LightningModule) -> None:
    """Print the lines, on the first process."""
    if not trainer.is_global_zero:
        return
    done_waiting()
    for name, text in opening_lines(trainer, task):
        console.print(f"{name:<8}  {text}", highlight=False, markup=False)


def opening_lines(trainer: Trainer, task: LightningModule) -> Iterator[tuple[str, str]]:
    """The heading of each line, and its text."""
    logger, data = runs_logger(trainer), trainer.datamodule  # type: ignore[attr-defined]
    if logger is not None:
        # from the local record: no request to a server, which may be unreachable
        record = logger.run.record
        yield "run", record.run_id
        yield "name", f"{record.name}, experiment {record.experiment}"
        if isinstance(logger, Tracker) and logger.uri.startswith("http") and not logger.begun_away:
            # in a container the server may have a name that browsers outside cannot resolve
            server = redact(os.environ.get(UI) or logger.uri).rstrip("/")
            yield "page", f"{server}/#/experiments/{record.experiment_id}/runs/{record.run_id}"
    if isinstance(data, UltrasoundDataModule):
        counts = {subset: len(indices) for subset, indices in data.indices.items()}
        subsets = ", ".join(f"{count} {subset}" for subset, count in counts.items() if count)
        yield "data", f"{sum(counts.values())} images: {subsets}"
        digest = data.data_digest[:_DIGITS]
        yield "source", f"{data.source.name}, split {_short(data.split_scheme)}, digest {digest}"
    if isinstance(task, SegmentationTask):
        tags = network_tags(task)
        total, trained = int(tags["parameters"] or 0), int(tags["parameters_trainable"] or 0)
        frozen = f", {trained:,} of them trained" if trained < total else ""
        yield "network", f"{tags['network']}, {total:,} parameters{frozen}  (loss {tags['loss']})"
    yield "device", f"{device_name(trainer)}, precision {trainer.precision}"


def _short(split: str) -> str:
    """A scheme's name, or a file's name without its folders."""
    return split.replace("\\", "/").rpartition("/")[2]
