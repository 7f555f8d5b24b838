"""One trial: a fit at a point of the space, judged by its best epoch, and its record in MLflow."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.trial import FrozenTrial, Trial, TrialState

from bustseg.errors import SweepError, TrackingError, disk_is_full
from bustseg.experiment import defaults
from bustseg.metrics.registry import score
from bustseg.progress import console
from bustseg.runs.card import MARK
from bustseg.runs.record import NOTE_TAG, flatten
from bustseg.runs.tracker import PARENT_TAG, Tracker, one_line, runs_logger
from bustseg.sweep.costs import COSTS
from bustseg.sweep.plan import Plan
from bustseg.sweep.study import FAILURE, PRUNED, RESULT, RUN, SharedStudy, interrupted, objectives_of, point
from bustseg.task import SegmentationTask
from bustseg.training import run_fit
from bustseg.training.preflight import unknown_metric

TRIAL, STATE, REASON = "sweep.trial", "sweep.state", "sweep.reason"
OBJECTIVE, SECONDS, OVERHEAD = "sweep/objective", "sweep/seconds", "sweep/overhead_seconds"
"""Tags and metrics of a trial's run."""


class TrialReporter(Callback):
    """Reports the objective to Optuna after every epoch, stops a fit that the pruner rejects, and keeps the best epoch.

    With several objectives, the first determines the best epoch, and Optuna gets no reports.

    Args:
        trial: the trial
        metrics: its objectives; after the first, names of :data:`COSTS` are measured after the fit
        direction: ``maximize`` or ``minimize``, for the first
        pruner: the pruner's name, for messages
    """

    def __init__(self, trial: Trial, metrics: Sequence[str], direction: str, pruner: str) -> None:
        self.trial, self.metrics, self.pruner = trial, metrics, pruner
        self.sign = 1 if direction == "maximize" else -1
        self.scores: dict[str, float] = {}
        """The objectives in the best epoch so far, without those that were never numbers."""
        self.history: dict[int, float] = {}
        """The first objective by epoch, counted from 0."""
        self.epoch = 0
        self.epochs = 0
        self.pruned: str | None = None
        self.tracker: Tracker | None = None
        self.seconds = 0.0
        """Time within the fit."""
        self._validated = False
        self._start = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._start = time.perf_counter()
        if isinstance(logger := runs_logger(trainer), Tracker):
            self.tracker = logger
            self.trial.set_user_attr(RUN, self.tracker.run_id)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.seconds = time.perf_counter() - self._start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not after the validation, since the training metrics come last
        self.epochs = trainer.current_epoch + 1
        if not self._validated or self.pruned:
            return
        self._validated = False
        logged = trainer.callback_metrics
        for name in self.metrics:
            if name not in logged and name not in COSTS:
                raise SweepError(unknown_metric(f"the objective {name}", name, [str(known) for known in logged]))
        first = self.metrics[0]
        value = float(logged[first])
        if not math.isfinite(value):
            return
        self.history[trainer.current_epoch] = value
        if first not in self.scores or self.sign * value > self.sign * self.scores[first]:
            now = {name: float(logged[name]) for name in self.metrics if name in logged}
            self.scores = {name: number for name, number in now.items() if math.isfinite(number)}
            self.epoch = trainer.current_epoch
        if len(self.metrics) > 1:
            return
        self.trial.report(value, step=trainer.current_epoch)
        if self.trial.should_prune():
            self.pruned = f"{self.pruner} after epoch {trainer.current_epoch + 1}: {first} was {value:.4g}"
            trainer.should_stop = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = [name for name in self.metrics if name in COSTS]
        if wanted and isinstance(pl_module, SegmentationTask):
            size = trainer.datamodule.image_size  # type: ignore[attr-defined]
            self.scores |= {name: COSTS[name](trainer, pl_module, size) for name in wanted}


@contextmanager
def quiet() -> Iterator[None]:
    """Hide a fit's lines on the terminal, where the sweep prints its own; warnings and the bar stay."""
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def run_trial(plan: Plan, study: SharedStudy, trial: Trial, parent: str) -> FrozenTrial:
    """Fit at the trial's point, and end the trial whatever the outcome.

    Args:
        plan: the sweep
        study: its study
        trial: the trial, claimed by this process
        parent: id of the sweep's MLflow run

    Raises:
        SweepError, TrackingError, OSError: errors that would affect every other trial too: the objective is never
            logged, the MLflow store is gone, the disk is full
        KeyboardInterrupt: the user stopped it
    """
    start = time.perf_counter()
    name = f"trial {trial.number}: {plan.label(trial.params)}"
    tags = {PARENT_TAG: parent, TRIAL: str(trial.number)}
    reporter = TrialReporter(trial, plan.objectives, plan.direction, type(study.study.pruner).__name__)
    failure, details = None, ""
    try:
        with quiet():
            run_fit(plan.trial(trial.params, name), tags=tags, callbacks=[reporter])
    except (SweepError, TrackingError):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        failure, details = reason(error), traceback.format_exc()
    missing = [name for name in plan.objectives if name not in reporter.scores]
    if failure is None and missing:
        failure = f"{missing[0]} was never a number"
    _free_memory()
    if failure is not None:
        study.note(trial, **{FAILURE: failure})
    else:
        values = [reporter.scores[name] for name in plan.objectives]
        result: dict[str, Any] = {"value": values[0], "epoch": reporter.epoch, "epochs": reporter.epochs}
        if len(values) > 1:  # for which Optuna stores no values by epoch
            result |= {"values": values, "history": {str(epoch): value for epoch, value in reporter.history.items()}}
        result["fit_seconds"] = round(reporter.seconds, 3)
        study.note(trial, **({PRUNED: reporter.pruned} if reporter.pruned else {}), **{RESULT: result})
    tracker = reporter.tracker
    if tracker is None:  # it failed before the fit created a run
        options = {**plan.base["tracking"], "run_name": name}
        tracker = Tracker(**{**options, "tags": {**(options["tags"] or {}), **tags}})
        study.note(trial, **{RUN: tracker.run_id})
        tracker.log_config(plan.described(trial.params), defaults())
        tracker.finalize("failed")
    run = tracker.run
    if details:
        run.add_text(details, "error.txt")
    frozen = study.trial(trial)
    metrics, tags = outcome(frozen, _state(frozen), time.perf_counter() - start, plan)
    # searched keys are always parameters, even with their default value
    searched = [pair for key, value in plan.changes(trial.params).items() for pair in flatten(value, key)]
    run.log_params(dict(searched))
    run.log_metrics(metrics)
    run.set_tags(tags)
    run.close()
    return study.finish(trial)


def _free_memory() -> None:
    """Free the trial's network, which reference cycles keep alive until they are collected."""
    gc.collect()
    if not gc.get_freeze_count():
        # imported modules stay; scanning them after each trial took half a second
        gc.freeze()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Why a fit failed, in one line."""
    text = one_line(error)
    memory = ("not enough memory", "can't allocate memory", "out of memory")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in memory):
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"


def _state(trial: FrozenTrial) -> str:
    """A trial's final state in Optuna's terms; INTERRUPTED for one that is repeated."""
    if FAILURE in trial.user_attrs:
        return "FAIL"
    if PRUNED in trial.user_attrs:
        return "PRUNED"
    return "COMPLETE" if RESULT in trial.user_attrs else "INTERRUPTED"


def outcome(
    trial: FrozenTrial, state: str, seconds: float | None = None, plan: Plan | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """What is recorded in a trial's run: objective and time as metrics; state, reason and description as tags.

    Args:
        trial: the trial
        state: how it ended
        seconds: how long the whole trial took
        plan: the sweep, for the run's description and the names of further objectives
    """
    attrs = trial.user_attrs
    tags = {STATE: state}
    if why := attrs.get(FAILURE) or attrs.get(PRUNED):
        tags[REASON] = why
    elif state == "INTERRUPTED":
        tags[REASON] = "the sweep was stopped; the trial is repeated"
    result = attrs.get(RESULT, {})
    metrics = {OBJECTIVE: result.get("value"), SECONDS: seconds}
    if seconds is not None and result:
        metrics[OVERHEAD] = seconds - result["fit_seconds"]
    if plan is not None:
        tags[NOTE_TAG] = _note(plan, trial, state)
        costs = {
            name: value for name, value in zip(plan.objectives, objectives_of(result), strict=False) if name in COSTS
        }
        metrics |= {f"sweep/{name}": value for name, value in costs.items()}
    return {name: float(value) for name, value in metrics.items() if value is not None}, tags


def write_outcome(client: Any, run_id: str, trial: FrozenTrial, state: str) -> None:
    """Record a trial's outcome in the run of a worker that died.

    Args:
        client: MLflow's client
        run_id: the trial's run
        trial: the trial
        state: how it ended

    Raises:
        MlflowException: the store does not accept it
    """
    from mlflow.entities import Metric, RunTag

    metrics, tags = outcome(trial, state)
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def outcome_text(plan: Plan, trial: FrozenTrial) -> str:
    """A trial's result as text: ``val/dice_lesion 0.7312 in epoch 8 of 12``; empty when it has no result."""
    result = trial.user_attrs.get(RESULT)
    if not result:
        return ""
    first, *others = zip(plan.objectives, objectives_of(result), strict=False)
    words = f"{first[0]} {score(first[0]).metric.text(first[1])} in epoch {result['epoch'] + 1} of {result['epochs']}"
    return ", ".join([words, *(f"{name} {value:.4g}" for name, value in others)])


def _note(plan: Plan, trial: FrozenTrial, state: str) -> str:
    """A trial's description at the top of its run's page."""
    why = trial.user_attrs.get(FAILURE) or trial.user_attrs.get(PRUNED)
    lines = [f"**Trial {trial.number}** of the sweep `{plan.study}`: {plan.label(point(trial))}."]
    reached = outcome_text(plan, trial)
    lines.append(f"{state}{f': {reached}' if reached else ''}{f' ({why})' if why else ''}.")
    return "\n\n".join([*lines, MARK])


def settle_runs(client: Any, runs: list[Any], trials: list[FrozenTrial]) -> None:
    """Close the runs of trials whose worker died: no run is left RUNNING, and each has its trial's outcome.

    Args:
        client: MLflow's client
        runs: the trials' runs
        trials: the study's trials
    """
    by_number = {str(trial.number): trial for trial in trials}
    for run in runs:
        trial = by_number.get(run.data.tags.get(TRIAL, ""))
        if trial is None or trial.state == TrialState.RUNNING:
            continue
        state = "INTERRUPTED" if interrupted(trial) else trial.state.name
        if run.data.tags.get(STATE) != state:
            write_outcome(client, run.info.run_id, trial, state)
        ended = {"INTERRUPTED": "KILLED", "FAIL": "FAILED"}.get(state, "FINISHED")
        if run.info.status == "RUNNING" or (state == "INTERRUPTED" and run.info.status != ended):
            client.set_terminated(run.info.run_id, ended, run.info.end_time)
