"""From an experiment to what runs it: seed, MLflow run, callbacks, trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger

from bustseg.callbacks import (
    EpochLines,
    ImageTables,
    LastCheckpoint,
    ModelRecorder,
    Opening,
    OperatingPointSearch,
    PredictionPanels,
    RunRecorder,
    StepMetrics,
    TestCurves,
    TrainingBar,
)
from bustseg.callbacks.progress import Pace
from bustseg.data.datamodule import BUSIDataModule
from bustseg.experiment import CALLBACKS, Experiment
from bustseg.preflight import chosen_in
from bustseg.processes import OneProcessStops
from bustseg.progress import error_console
from bustseg.task import RECORD
from bustseg.tracking import Tracker, open_store, tracking_uri
from bustseg.trust import own_store

_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.distributed",
    "timm.models._builder",
)
"""Loggers that greet, advertise and repeat what the run's own lines say."""


def quiet_libraries() -> None:
    """Let libraries report errors only; their tips and banners hide bustseg's own lines."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def seeded(experiment: Experiment) -> Experiment:
    """Seed the random generators as the experiment says; returns it with the seed in place of ``true``."""
    seed = experiment["seed_everything"]
    if seed is False:
        return experiment
    with _quiet("lightning.fabric.utilities.seed"), chosen_in("seed_everything"):
        used = pl.seed_everything(None if seed is True else seed, workers=True)
    return experiment.but({"seed_everything": used}) if seed is True else experiment


def make_tracker(
    experiment: Experiment,
    verb: str,
    parts: Namespace,
    checkpoint: Mapping[str, Any] | None,
    tags: Mapping[str, str] | None = None,
) -> Logger | list[Logger] | bool:
    """The run that a verb writes into, or the user's own loggers.

    Args:
        experiment: its `tracking` section
        verb: ``fit``, ``validate`` or ``test``
        parts: what was made of the experiment
        checkpoint: content of the checkpoint that the verb begins with
        tags: further tags
    """
    chosen = parts.trainer.logger
    if chosen is not None and chosen is not True:
        return chosen
    if parts.trainer.fast_dev_run:
        return False
    options = experiment["tracking"]
    if experiment.origin:
        options["uri"] = own_store(options["uri"], experiment.origin)
    # MLflow's random names repeat, since the training's seed seeds them too
    network = type(parts.model.network).__name__
    options["run_name"] = options["run_name"] or default_name(experiment, network if checkpoint else None)
    run_id, keep = _run_to_continue(options.get("uri"), verb, parts.data, (checkpoint or {}).get(RECORD, {}))
    own = {**(options["tags"] or {}), **(tags or {})}
    if run_id is None and checkpoint is not None:
        own["checkpoint_of_run"] = checkpoint[RECORD].get("run_id", "unknown")
    tracker = Tracker(**{**options, "tags": own or None}, run_id=run_id)
    if keep:
        tracker.final_status = tracker.status
    return tracker


def default_name(experiment: Experiment, network: str | None = None) -> str:
    """Name of a run that the user has not named: of the config (or the network), and the time."""
    name = network or experiment.name or experiment["model.network.class_path"].rpartition(".")[2]
    return f"{name} {datetime.now():%Y-%m-%d %H:%M}"


def _run_to_continue(
    uri: str | None, verb: str, data: BUSIDataModule, record: Mapping[str, Any]
) -> tuple[str | None, bool]:
    """Run that a checkpoint belongs to, if its store has it and the data are the same; whether to keep its status.

    Scores on other data than the run was trained for get a run of their own.
    """
    run_id = record.get("run_id")
    if run_id is None:
        return None, False
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    store = tracking_uri(uri)
    open_store(store)
    try:
        run = MlflowClient(store).get_run(run_id)
    except MlflowException:
        return None, False
    if run.info.lifecycle_stage == "deleted":
        return None, False
    if verb == "fit":
        return run_id, False
    data.prepare_data()
    data.setup(verb)
    same = (data.data_digest, data.split_digest) == (record.get("data_digest"), record.get("split_digest"))
    return (run_id, True) if same else (None, False)


def make_trainer(
    experiment: Experiment,
    verb: str,
    parts: Namespace,
    logger: Logger | list[Logger] | bool,
    checkpoint: Path | None,
    first: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Lightning's trainer with the callbacks of a verb.

    Args:
        experiment: what is recorded
        verb: ``fit``, ``validate`` or ``test``
        parts: what was made of the experiment
        logger: see :func:`make_tracker`
        checkpoint: what the verb begins with
        first: callbacks that come before the others
    """
    options: dict[str, Any] = parts.trainer.as_dict()
    chosen = options.pop("callbacks") or []
    record = {**experiment.config, "ckpt_path": str(checkpoint) if checkpoint else None}
    pace, steps = Pace(), StepMetrics()
    callbacks = [
        *first,
        *(chosen if isinstance(chosen, list) else [chosen]),
        *(parts[section] for section in CALLBACKS.values()),
        *_callbacks_of(verb, {**record, "weights_only": experiment.weights_only}, pace, steps),
    ]
    if options["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
        if error_console.is_terminal:
            callbacks.append(TrainingBar(pace, steps))
        else:
            # bars fill log files with control characters; there EpochLines says what happens
            options["enable_progress_bar"] = False
    # Lightning moves checkpoints to the end, so that they see what the other callbacks have done
    return pl.Trainer(**{**options, "logger": logger, "callbacks": callbacks})


def _callbacks_of(verb: str, record: dict[str, Any], pace: Pace, steps: StepMetrics) -> list[pl.Callback]:
    # what is said of a run follows what records it, and so makes it
    callbacks: list[pl.Callback] = [RunRecorder(record), Opening(), EpochLines(pace), OneProcessStops()]
    if verb == "fit":
        callbacks.append(steps)
    if verb == "test":
        callbacks += [ImageTables(), TestCurves(), PredictionPanels()]
    if verb == "validate":
        callbacks.append(OperatingPointSearch())
    # after the others, so that the model card has their figures
    callbacks.append(ModelRecorder())
    if verb == "fit":
        callbacks.append(LastCheckpoint())
    return callbacks
