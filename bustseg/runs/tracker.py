"""The loggers that store a run: in an MLflow store, or in a folder in addition to other loggers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bustseg.errors import TrackingError, UserError
from bustseg.metrics.registry import charted
from bustseg.progress import error_console
from bustseg.redact import redact_nested
from bustseg.runs.entries import LOCAL
from bustseg.runs.lookup import local_run, local_runs
from bustseg.runs.making import MAKING_TAG, noted
from bustseg.runs.opening import open_store, was_opened
from bustseg.runs.params import parameters
from bustseg.runs.record import NAME_TAG, NOTE_TAG, Record, flatten
from bustseg.runs.run import Run
from bustseg.runs.sender import breaker_of
from bustseg.runs.sinks import (
    PARENT_TAG,
    ExperimentDeleted,
    MlflowSink,
    RecordSink,
    begin_away,
    experiment_id,
)
from bustseg.runs.store import RUNS_DIR, Store, explained, local_path, one_line, tracking_uri
from bustseg.runs.view import telling_first

__all__ = [
    "PARENT_TAG",
    "RUNS_DIR",
    "FolderLogger",
    "RunLogger",
    "Tracker",
    "child_runs",
    "flatten",
    "local_path",
    "newest_run",
    "one_line",
    "open_store",
    "run_of",
    "runs_logger",
    "tracking_uri",
]

_TERMINAL = ("FINISHED", "FAILED", "KILLED")


class RunLogger:
    """Base of the loggers of this module, which write a run. The subclass defines how the run begins.

    Attributes:
        killed: set when the user stopped the run, which MLflow distinguishes from a failure
        final_status: final status of the run, whatever happens (a test must not mark its training as failed)
        shared: whether other processes also write the run, so that it does not end with this one
    """

    store: Store
    """Store of the run."""

    def __init__(self) -> None:
        self.killed = False
        self.final_status: str | None = None
        self.shared = False
        self._run: Run | None = None
        self._run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the run, on every process of a training once it has been shared."""
        if getattr(rank_zero_only, "rank", 0) == 0 and self._run is None:
            self._run = self._begin()
        return self._run_id

    def _begin(self) -> Run:
        raise NotImplementedError

    @property
    def status(self) -> str | None:
        """The run's status; None while there is no run."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """The run, started on first access."""
        if self._run is None:
            self._run = self._begin()
        return self._run

    @property
    def started(self) -> bool:
        """Whether the run exists yet."""
        return self._run is not None

    @property
    def where(self) -> str:
        """One line that says where the run is."""
        raise NotImplementedError

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the metrics that deserve a chart into the run, by epoch where they belong to an epoch."""
        values = {name: value for name, value in metrics.items() if charted(name)}
        epoch = values.pop("epoch", None)
        # curves over epochs are comparable between batch sizes; Lightning counts optimiser steps
        if epoch is not None and not any(name.endswith("_step") for name in values):
            step = int(epoch)
        self.run.log_metrics(telling_first(values), step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: Lightning passes only a part of the configuration here; `log_config` records all of it."""

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Record as parameters what differs from the defaults and what people compare, see :func:`parameters`.

        What differs when a run is continued becomes a tag.
        """
        known, shown = self.run.record.params, parameters(config, defaults)
        if known:
            whole = dict(flatten(redact_nested(config)))
            # a parameter that has its default value again is updated too
            again = {name: whole[name] for name in known if name in whole}
            self.run.set_tags({f"continued.{name}": value for name, value in shown.items() if name not in known})
            shown = again
        self.run.log_params(shown)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, skipping those that are None."""
        self.run.set_tags(tags)

    @rank_zero_only
    def log_file(self, path: Path, folder: str = "") -> None:
        """Put a local file into the run's ``folder``; a file that is already there is kept."""
        self.run.add_file(path, folder)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run with the right status: FINISHED, FAILED, or KILLED for Ctrl-C."""
        if self._run is None:
            return
        ended = "KILLED" if self.killed else "FAILED" if status == "failed" else "FINISHED"
        # ending it again would add the time until now to the training
        # a failed test has its scores; a stopped one is repeated, and a fit is continued from its checkpoint
        complete = ended == "FINISHED" or (ended == "FAILED" and not self._run.resumable)
        self._run.close(ended if self.final_status is None else None, complete)

    @rank_zero_only
    def close_as_failed(self, error: str) -> None:
        """End the run as FAILED because of ``error``, unless it has ended already."""
        if self._run is None or self.final_status is not None or self._run.record.status in _TERMINAL:
            return
        self._run.set_tags({"error": error})
        self._run.set_status("FAILED")

    @property
    def closed(self) -> bool:
        """Whether the run has ended."""
        return self._run is not None and self._run.record.status in _TERMINAL

    @rank_zero_only
    def reopen(self) -> None:
        """Mark a continued run as running again."""
        if self.run.record.status != "RUNNING":
            self.run.set_status("RUNNING")

    def share(self, broadcast: Callable[[str | None], str | None]) -> None:
        """Send the run's id to the other processes of a training, since only the first one starts the run."""
        self._run_id = broadcast(self.run_id)


class Tracker(RunLogger, MLFlowLogger):
    """MLflow logger of a run.

    Everything is first written to the run's journal on this machine and sent from there in the background, so a
    training never depends on the server, see :mod:`bustseg.runs`.

    Args:
        experiment: MLflow experiment
        run_name: name of the run; MLflow invents one when not given
        uri: store; ``MLFLOW_TRACKING_URI`` or the local sqlite store when not given
        tags: tags of the run
        description: text at the top of the run's page, in Markdown
        run_id: continue this run instead of starting one
        log_model: record the best checkpoint of a fit as an MLflow model, ``runs:/RUN_ID/model``
        pictures: show the predictions for four validation images, epoch by epoch
        system_metrics: record the load of CPU, GPU, memory, disk and network during a fit, as MLflow does
    """

    def __init__(
        self,
        experiment: str = "bustseg",
        run_name: str | None = None,
        uri: str | None = None,
        tags: dict[str, str] | None = None,
        description: str | None = None,
        run_id: str | None = None,
        log_model: bool = True,
        pictures: bool = True,
        system_metrics: bool = False,
    ) -> None:
        RunLogger.__init__(self)
        self.log_model = log_model
        self.pictures = pictures
        self.system_metrics = system_metrics
        self.uri = tracking_uri(uri)
        self.store, self._away = self._open()
        all_tags = dict(tags or {})
        if description:
            all_tags[NOTE_TAG] = description
        MLFlowLogger.__init__(
            self,
            experiment_name=experiment,
            run_name=run_name,
            tracking_uri=self.uri,
            tags=redact_nested(all_tags),
            run_id=run_id,
            artifact_location=self.store.artifact_location,
        )

    def _open(self) -> tuple[Store, bool]:
        """The store, and whether it is temporarily unreachable: then the run begins here, and is created there later.

        Raises:
            TrackingError: the store cannot be used, and this process has not used it before
        """
        if not was_opened(self.uri):
            return open_store(self.uri, write=True), False
        breaker = breaker_of(self.uri)
        if breaker.remaining:
            return Store(self.uri), True
        start = time.monotonic()
        try:
            return open_store(self.uri, write=True), False
        except TrackingError as error:
            if breaker.failed(str(error), time.monotonic() - start):
                error_console.print(f"[yellow]warning:[/] {error}; until then new runs begin here", highlight=False)
            return Store(self.uri), True

    @property
    def begun_away(self) -> bool:
        """Whether the store did not answer when the run began, so that it has no run with this id yet."""
        return self._away

    @property
    def experiment(self) -> Any:
        """MLflow's client, once there is a run."""
        _ = self.run_id  # starts it
        return self._mlflow_client

    @property
    def experiment_name(self) -> str:
        """Name of the MLflow experiment."""
        return self._experiment_name

    @property
    def artifact_dir(self) -> Path | None:
        """The run's artifact folder if it is on this machine, else None."""
        return None if self.run.upload else self.run.files

    @property
    def run_dir(self) -> Path:
        """Folder of this run's files on this machine: the artifact folder itself when it is local."""
        return self.run.files

    @property
    def where(self) -> str:
        return f"run {self.run_id}  experiment {self._experiment_name}\nstore {self.store.shown}"

    @property
    def save_dir(self) -> str:
        """Local folder for what callbacks write; MLFlowLogger has none for a database store (Lightning #19441)."""
        return str(RUNS_DIR)

    def _begin(self) -> Run:
        if self._away:
            return self._begin_away()
        if self._run_id is not None:
            return self._in_store()
        with noted(self.store) as note:
            self.tags = {**(self.tags or {}), MAKING_TAG: note}
            run = self._in_store()
            run.begin()
        return run

    def _in_store(self) -> Run:
        """The store's run with this id, or a new one if there is no id yet."""
        known = self._run_id is not None
        with explained(self.store):
            if not known:
                self._check_experiment()
            # MLFlowLogger's property creates the run
            client = MLFlowLogger.experiment.fget(self)  # type: ignore[attr-defined]
            found = client.get_run(self._run_id)
            record = Record.from_run(found)
            if known:  # the card needs the scores of the best epoch, but MLflow gives the last ones
                for name in [name for name in record.history if name.startswith("val/")]:
                    points = client.get_metric_history(self._run_id, name)
                    record.history[name] = [(point.step, point.value, point.timestamp) for point in points]
        record.experiment = self._experiment_name
        return self._run_in(record, self.store.artifact_folder(found))

    def _begin_away(self) -> Run:
        """Start or continue a run while the store, which this process has used before, is unreachable."""
        remote = self.store.folder / "remote"
        if self._run_id is None:
            from mlflow.tracking.context.registry import resolve_tags

            run_id = uuid.uuid4().hex
            tags = resolve_tags({**(self.tags or {}), NAME_TAG: self._run_name or f"run-{run_id[:8]}"})
            record = Record(run_id, self._experiment_name, start_time=time.time_ns() // 1_000_000, tags=tags)
            begin_away(record, remote / run_id)
            self._run_id = run_id
        else:
            kept = Record.read(remote / self._run_id)
            if kept is None:
                raise TrackingError(f"{self.store.shown} does not answer, and only it has the run {self._run_id}")
            record = kept
        return self._run_in(record, None)

    def _run_in(self, record: Record, artifacts: Path | None) -> Run:
        files = artifacts or self.store.folder / "remote" / record.run_id
        return Run(
            record,
            files,
            self.store.folder,
            self.store.shown,
            MlflowSink(self.store, record.run_id, files),
            self.uri,
            upload=artifacts is None,
            ends_run=self.final_status is None and not self.shared,
        )

    def _check_experiment(self) -> None:
        try:
            experiment_id(self._mlflow_client, self._experiment_name, self.store.artifact_location)
        except ExperimentDeleted as error:
            raise TrackingError(
                f"the experiment {self._experiment_name} is in MLflow's trash: restore it with `MLFLOW_TRACKING_URI="
                f"{self.store.shown} mlflow experiments restore --experiment-id {error.number}`, or name another with "
                "--tracking.experiment"
            ) from error

    @property
    def status(self) -> str | None:
        """The run's status in the store, on any process; None while there is no run.

        Raises:
            MlflowException: the store does not answer
        """
        if self._away:
            return self.run.record.status
        return None if self._run_id is None else self._mlflow_client.get_run(self._run_id).info.status

    @property
    def closed(self) -> bool:
        """Whether the run has ended; another process of the training may have ended it in the store."""
        # asking an unreachable store would only cost time
        if super().closed or breaker_of(self.uri).reason is not None:
            return super().closed
        try:
            return self.status in _TERMINAL
        except Exception:  # any error means that the store does not answer
            return False

    def close_as_failed(self, error: str) -> None:
        """End the run as FAILED because of ``error``, unless it has ended already. Any process may do so.

        The first process to fail gives the reason: the others only lose their connection to it.
        """
        if self._run is not None:
            if not self.closed:
                super().close_as_failed(error)
            return
        if self._run_id is None or self.final_status is not None:
            return
        try:  # only the first process has a journal
            if self.status == "RUNNING":
                self._mlflow_client.set_tag(self._run_id, "error", error)
                self._mlflow_client.set_terminated(self._run_id, "FAILED")
        except Exception:  # the first process reports that the store is unreachable
            return


class FolderLogger(RunLogger, Logger):
    """Stores a run in its own folder, ``mlruns/local/RUN_ID``, for trainings whose loggers store no files.

    Args:
        experiment: the run's experiment, in its record
        run_name: its name
        tags: its tags
        run_id: continue this run instead of starting one

    Raises:
        UserError: there is no such run
    """

    def __init__(
        self,
        experiment: str = "bustseg",
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        RunLogger.__init__(self)
        Logger.__init__(self)
        self.experiment_name = experiment
        self.tags = dict(tags or {})
        self._run_name = run_name
        self._run_id = run_id
        self.store = Store(LOCAL)
        if run_id is not None and local_run(run_id) is None:
            raise UserError(f"no run {run_id} in {local_runs()}")

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str | None:
        return self.run_id

    @property
    def save_dir(self) -> str:
        return str(local_runs())

    @property
    def where(self) -> str:
        return f"run {self.run_id}  in {local_runs() / str(self.run_id)} (not in an MLflow store)"

    def _begin(self) -> Run:
        settle_local()
        new = self._run_id is None
        self._run_id = self._run_id or uuid.uuid4().hex
        files = local_runs() / self._run_id
        if new:
            record = Record(self._run_id, self.experiment_name, start_time=time.time_ns() // 1_000_000)
            record.tags = {**self.tags, **({NAME_TAG: self._run_name} if self._run_name else {})}
            record.save(files)
        else:
            record = Record.read(files) or Record(self._run_id)
        return Run(
            record,
            files,
            RUNS_DIR.resolve(),
            LOCAL,
            RecordSink(files),
            f"{LOCAL}:{files}",
            upload=False,
            ends_run=self.final_status is None and not self.shared,
        )

    @property
    def status(self) -> str | None:
        """The run's status; None while there is no run."""
        if self._run is not None:
            return self._run.record.status
        record = None if self._run_id is None else Record.read(local_runs() / self._run_id)
        return None if record is None else record.status


def settle_local() -> None:
    """End the runs of dead processes in this folder's spool."""
    from bustseg.runs.spool import settle

    settle(Store(LOCAL))


def runs_logger(trainer: Trainer) -> Any | None:
    """The logger that stores the trainer's run, on every process; None where nothing is stored."""
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)


def run_of(trainer: Trainer) -> Run | None:
    """The run that callbacks write into; None where nothing is stored, and on all processes except the first."""
    logger = runs_logger(trainer) if trainer.is_global_zero else None
    return None if logger is None else logger.run


def newest_run(client: Any, experiment: str, tag: str, value: str) -> Any | None:
    """The newest run of an experiment whose ``tag`` is ``value``; None if there is none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id],
        filter_string=f"tags.`{tag}` = '{value}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def child_runs(client: Any, parent: Any) -> list[Any]:
    """The runs under ``parent`` (a run), oldest first."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [parent.info.experiment_id],
            filter_string=f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs
