"""Fit, validate and test as plain functions of an experiment."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.accelerators import CPUAccelerator

from bustseg.callbacks import ContinuedFit, ImageTables, Interrupts
from bustseg.callbacks.checkpoints import best_checkpoint
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError
from bustseg.experiment import Experiment
from bustseg.progress import wait_for
from bustseg.runs.checkpoint import check_weights, load_task, read_checkpoint
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.runs.tracker import RunLogger, runs_logger
from bustseg.task import RECORD, SegmentationTask
from bustseg.training.preflight import chosen_in, try_batches, try_monitors, try_network, try_optimizer, try_options
from bustseg.training.processes import OtherProcesses
from bustseg.training.report import intervals, report
from bustseg.training.seen import refuse_another_split, warn_of_trained_images
from bustseg.training.setup import make_loggers, make_trainer, quiet_libraries, seeded

Verb = Literal["fit", "validate", "test"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class Run:
    """The objects of one call of a verb, before or after it ran.

    Attributes:
        experiment: the experiment that it was made from
        verb: ``fit``, ``validate`` or ``test``
        trainer: Lightning's trainer, with the metrics and callbacks
        task: the network, its loss and its metrics
        data: the images
        start: checkpoint from which the weights were loaded
        origin: that checkpoint's record of its origin; empty without one
    """

    experiment: Experiment
    verb: Verb
    trainer: pl.Trainer
    task: SegmentationTask
    data: UltrasoundDataModule
    start: Path | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str | None:
        """Id of the run; None where no run is stored."""
        logger = runs_logger(self.trainer)
        return None if logger is None else logger.run_id

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric, by name (``val/dice_lesion``)."""
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    @property
    def checkpoint(self) -> Path | None:
        """The best epoch of a fit, or the weights that were scored."""
        best = best_checkpoint(self.trainer) if self.verb == "fit" else None
        return Path(best.best_model_path) if best else self.start

    @property
    def table(self) -> pd.DataFrame | None:
        """One row per tested image, see :func:`bustseg.metrics.table.image_table`; None where nothing was tested."""
        tables = next((one for one in self.trainer.callbacks if isinstance(one, ImageTables)), None)  # type: ignore[attr-defined]
        return None if tables is None else tables.tested

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % limits of a test's scores by name (``dice_lesion``), see :func:`bustseg.training.report.intervals`."""
        return {} if self.table is None else intervals(self.table)


def run_fit(
    experiment: Experiment,
    checkpoint: Path | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Run:
    """Train.

    Args:
        experiment: what to train
        checkpoint: a ``last.ckpt`` to continue from, in the run that it belongs to
        tags: further tags of the MLflow run
        callbacks: further callbacks, which run before the others

    Raises:
        UserError: an experiment, checkpoint or data that cannot be used
        KeyboardInterrupt: the user stopped it
    """
    return _run("fit", experiment, checkpoint, tags, callbacks)


def run_validate(
    experiment: Experiment,
    checkpoint: Path,
    *,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Run:
    """Score a checkpoint on the validation images, and recommend a threshold; arguments as in :func:`run_test`.

    Args:
        callbacks: further callbacks; an :class:`~bustseg.callbacks.OperatingPointSearch` replaces the default one
    """
    return _run("validate", experiment, checkpoint, tags, callbacks)


def run_test(experiment: Experiment, checkpoint: Path, *, tags: Mapping[str, str] | None = None) -> Run:
    """Score a checkpoint on the test images.

    Args:
        experiment: its model and data, for example from :meth:`bustseg.experiment.Experiment.of_checkpoint`
        checkpoint: the weights
        tags: further tags of the MLflow run

    Raises:
        UserError: an experiment, checkpoint or data that cannot be used
        KeyboardInterrupt: the user stopped it
    """
    return _run("test", experiment, checkpoint, tags)


def _run(
    verb: Verb,
    experiment: Experiment,
    checkpoint: Path | None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Run:
    if not torch.cuda.is_available():
        keep_freed_memory()
    interrupts = Interrupts()
    others = OtherProcesses()
    run = prepare(experiment, verb, checkpoint, tags, [interrupts, *callbacks, others])
    try_ahead(run)
    wait_for("beginning the run")
    options: dict[str, Any] = {"weights_only": experiment.weights_only}
    if verb != "fit":
        options["verbose"] = False  # the table below states each number's convention
    try:
        with interrupts, others.started(run.trainer, verb, run.experiment, checkpoint):
            getattr(run.trainer, verb)(run.task, datamodule=run.data, ckpt_path=checkpoint, **options)
    except SystemExit as error:  # Lightning's reaction to Ctrl-C; a caller with further runs must see the interrupt
        raise KeyboardInterrupt from error
    report(run.trainer, verb)
    return run


def try_ahead(run: Run) -> None:
    """Whatever would end a run in its first steps, before it begins: a choice that cannot be used leaves no run behind.

    Raises:
        UserError: such a choice
    """
    if run.verb == "fit":
        try_options(run.trainer)
        scheduler = try_optimizer(run.task)
        if run.task.teacher is not None:
            run.task.learn_from(load_task(resolve_checkpoint(run.task.teacher)))
        try_monitors(run.trainer, run.task, scheduler)
    wait_for("reading the data")
    run.data.prepare_data()
    run.data.setup(run.verb)
    for callback in run.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ContinuedFit):
            refuse_another_split(run.origin, run.data, callback.changed)
    if run.verb != "fit" and run.origin:
        warn_of_trained_images(run.origin, run.data, "test" if run.verb == "test" else "val")
    try_batches(run.trainer, run.verb, run.data)
    if run.verb == "fit":
        run.data.checked_augmentation()
    wait_for("trying the network")
    try_network(run.task, run.data, run.verb == "fit", run.trainer.world_size)


def prepare(
    experiment: Experiment,
    verb: Verb = "fit",
    checkpoint: Path | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Run:
    """Create everything that a verb needs, without running it.

    Raises:
        UserError: an experiment or checkpoint that cannot be used
    """
    quiet_libraries()
    wait_for("building the network")
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    if content is not None and verb == "fit" and "optimizer_states" not in content:
        raise UserError(f"{checkpoint} holds only weights and cannot be continued: name the run's last.ckpt")
    experiment = seeded(experiment)
    # the record still states which pretrained weights the network started from
    parts = (experiment if content is None else experiment.untrained()).instantiate()
    loggers = make_loggers(experiment, verb, parts, content, tags)
    continued: list[ContinuedFit] = []
    if content is not None and verb == "fit":
        keepers = loggers if isinstance(loggers, list) else []
        same_run = any(isinstance(logger, RunLogger) and logger.status is not None for logger in keepers)
        continued.append(ContinuedFit(content, experiment.config, parts.model, same_run))
    if verb == "fit" and parts.trainer.max_epochs == 0:
        raise UserError("trainer.max_epochs is 0: nothing would be trained")
    with chosen_in("trainer"):
        trainer = make_trainer(experiment, verb, parts, loggers, checkpoint, [*callbacks, *continued])
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        # each process has its own network, and too many would exhaust the memory before one is refused
        raise UserError(
            f"trainer.devices is {trainer.num_devices}, but this machine has {cores} cores: give at most that many"
        )
    for callback in continued:
        callback.look_ahead(trainer)
    if content is not None and checkpoint is not None:
        check_weights(parts.model, content["state_dict"], checkpoint)
    return Run(experiment, verb, trainer, parts.model, parts.data, checkpoint, content[RECORD] if content else {})


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of returning each to the system.

    Each training step frees and allocates the same gigabytes again; by default glibc maps and unmaps every large
    tensor, and the kernel clears its pages each time (a sixth of a CPU step). Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
