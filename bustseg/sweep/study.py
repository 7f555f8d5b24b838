"""An Optuna study for several processes and machines, which survives the death of any of them.

Optuna hands out waiting trials atomically on PostgreSQL and MySQL (a row lock), but not on sqlite, and its grid sampler
may give one point to two workers. Here a lock on the storage protects every assignment: points are queued once, each
waiting trial is given to one worker, and a trial whose worker has died is queued again once. The lock belongs to its
holder's connection or file handle, so it ends with the holder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from bustseg.errors import SweepError
from bustseg.runs.owner import alive, machine, process
from bustseg.runs.store import one_line
from bustseg.sweep.plan import Plan

HEARTBEAT, GRACE = 20, 120
"""Seconds between a worker's heartbeats, and without one until a worker on another machine counts as dead."""

LOCK_ID = 0x627573747367
"""Number of the advisory lock in a database server."""

OWNER, RESULT, FAILURE, PRUNED, RUN = "owner", "result", "failure", "pruned", "mlflow_run_id"
RETRY_OF, DEATHS = "retry_of", "worker_deaths"
"""Attributes of a trial. A trial with state FAIL but without FAILURE was interrupted."""


def storage_url(text: str) -> sqlalchemy.URL:
    """An Optuna storage's URL; a SQLite path is made absolute, and PostgreSQL's driver is psycopg.

    Raises:
        SweepError: not a URL, or a storage that cannot be shared or is not persistent
    """
    try:
        url = sqlalchemy.make_url(text)
    except SQLAlchemyError as error:
        # the text may contain a password
        raise SweepError("not a storage URL: write sqlite:///FILE or postgresql://USER@HOST/DATABASE") from error
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise SweepError("a sweep needs a persistent storage: write sqlite:///FILE")
        return url.set(database=str(Path(url.database).expanduser().resolve()))
    if backend not in ("postgresql", "mysql", "mariadb"):
        raise SweepError(f"{backend} is not supported as a storage: use sqlite, postgresql or mysql")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


class StorageLock:
    """Mutual exclusion of all processes that use a storage; released when its holder's process ends.

    Args:
        url: the storage
    """

    def __init__(self, url: sqlalchemy.URL) -> None:
        self.backend = url.get_backend_name()
        if self.backend == "sqlite":
            assert url.database is not None
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            self._file = FileLock(f"{url.database}.lock")
        else:
            # no pool: the lock must end with the connection
            self._engine = sqlalchemy.create_engine(
                url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 10}
            )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the lock."""
        if self.backend == "sqlite":
            with self._file:
                yield
        elif self.backend == "postgresql":
            with self._engine.begin() as connection:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
                yield
        else:
            with self._engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT GET_LOCK(:name, -1)"), {"name": hex(LOCK_ID)})
                yield  # closing the connection releases it


class SharedStudy:
    """The study of a plan.

    Args:
        plan: the sweep
        supervisor: id of the process that supervises this worker, if any

    Raises:
        SweepError: the storage cannot be used
    """

    def __init__(self, plan: Plan, supervisor: int | None = None) -> None:
        self.plan = plan
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url = storage_url(plan.storage)
        self.shown_url = self.url.render_as_string(hide_password=True)
        sqlite = self.url.get_backend_name() == "sqlite"
        try:
            self.lock = StorageLock(self.url)
            with self.lock(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.storage = optuna.storages.RDBStorage(
                    self.url.render_as_string(hide_password=False),
                    engine_kwargs={"connect_args": {"timeout": 60}}
                    if sqlite
                    else {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}},
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                )
        except ImportError as error:
            extra = ": pip install 'bustseg[server]'" if self.url.get_backend_name() == "postgresql" else ""
            raise SweepError(f"no driver for {self.shown_url} ({one_line(error)}){extra}") from error
        except (SQLAlchemyError, OptunaError, OSError, RuntimeError) as error:
            raise SweepError(f"cannot use the storage {self.shown_url}: {one_line(error)}") from error
        self.me = {"machine": machine(), "host": socket.gethostname(), **(process(os.getpid()) or {})}
        self.me["supervisor"] = process(supervisor) if supervisor is not None else None
        self.study: optuna.Study
        self._ids: dict[int, int] = {}

    @property
    def exists(self) -> bool:
        """Whether the storage has a study with this name."""
        return self.plan.study in optuna.get_all_study_names(self.storage)

    def open(self, resume: bool) -> bool:
        """Create the study or join it, and queue a grid's points; returns whether it was new.

        Without ``resume`` a study is joined only if it has not been started, or is being worked on now.

        Raises:
            SweepError: the study stopped earlier and ``resume`` is not set, or it belongs to another sweep
        """
        with self.lock():
            new = not self.exists
            plan = self.plan
            sampler = plan.sampler()
            if not new:
                # otherwise the same seed would draw the same points again
                sampler.reseed_rng()
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=plan.study,
                directions=plan.directions,
                sampler=sampler,
                pruner=plan.pruner(),
                load_if_exists=True,
            )
            if new or "identity" not in self.study.user_attrs:
                self.study.set_user_attr("identity", plan.identity())
                self.study.set_user_attr("token", uuid.uuid4().hex)
            self._check_identity()
            self.settle()
            if not resume:
                self._check_begun()
            if plan.grid:
                self._enqueue_grid()
        return new

    def _check_identity(self) -> None:
        there, here = self.study.user_attrs["identity"], self.plan.identity()
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key):
                raise SweepError(
                    f"study {self.plan.study} belongs to another sweep ({key} is {there.get(key)} there, "
                    f"{here.get(key)} here): name another with --study"
                )

    def _check_begun(self) -> None:
        """Refuse a study that has stopped, after settling the trials of dead workers."""
        trials = self.trials()
        states = {trial.state for trial in trials}
        if states - {TrialState.WAITING} and TrialState.RUNNING not in states:
            done = sum(trial.state == TrialState.COMPLETE for trial in trials)
            raise SweepError(
                f"study {self.plan.study} already exists with {done} finished trials: --resume continues it, "
                "--study NAME starts another"
            )

    def trials(self) -> list[FrozenTrial]:
        """All trials, oldest first."""
        return self.study.get_trials(deepcopy=False)

    def settle(self) -> None:
        """End the trials whose worker has died, and queue them again. The lock must be held."""
        for trial in self.trials():
            if trial.state != TrialState.RUNNING:
                continue
            owner = trial.user_attrs.get(OWNER)
            if owner is None:
                self._bury(trial)  # its worker died before it could record its ownership
            elif owner["machine"] == self.me["machine"]:
                if alive(owner):
                    # a suspended worker sends no heartbeat
                    self.storage.record_heartbeat(self._id(trial))
                else:
                    self._bury(trial)
            elif RESULT in trial.user_attrs:
                self._tell(trial)  # it is done, whatever happened to its worker since
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        self._requeue()

    def _id(self, trial: FrozenTrial | Trial) -> int:
        """The storage's number of a trial."""
        if trial.number not in self._ids:
            study = self.storage.get_study_id_from_name(self.plan.study)
            self._ids[trial.number] = self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        return self._ids[trial.number]

    def trial(self, trial: FrozenTrial | Trial) -> FrozenTrial:
        """The current state of a trial in the storage."""
        return self.storage.get_trial(self._id(trial))

    def _bury(self, trial: FrozenTrial) -> None:
        owner = trial.user_attrs.get(OWNER)
        if owner is not None and owner["machine"] == self.me["machine"] and RESULT not in trial.user_attrs:
            supervisor = owner.get("supervisor")
            if supervisor is not None and alive(supervisor):
                # only the worker died. Once may be an accident; a trial that needs too much memory would kill it again
                deaths = trial.user_attrs.get(DEATHS, 0) + 1
                self._set(trial, DEATHS, deaths)
                if deaths > 1:
                    self._set(trial, FAILURE, "its worker died twice, perhaps for lack of memory")
        self._tell(self.trial(trial))

    def _set(self, trial: FrozenTrial | Trial, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._id(trial), key, value)

    def _tell(self, trial: FrozenTrial) -> None:
        """End a trial according to its attributes."""
        attrs = trial.user_attrs
        if PRUNED in attrs:
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        elif RESULT in attrs:
            self.study.tell(trial.number, objectives_of(attrs[RESULT]), skip_if_finished=True)
        else:
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _requeue(self) -> None:
        trials = self.trials()
        repeated = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        for trial in trials:
            if interrupted(trial) and trial.number not in repeated:
                attrs = {RETRY_OF: trial.number, DEATHS: trial.user_attrs.get(DEATHS, 0)}
                self.study.enqueue_trial(point(trial), user_attrs=attrs)

    def _enqueue_grid(self) -> None:
        known = [point(trial) for trial in self.trials()]
        for one in self.plan.points():
            if one not in known:
                self.study.enqueue_trial(one)

    def claim(self) -> Trial | None:
        """Take a trial: one from the queue, or a new one from the sampler; None when there is nothing to do.

        If trials of other machines are still open, it waits until a dead worker would be detected.
        """
        deadline = time.monotonic() + GRACE + HEARTBEAT
        while True:
            with self.lock():
                self.settle()
                trials = self.trials()
                waiting = any(trial.state == TrialState.WAITING for trial in trials)
                if waiting or (not self.plan.grid and counted(trials) < self.plan.total):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # the warning that the heartbeat is not Optuna's
                        trial = self.study.ask(self.plan.distributions)
                    self._set(trial, OWNER, self.me)
                    self.storage.record_heartbeat(self._id(trial))
                    return trial
                elsewhere = [
                    trial
                    for trial in trials
                    if trial.state == TrialState.RUNNING
                    and trial.user_attrs.get(OWNER, self.me)["machine"] != self.me["machine"]
                ]
            if not elsewhere or time.monotonic() > deadline:
                return None
            time.sleep(2)

    @contextmanager
    def heartbeat(self, trial: Trial) -> Iterator[None]:
        """Send heartbeats for a trial from a thread."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                # a storage that is briefly unreachable must not end the training
                with contextlib.suppress(Exception):
                    self.storage.record_heartbeat(self._id(trial))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Record attributes of a trial before anything else depends on them."""
        for key, value in attributes.items():
            self._set(trial, key, value)

    def finish(self, trial: Trial) -> FrozenTrial:
        """End a trial of this worker according to its attributes; returns it."""
        with self.lock():
            self._tell(self.trial(trial))
        return self.trial(trial)

    def release(self) -> None:
        """Queue again what this process was working on."""
        with self.lock():
            for trial in self.trials():
                if trial.state == TrialState.RUNNING and trial.user_attrs.get(OWNER) == self.me:
                    self._tell(trial)
            self.settle()

    def open_trials(self) -> int:
        """Number of running or queued trials, after settling those of dead workers."""
        with self.lock():
            self.settle()
            trials = self.trials()
        waiting = sum(trial.state in (TrialState.WAITING, TrialState.RUNNING) for trial in trials)
        return waiting + (0 if self.plan.grid else max(0, self.plan.total - counted(trials)))


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a failure of its own."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def counted(trials: list[FrozenTrial]) -> int:
    """Number of trials that count: all except interrupted ones, which are repeated."""
    return sum(not interrupted(trial) for trial in trials)


def objectives_of(result: Mapping[str, Any]) -> list[float]:
    """The objectives in a trial's result (see :data:`RESULT`); empty without a result."""
    return result.get("values", [result["value"]]) if result else []


def point(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, including one that has not started."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
