"""Create what runs an experiment: seed, MLflow run, callbacks, trainer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from bustseg.callbacks import (
    EpochLines,
    EpochPictures,
    ImageTables,
    LastCheckpoint,
    ModelRecorder,
    Opening,
    OperatingPointSearch,
    PredictionPanels,
    RunRecorder,
    ScoreTable,
    StepMetrics,
    SystemMetrics,
    TestCurves,
    TrainingBar,
)
from bustseg.callbacks.progress import Pace
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import TrackingError
from bustseg.experiment import CALLBACKS, Experiment, defaults
from bustseg.progress import error_console
from bustseg.runs.lookup import local_run, server_id
from bustseg.runs.opening import open_store, was_opened
from bustseg.runs.record import NOTE_TAG, Record
from bustseg.runs.store import Store, tracking_uri
from bustseg.runs.tracker import FolderLogger, RunLogger, Tracker
from bustseg.task import RECORD
from bustseg.training.preflight import chosen_in
from bustseg.training.processes import OneProcessStops
from bustseg.trust import check_place, own_store

_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.distributed",
    "timm.models._builder",
)
"""Loggers that print banners, tips, and information that the run's own lines already give."""


NOT_IN_A_NAME = (
    "tracking.",
    "data.root",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_",
)
"""Options that do not change the experiment, so that a run's name leaves them out."""

LONGEST = 80
"""Most characters for overridden options in a run's name."""


def quiet_libraries() -> None:
    """Let libraries report only errors; their tips and banners hide bustseg's own lines."""
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
    """Seed the random generators according to the experiment; returns it with the drawn seed in place of ``true``."""
    seed = experiment["seed_everything"]
    if seed is False:
        return experiment
    with _quiet("lightning.fabric.utilities.seed"), chosen_in("seed_everything"):
        used = pl.seed_everything(None if seed is True else seed, workers=True)
    return experiment.but({"seed_everything": used}) if seed is True else experiment


def make_loggers(
    experiment: Experiment,
    verb: str,
    parts: Namespace,
    checkpoint: Mapping[str, Any] | None,
    tags: Mapping[str, str] | None = None,
) -> list[Logger] | bool:
    """The user's loggers, plus one that stores the run unless one of them does: MLflow's by default.

    Args:
        experiment: its `tracking` section
        verb: ``fit``, ``validate`` or ``test``
        parts: what was made of the experiment
        checkpoint: content of the checkpoint that the verb starts from
        tags: further tags

    Returns:
        the loggers; False for a run that is not stored (`trainer.fast_dev_run`)
    """
    if parts.trainer.fast_dev_run:
        return False
    chosen = parts.trainer.logger
    loggers: list[Logger] = [] if chosen in (None, True, False) else chosen if isinstance(chosen, list) else [chosen]
    if experiment.origin:
        _check_places(parts.trainer, loggers, experiment.origin)
    if any(isinstance(logger, RunLogger) for logger in loggers):
        return loggers
    options = experiment["tracking"]
    if experiment.origin:
        options["uri"] = own_store(options["uri"], experiment.origin)
    # MLflow's random names would repeat, since the training's seed also seeds them
    network = type(parts.model.network).__name__
    options["run_name"] = (
        named(experiment, options["run_name"])
        if options["run_name"]
        else default_name(experiment, network if checkpoint else None)
    )
    record = (checkpoint or {}).get(RECORD, {})
    by_default = chosen is None or chosen is True
    run_id, keep, local = _run_to_continue(options.get("uri"), verb, parts.data, record, by_default)
    own = {**(options["tags"] or {}), **(tags or {})}
    if run_id is None and checkpoint is not None:
        own["checkpoint_of_run"] = record.get("run_id", "unknown")
    keeper: RunLogger
    if by_default and not local:
        keeper = Tracker(**{**options, "tags": own or None}, run_id=run_id)
    else:
        if options["description"]:
            own[NOTE_TAG] = options["description"]
        keeper = FolderLogger(options["experiment"], options["run_name"], own, run_id)
    if keep:
        keeper.final_status = keeper.status
    return [*loggers, keeper]


def _check_places(options: Namespace, loggers: Sequence[Logger], origin: str | Path) -> None:
    """Refuse loggers and profilers of a stored configuration that would write over files elsewhere.

    Args:
        options: of the trainer, made
        loggers: of the user
        origin: file or run that the configuration came from

    Raises:
        TrustError: one would
    """
    if options.default_root_dir is not None:
        check_place(options.default_root_dir, options.default_root_dir, origin)
    for logger in loggers:
        if (base := logger.save_dir) is not None:
            check_place(getattr(logger, "log_dir", None) or base, base, origin)
    profiler = options.profiler
    if isinstance(profiler, Profiler) and profiler.dirpath is not None:
        check_place(Path(profiler.dirpath, profiler.filename or ""), profiler.dirpath, origin)


def default_name(experiment: Experiment, network: str | None = None) -> str:
    """Default name of a run: the config's (or network's) name, the overridden options, and the time."""
    name = network or experiment.name or experiment["model.network.class_path"].rpartition(".")[2]
    return f"{named(experiment, name)} {datetime.now():%Y-%m-%d %H:%M}"


def named(experiment: Experiment, name: str) -> str:
    """A run's name with the experiment's changes from the command line: ``unet_lite0 (lr 0.01, flip true)``.

    Args:
        experiment: the experiment
        name: name of its config file; a name given on the command line is not changed
    """
    given = experiment.overrides
    if "tracking.run_name" in given:
        return name
    changed = [
        f"{key.rpartition('.')[2]} {_short(value)}".strip()
        for key, value in given.items()
        if not key.startswith(NOT_IN_A_NAME)
    ]
    if not changed:
        return name
    words = ", ".join(changed)
    return f"{name} ({words if len(words) <= LONGEST else words[: LONGEST - 3] + '...'})"


def _short(value: str) -> str:
    """A value for use in a name: only the name of a class, only the end of a path."""
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
        return value.rpartition(".")[2]
    return Path(value).name if "/" in value else value


def _run_to_continue(
    uri: str | None, verb: str, data: UltrasoundDataModule, record: Mapping[str, Any], with_mlflow: bool
) -> tuple[str | None, bool, bool]:
    """The run that a checkpoint belongs to, if it exists and the data are the same.

    Scores on data other than the run's get a separate run.

    Args:
        uri: the requested MLflow store
        verb: ``fit``, ``validate`` or ``test``
        data: the images
        record: the checkpoint's record of its origin
        with_mlflow: whether to look for runs in that store, in addition to those in folders

    Returns:
        the run's id, if it should be continued; whether it keeps its status; whether it is kept in a folder only
    """
    run_id = record.get("run_id")
    if run_id is None:
        return None, False, False
    local = local_run(run_id) is not None
    if not local and not (with_mlflow and _is_in_store(run_id, tracking_uri(uri))):
        return None, False, False
    if verb == "fit":
        return run_id, False, local
    data.prepare_data()
    data.setup(verb)
    same = (data.data_digest, data.split_digest) == (record.get("data_digest"), record.get("split_digest"))
    return (run_id, True, local) if same else (None, False, local)


def _is_in_store(run_id: str, uri: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        store = open_store(uri)
    except TrackingError:
        if was_opened(uri):  # the store is unreachable for now, but this machine may have the run's record
            return Record.read(Store(uri).folder / "remote" / run_id) is not None
        raise
    try:
        return store.client().get_run(server_id(store, run_id)).info.lifecycle_stage != "deleted"
    except (MlflowException, TrackingError):
        return False


def make_trainer(
    experiment: Experiment,
    verb: str,
    parts: Namespace,
    loggers: list[Logger] | bool,
    checkpoint: Path | None,
    first: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Lightning's trainer with the callbacks of a verb.

    Args:
        experiment: the experiment to record
        verb: ``fit``, ``validate`` or ``test``
        parts: what was made of the experiment
        loggers: see :func:`make_loggers`
        checkpoint: what the verb begins with
        first: callbacks that run before the others
    """
    options: dict[str, Any] = parts.trainer.as_dict()
    chosen = options.pop("callbacks") or []
    record = {**experiment.config, "ckpt_path": str(checkpoint) if checkpoint else None}
    pace, steps = Pace(), StepMetrics()
    callbacks = [
        *first,
        *(chosen if isinstance(chosen, list) else [chosen]),
        *(parts[section] for section in CALLBACKS.values()),
        *_callbacks_of(
            verb,
            {**record, "weights_only": experiment.weights_only},
            pace,
            steps,
            searched=any(isinstance(one, OperatingPointSearch) for one in first),
        ),
    ]
    if options["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
        if error_console.is_terminal:
            callbacks.append(TrainingBar(pace, steps))
        else:
            # bars fill log files with control characters; EpochLines reports progress there
            options["enable_progress_bar"] = False
    # Lightning moves checkpoint callbacks to the end, so that they see what the others have done
    return pl.Trainer(**{**options, "logger": loggers, "callbacks": callbacks})


def _callbacks_of(
    verb: str, record: dict[str, Any], pace: Pace, steps: StepMetrics, searched: bool = False
) -> list[pl.Callback]:
    # the opening lines follow the recorder, which creates the run
    callbacks: list[pl.Callback] = [RunRecorder(record, defaults()), Opening(), EpochLines(pace), OneProcessStops()]
    if verb == "fit":
        callbacks += [steps, EpochPictures(), SystemMetrics()]
    if verb == "test":
        callbacks += [ImageTables(), TestCurves(), PredictionPanels(), ScoreTable()]
    if verb == "validate" and not searched:
        callbacks.append(OperatingPointSearch())
    # after the others, so that the model card has their results
    callbacks.append(ModelRecorder())
    if verb == "fit":
        callbacks.append(LastCheckpoint())
    return callbacks
