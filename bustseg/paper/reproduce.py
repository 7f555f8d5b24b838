"""`bustseg reproduce`: fit and test the rows of one of the paper's tables, and compare them with its numbers."""

from __future__ import annotations

import gc
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from filelock import FileLock, Timeout
from rich.markup import escape
from rich.table import Table

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.errors import UserError, disk_is_full
from bustseg.experiment import Experiment, defaults
from bustseg.metrics import CONVENTIONS
from bustseg.paper.estimate import Cost, measure_cost
from bustseg.paper.report import Outcome, Result, duration, read_outcome, write_report
from bustseg.paper.tables import PaperTable, Row, find_table, read_table
from bustseg.progress import console, labelled, print_entry, print_wide, track
from bustseg.runs.checkpoint import build_data, pretrained_parts, pretrained_value
from bustseg.runs.tracker import PARENT_TAG, RUNS_DIR, Tracker, one_line
from bustseg.training.nested_runs import config_digest, fit_and_test, reopen_parent, store_client, tested

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPERIMENT = "reproduce"
PARENT_KEY, ROW_KEY = "reproduce.table_key", "reproduce.key"
TABLE, ROW, SEED = "reproduce.table", "reproduce.row", "reproduce.seed"

_NOT_DECIDING = (
    "trainer.accelerator",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "data.root",  # the digest of the data identifies its content
    "data.num_workers",
)
"""Keys about where a fit runs and what it prints, which do not make it a different row."""


@dataclass(frozen=True)
class Settings:
    """Options of a reproduction.

    Attributes:
        table: number or file of the table
        family: ``paper``, or ``offline``: the rows with encoders whose weights install with pip
        only: numbers of the rows to run, in this order; all when not given
        seeds: one run per row and seed
        max_epochs, devices: replace the values in the configs
        encoder_weights: ``imagenet`` or ``none``, for all networks; those in the configs when not given
        resume: skip finished rows and continue the interrupted one
        plan: print what would run, and stop
        out: folder for the report
    """

    table: str = "1"
    family: str = "paper"
    only: Sequence[int] | None = None
    seeds: Sequence[int] = (0,)
    max_epochs: int | None = None
    devices: str | None = None
    encoder_weights: str | None = None
    resume: bool = False
    plan: bool = False
    out: Path | None = None


@dataclass
class Job:
    """One row with one seed.

    Attributes:
        row: the row
        seed: seed of weights, order and augmentation
        experiment: the experiment to train
        key: digest that identifies its run
        images: number of images by subset
        asked: whether it should run now
        run: its run, if it already exists
        failure: why it failed in this call
    """

    row: Row
    seed: int
    experiment: Experiment
    key: str
    images: dict[str, int]
    data: UltrasoundDataModule = field(repr=False)
    asked: bool = True
    run: Run | None = None
    failure: str | None = None
    cost: Cost | None = None
    outcome: Outcome | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The experiment's configuration."""
        return self.experiment.config

    @property
    def name(self) -> str:
        return f"row {self.row.row}, seed {self.seed}"

    @property
    def network(self) -> str:
        """What determines its cost, as text: jobs with the same text are measured once."""
        sections = ({**self.config["model"], "loss": None}, self.config["trainer"], self.config["frozen_features"])
        size = {key: self.config["data"].get(key) for key in ("image_size", "batch_size", "augmentation")}
        return json.dumps([sections, size], sort_keys=True, default=str)

    @property
    def epochs(self) -> int:
        """Maximum number of epochs."""
        return int(self.config["trainer"].get("max_epochs") or 0)

    @property
    def open(self) -> bool:
        """Whether it should run and is not finished."""
        return self.asked and self.outcome is None

    def estimate(self, factor: float = 1.0) -> float | None:
        """Seconds of fit and test without early stopping; None when unknown."""
        if self.cost is None:
            return None
        return factor * (self.cost.fit(self.epochs, self.images) + self.cost.test(self.images))

    @property
    def state(self) -> str:
        """``done``, ``failed: why``, ``trained, not tested``, ``running`` (elsewhere), ``cut off`` or ``not run``."""
        if self.outcome is not None:
            return "done"
        if self.failure is not None:
            return f"failed: {self.failure}"
        if self.run is None:
            return "not run"
        if self.run.info.status == "FAILED":
            return f"failed: {self.run.data.tags.get('error', 'see its run')}"
        return {"FINISHED": "trained, not tested", "RUNNING": "running"}.get(self.run.info.status, "cut off")

    def result(self) -> Result:
        """Its result for the report."""
        return Result(self.row, self.seed, self.state, self.outcome, self.config)


def reproduce(options: Settings, rest: Sequence[str] = ()) -> int:
    """`bustseg reproduce`: plan, run the unfinished rows, and write the table after each row.

    Args:
        options: what to reproduce
        rest: further options of `bustseg fit`, for all rows

    Returns:
        0, or 1 when a row failed

    Raises:
        UserError: a table, row, config, option or data that cannot be used
    """
    table = read_table(find_table(options.table, options.family))
    jobs = plan_jobs(table, options, rest)
    tracking = jobs[0].config["tracking"]
    client = store_client()
    key = hashlib.sha256(json.dumps([table.name, sorted({_unseeded(job) for job in jobs})]).encode()).hexdigest()[:16]
    parent, resumable = None, _find_parent(client, tracking["experiment"], key)
    if options.resume:
        for job in jobs:
            _look_up(client, job)
            _end_dead(client, job)
    print_plan(table, jobs)
    if options.plan:
        return 0
    if options.resume:
        parent, _ = reopen_parent(tracking, PARENT_KEY, key)
        if parent is None:
            console.print("there is no run of this table to resume: starting a new one")
    elif resumable is not None:
        console.print(f"starting a new run; --resume would continue run {resumable.info.run_id}", highlight=False)
    if parent is None:
        parent = Tracker(
            **{
                **tracking,
                "run_name": f"{table.title}",
                "tags": {PARENT_KEY: key, TABLE: table.name},
                "log_model": False,
            }
        )
    given = {name: getattr(options, name) for name in ("table", "family", "encoder_weights")}
    parent.log_config({**given, "rows": len(table.rows), "options": _shown(options, rest)}, defaults())
    try:
        _run_all(table, jobs, parent, client, options, rest)
    except BaseException as error:
        parent.killed = not isinstance(error, Exception)  # Ctrl-C comes out of Lightning as SystemExit
        parent.finalize("failed")
        if parent.killed:
            console.print("stopped; the same command with --resume continues")
        raise
    failed = [job for job in jobs if job.asked and job.failure is not None]
    parent.finalize("failed" if failed else "success")
    for job in failed:
        console.print(f"{job.name} ({job.row.name}) failed: {job.failure}", highlight=False, markup=False)
    console.print(
        f"run {parent.run_id}  experiment {tracking['experiment']}\nstore {parent.store.shown}", highlight=False
    )
    return 1 if failed else 0


# --------------------------------------------------------------------------------------------------------- planning


def plan_jobs(table: PaperTable, options: Settings, rest: Sequence[str]) -> list[Job]:
    """A job for every row and seed, including rows that were not requested but may have runs.

    Raises:
        UserError: a row that the table lacks, or a config, option or data that cannot be used
    """
    numbers = [row.row for row in table.rows]
    only = numbers if options.only is None else options.only
    if unknown := [number for number in only if number not in numbers]:
        raise UserError(f"{table.name} has no row {unknown[0]}: it has {numbers[0]} to {numbers[-1]}")
    order = [table.row(number) for number in dict.fromkeys(only)]
    order += [row for row in table.rows if row not in order]
    missing = [row for row in order[: len(set(only))] if not row.config.is_file()]
    if missing:
        raise UserError(f"no config for row {missing[0].row} at {missing[0].config}")
    jobs: list[Job] = []
    modules: dict[str, UltrasoundDataModule] = {}
    for position, row in enumerate(track(order, "reading configs")):
        asked = position < len(set(only))
        try:
            experiment = _experiment_of(row, options, rest)
            if experiment["trainer.fast_dev_run"] or experiment["trainer.logger"] is False:
                raise UserError(
                    "reproduce stores its rows in MLflow: do not set trainer.logger or trainer.fast_dev_run"
                )
            data = _data(experiment["data"], modules)
        except UserError as error:
            if asked:
                raise UserError(f"row {row.row} ({row.config.name}): {error}") from error
            continue
        jobs += [_job(row, seed, experiment, data, table, asked) for seed in dict.fromkeys(options.seeds)]
    return jobs


def _experiment_of(row: Row, options: Settings, rest: Sequence[str]) -> Experiment:
    """A row's experiment, not seeded yet."""
    named = ["--config", str(row.config), "--tracking.experiment", EXPERIMENT]
    experiment = Experiment.parse([*named, *rest])
    changes: dict[str, Any] = {}
    if options.max_epochs is not None:
        changes["trainer.max_epochs"] = options.max_epochs
    if options.devices is not None:
        changes["trainer.devices"] = yaml.safe_load(options.devices)
    if options.encoder_weights:
        for key in pretrained_parts(experiment["model.network"]):
            changes[f"model.network.{key}"] = pretrained_value(key, options.encoder_weights)
    return experiment.but(changes) if changes else experiment


def _job(
    row: Row, seed: int, experiment: Experiment, data: UltrasoundDataModule, table: PaperTable, asked: bool
) -> Job:
    name = f"{table.name} row {row.row:02d} seed {seed}"
    own = experiment.but({"seed_everything": seed, "tracking.run_name": name})
    key = config_digest(own.config, _NOT_DECIDING, data=data.data_digest, split=data.split_digest)
    images = {subset: len(indices) for subset, indices in data.indices.items()}
    return Job(row, seed, own, key, images, data, asked)


def _unseeded(job: Job) -> str:
    """The job's key without the seed."""
    config = {**job.config, "seed_everything": None}
    return config_digest(config, _NOT_DECIDING, data=job.data.data_digest, split=job.data.split_digest)


def _data(section: dict[str, Any], modules: dict[str, UltrasoundDataModule]) -> UltrasoundDataModule:
    """The data of a configuration, set up; rows with the same data share a module."""
    key = json.dumps(section, sort_keys=True, default=str)
    if key not in modules:
        data = build_data(section)
        data.prepare_data()
        data.setup("fit")
        modules[key] = data
    return modules[key]


def _find_parent(client: MlflowClient, experiment: str, key: str) -> Run | None:
    found = _runs(client, experiment, PARENT_KEY, key)
    return found[0] if found else None


def _runs(client: MlflowClient, experiment: str, tag: str, value: str) -> list[Run]:
    """Runs of an experiment with this tag, newest first."""
    home = client.get_experiment_by_name(experiment)
    if home is None:
        return []
    return client.search_runs(
        [home.experiment_id], filter_string=f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time DESC"]
    )


def _look_up(client: MlflowClient, job: Job) -> None:
    """Find a job's run: a finished one from any table, else the newest."""
    found = _runs(client, job.config["tracking"]["experiment"], ROW_KEY, job.key)
    done = [run for run in found if tested(run)]
    job.run = next(iter([*done, *found]), None)
    job.outcome = read_outcome(client, done[0]) if done else None


def _end_dead(client: MlflowClient, job: Job) -> None:
    """End a run whose process was killed and left it running."""
    if job.run is not None and job.run.info.status == "RUNNING":
        with _alone(job) as alone:
            if alone:
                client.set_terminated(job.run.info.run_id, "KILLED")
                job.run = client.get_run(job.run.info.run_id)


@contextmanager
def _alone(job: Job) -> Iterator[bool]:
    """Lock the job on this machine while the context lasts; yields False if another process runs it."""
    folder = RUNS_DIR / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{job.key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def print_plan(table: PaperTable, jobs: Sequence[Job]) -> None:
    """Print at once what is done and what remains to run, then the estimated time of the rest, network by network."""
    asked = [job for job in jobs if job.asked]
    shown = Table(title=table.title, caption=table.legend or None)
    for column in ("row", "model", "seed", "epochs", "state"):
        shown.add_column(column, justify="right" if column in ("row", "seed") else "left")
    for job in asked:
        epochs = str(job.outcome.epochs) if job.outcome else f"<= {job.epochs}"
        shown.add_row(str(job.row.row), escape(job.row.name), str(job.seed), epochs, escape(job.state))
    print_wide(shown)
    todo = [job for job in asked if job.open]
    if not todo:
        console.print(f"all {len(asked)} are done", highlight=False)
        return
    console.print(f"{len(asked) - len(todo)} of {len(asked)} are done; timing a step of each network", highlight=False)
    _measure(todo)
    estimates = [seconds for job in todo if (seconds := job.estimate()) is not None]
    console.print(
        f"{len(asked) - len(todo)} of {len(asked)} are done; the rest takes at most about {duration(sum(estimates))} "
        "(an estimate from one training step of each network; early stopping shortens it)",
        highlight=False,
    )


def _measure(jobs: Sequence[Job]) -> None:
    """Set each job's cost, and print a line for each distinct network as soon as it is timed."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.network, job)
    width = max((len(job.row.name) for job in jobs), default=0)
    for name, job in track(list(first.items()), "timing a step of each network"):
        try:
            cost = measure_cost(job.config, job.data)
        except Exception as error:  # running the row will report the error
            console.print(f"{job.name}: no estimate ({one_line(error)})", highlight=False, markup=False)
            continue
        same = [other for other in jobs if other.network == name]
        for other in same:
            other.cost = cost
        each = f" each, {len(same)} rows" if len(same) > 1 else ""
        print_entry(
            escape(f"row {job.row.row:>2}  {job.row.name:<{width}}"),
            f"{cost.parameters:,} parameters, {cost.trainable:,} trained: {duration(job.estimate() or 0.0)}{each}",
        )


# ---------------------------------------------------------------------------------------------------------- running


def _run_all(
    table: PaperTable, jobs: list[Job], parent: Tracker, client: MlflowClient, options: Settings, rest: Sequence[str]
) -> None:
    command = _shown(options, rest)
    todo = [job for job in jobs if job.open]
    ratios: list[float] = []

    def write(final: bool = False) -> None:
        if options.resume:  # other processes may have finished rows since the plan
            for job in jobs:
                if job.outcome is None and job.failure is None:
                    _look_up(client, job)
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.out or Path(temporary)
            files = write_report(table, [job.result() for job in jobs], folder, command, final)
            for path in files:
                parent.log_file(path)
            if options.out:
                console.print(f"written: {', '.join(map(str, files))}", highlight=False)

    for number, job in enumerate(todo):
        factor = statistics.median(ratios) if ratios else 1.0
        left = [seconds for other in todo[number:] if (seconds := other.estimate(factor)) is not None]
        about = f", about {duration(sum(left))} left" if left else ""
        console.rule(escape(f"{job.name}: {job.row.name} ({number + 1} of {len(todo)}{about})"))
        started = time.perf_counter()
        with _alone(job) as alone:
            if not alone:
                _look_up(client, job)
                console.print("another process is running it: skipped", highlight=False)
                continue
            whole = job.run is None
            try:
                with labelled(f"row {number + 1}/{len(todo)}"):
                    _run_one(job, parent, client, table, options.resume)
            except Exception as error:
                if disk_is_full(error):
                    raise
                job.failure = f"{type(error).__name__}: {one_line(error)}"
                console.print(f"[red]{escape(job.name)} failed:[/] {escape(job.failure)}", highlight=False)
        gc.collect()
        torch.cuda.empty_cache()
        if job.outcome is not None:
            if whole and job.cost is not None:
                planned = job.cost.fit(job.outcome.epochs, job.images) + job.cost.test(job.images)
                ratios.append((time.perf_counter() - started) / planned)
            scores = {name.removeprefix("test/"): value for name, value in job.outcome.scores.items()}
            names = (*(f"dice_{convention}" for convention in CONVENTIONS), "auc_pixel")
            # a curve over rows in the UI; one per seed, so that they do not overlap
            parent.log_metrics(
                {f"{name}/seed_{job.seed}": scores[name] for name in names if name in scores}, step=job.row.row
            )
        if number < len(todo) - 1:
            write()
    write(final=True)


def _run_one(job: Job, parent: Tracker, client: MlflowClient, table: PaperTable, resume: bool) -> None:
    if resume:  # another process may have finished it since the plan
        _look_up(client, job)
    if job.outcome is None:
        tags = {PARENT_TAG: str(parent.run_id), ROW_KEY: job.key, TABLE: table.name, ROW: str(job.row.row)}
        run_id, _ = fit_and_test(job.experiment, {**tags, SEED: str(job.seed)}, job.run)
        job.run = client.get_run(run_id)
        job.outcome = read_outcome(client, job.run)


def _shown(options: Settings, rest: Sequence[str]) -> str:
    """The command for readers to repeat, without paths of this machine."""
    parts = [f"bustseg reproduce --table {Path(options.table).name}"]
    if options.family != "paper":
        parts.append(f"--family {options.family}")
    if list(options.seeds) != [0]:
        parts.append(f"--seeds {' '.join(map(str, options.seeds))}")
    for name in ("max_epochs", "devices", "encoder_weights"):
        if (value := getattr(options, name)) is not None:
            parts.append(f"--{name} {value}")
    skip = False
    for item in rest:
        private = item.partition("=")[0] in ("--data.root", "--trainer.default_root_dir")
        if not (private or skip):
            parts.append(item)
        skip = private and "=" not in item
    return " ".join(parts)
