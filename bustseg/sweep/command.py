"""`bustseg sweep`, from its arguments to its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bustseg.errors import SweepError, TrackingError
from bustseg.experiment import defaults, put
from bustseg.presets import find_config
from bustseg.progress import console, error_console, labelled, print_entry
from bustseg.runs.opening import open_store
from bustseg.runs.spool import settle
from bustseg.runs.store import explained, tracking_uri
from bustseg.runs.tracker import Tracker, child_runs, newest_run, runs_logger
from bustseg.sweep import result
from bustseg.sweep.costs import COSTS
from bustseg.sweep.plan import Plan, read_plan
from bustseg.sweep.study import FAILURE, PRUNED, RESULT, SharedStudy, interrupted
from bustseg.sweep.trial import outcome_text, run_trial, settle_runs
from bustseg.sweep.workers import Workers, follow_supervisor, termination_is_interrupt, threads_each
from bustseg.training import prepare, try_ahead
from bustseg.training.preflight import known_metrics, unknown_metric

TOKEN = "sweep.token"
"""Tag of a sweep's parent run that identifies its study."""


def sweep_command(
    config: Path,
    options: Sequence[str] = (),
    workers: int = 1,
    resume: bool = False,
    study: str | None = None,
    storage: str | None = None,
    supervisor: int | None = None,
) -> int:
    """Run a sweep, or what is left of it; returns the exit code.

    Args:
        config: the sweep's file
        options: options of `bustseg fit` for every trial
        workers: processes on this machine
        resume: continue a study, or join it
        study, storage: replace those in the file
        supervisor: id of the process that started this one as a worker

    Raises:
        UserError: a file, study or storage that cannot be used
        KeyboardInterrupt: the user stopped it; running trials are queued again
    """
    if workers < 1:
        raise SweepError(f"--workers is {workers}: give a whole number of at least 1")
    config = find_config(config)
    if supervisor is not None:
        follow_supervisor()
    # the bars of several workers would overwrite each other
    of_worker = [] if supervisor is None else ["--trainer.enable_progress_bar", "false"]
    plan = read_plan(config, [*options, *of_worker], study, storage)
    again = ["--config", str(config), *options]
    again += [word for name, value in (("--study", study), ("--storage", storage)) if value for word in (name, value)]
    return _run(plan, again, workers, resume, supervisor)


def _run(plan: Plan, args: list[str], workers: int, resume: bool, supervisor: int | None) -> int:
    _check_objective(plan)
    with termination_is_interrupt():
        study = SharedStudy(plan, supervisor)
        if not study.exists:
            if resume:
                console.print(f"there is no study {plan.study} to resume: starting it")
            _rehearse(plan)
        study.open(resume)
        parent = _parent(plan, study)
        if supervisor is not None:
            try:
                return _work(plan, study, parent)
            except KeyboardInterrupt:  # the supervisor reports it
                return 130
        _settle_runs(study, parent)
        console.print(
            f"study {plan.study}  {plan.total} trials  run {parent.run_id}\nstorage {study.shown_url}",
            highlight=False,
            markup=False,
        )
        failed = 0
        try:
            if workers == 1:
                _work(plan, study, parent)
            elif study.open_trials():
                failed = _supervise(plan, study, args, workers)
        except BaseException as error:
            _stopped(study, parent, isinstance(error, KeyboardInterrupt))
            raise
        return _end(plan, study, parent, failed)


def _check_objective(plan: Plan) -> None:
    if not plan.base["trainer.callbacks"]:  # user callbacks may log anything
        known = known_metrics()
        for name in plan.objectives:
            if name not in known and name not in COSTS:
                raise SweepError(unknown_metric(f"the objective {name}", name, [*known, *COSTS]))
    if plan.objective in COSTS:
        raise SweepError(
            f"the first objective is {plan.objective}, which does not change during training: put a metric of the "
            "training first"
        )


def _rehearse(plan: Plan) -> None:
    """Create everything for the first trial without running it: missing data or weights would fail every trial."""
    run = prepare(plan.first)
    if not isinstance(runs_logger(run.trainer), Tracker):
        raise SweepError(
            "a sweep keeps its trials in MLflow: leave trainer.logger and trainer.fast_dev_run as they are"
        )
    try_ahead(run)


def _name(study: str) -> str:
    return study if study.startswith("sweep") else f"sweep {study}"


def _parent(plan: Plan, study: SharedStudy) -> Tracker:
    """The sweep's parent run, shared by all processes that work on the study."""
    options: dict[str, Any] = {**plan.base["tracking"], "run_name": _name(plan.study)}
    tags = {**(options.pop("tags", None) or {})}
    with study.lock():
        attrs = study.study.user_attrs
        run_id = attrs.get("mlflow_run_id")
        if run_id is None:
            # a run whose id could not be recorded
            client = open_store(tracking_uri(options["uri"]), write=True).client()
            found = newest_run(client, options["experiment"], TOKEN, attrs["token"])
            tags |= {TOKEN: attrs["token"], "sweep.study": plan.study, "sweep.objective": ", ".join(plan.objectives)}
            parent = Tracker(**options, tags=tags, run_id=found.info.run_id if found else None)
            parent.log_config({**plan.base.config, **_described(plan)}, defaults())
            # as text, from which a storage's credentials are removed
            parent.run.add_text(plan.path.read_text(encoding="utf-8"), plan.path.name)
            study.study.set_user_attr("mlflow_run_id", parent.run_id)
            return parent
        parent = Tracker(**options, run_id=run_id)
    try:
        status = parent.run.record.status
    except TrackingError as error:
        raise SweepError(
            f"the run {run_id} of study {plan.study} is not in {parent.store.shown}: set MLFLOW_TRACKING_URI to the "
            "store in which the sweep was started"
        ) from error
    if status != "RUNNING":
        if study.open_trials():
            parent.reopen()
        else:
            parent.final_status = status
    return parent


def _described(plan: Plan) -> dict[str, Any]:
    """The parameters of the sweep's run."""
    space = {key: str(distribution) for key, distribution in plan.distributions.items()}
    judged = {"objective": ", ".join(plan.objectives), "direction": ", ".join(plan.directions)}
    described: dict[str, Any] = {"sweep": judged}
    described["sweep"]["sampler"] = "grid" if plan.grid else str(plan.sampler_spec)
    described["sweep"]["pruner"] = str(plan.pruner_spec)
    put(described, "sweep.trials", plan.total)
    described["sweep"]["space"] = space
    return described


def _settle_runs(study: SharedStudy, parent: Tracker) -> None:
    """Close the runs of trials whose worker died; an unreachable store does not stop the sweep.

    A run with unsent entries has its trial's outcome among them, so nothing is added to it.
    """
    try:
        with study.lock(), explained(parent.store):
            waiting = settle(parent.store, quiet=True).left
            client = parent.store.client()
            runs = child_runs(client, client.get_run(str(parent.run_id)))
            settle_runs(client, [run for run in runs if run.info.run_id not in waiting], study.trials())
    except TrackingError as error:
        error_console.print(f"[yellow]warning:[/] {error}", highlight=False)


def _work(plan: Plan, study: SharedStudy, parent: Tracker) -> int:
    """Run trials until there are none left for this process."""
    try:
        while (trial := study.claim()) is not None:
            start = time.perf_counter()
            with study.heartbeat(trial), labelled(f"trial {trial.number + 1}/{plan.total}"):
                ended = run_trial(plan, study, trial, str(parent.run_id))
            _say(plan, study, ended, time.perf_counter() - start)
    except BaseException:
        study.release()
        raise
    return 0


def _say(plan: Plan, study: SharedStudy, trial: FrozenTrial, seconds: float) -> None:
    """One line for a finished trial."""
    trials = study.trials()
    done = sum(one.state.is_finished() and not interrupted(one) for one in trials)
    words = []
    if reached := outcome_text(plan, trial):
        words.append(reached)
    words.append(plan.label(trial.params))
    if why := trial.user_attrs.get(FAILURE) or trial.user_attrs.get(PRUNED):
        words.append(f"({why})")
    words += [f"{seconds:.1f} s", f"[{done}/{plan.total}]"]
    digits = len(str(plan.total - 1))
    print_entry(f"trial {trial.number:>{digits}}  {trial.state.name}", "  ".join(words))


def _supervise(plan: Plan, study: SharedStudy, args: list[str], count: int) -> int:
    workers = Workers(args, count, study, plan.base["trainer.accelerator"] not in ("cpu", "mps"))
    if workers.devices:
        console.print(f"{count} workers on GPUs {', '.join(workers.devices)}")
        if count > len(workers.devices):
            error_console.print(f"[yellow]warning:[/] {count} workers share {len(workers.devices)} GPUs")
    else:
        console.print(f"{count} workers with {threads_each(count)} threads each")
    return workers.run()


def _stopped(study: SharedStudy, parent: Tracker, by_user: bool) -> None:
    """Leave a study that can be resumed, and no run that appears to be running."""
    with study.lock():
        study.settle()
        trials = study.trials()
    _settle_runs(study, parent)
    if not any(trial.state == TrialState.RUNNING for trial in trials):
        parent.killed = by_user
        parent.finalize("failed")
    done = sum(trial.state.is_finished() and not interrupted(trial) for trial in trials)
    console.print(f"{done} of {study.plan.total} trials are done; the same command with --resume continues")


def _end(plan: Plan, study: SharedStudy, parent: Tracker, failed: int) -> int:
    """Write and print the result when everything is done; otherwise report what is left."""
    left = study.open_trials()
    trials = study.trials()
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    if running:
        console.print(
            f"nothing left to do here; {running} trials are still running elsewhere, and the last worker finishes the "
            "sweep"
        )
        return 0
    if left:
        _stopped(study, parent, by_user=False)
        raise SweepError(f"{failed} workers ended with an error, see above")
    _settle_runs(study, parent)
    folder = result.write_result(plan, trials)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parent.log_file(path, "" if path.parent == folder else str(path.parent.relative_to(folder)))
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    counts["interrupted"] = sum(map(interrupted, trials))
    counts["fail"] -= counts["interrupted"]
    metrics = {f"sweep/{name}": float(counts[name]) for name in ("complete", "pruned", "fail", "interrupted")}
    metrics |= {f"sweep/importance/{name}": share for name, share in result.importances(plan, trials).items()}
    best = result.best_trial(plan, trials)
    if best is not None:
        metrics["sweep/objective"] = best.user_attrs[RESULT]["value"]
        parent.set_tags({"sweep.best_trial": best.number, "sweep.best_run": best.user_attrs.get("mlflow_run_id")})
    parent.log_metrics(metrics)
    parent.finalize("success" if best is not None else "failed")
    result.print_result(plan, trials)
    console.print(
        f"run {parent.run_id}  experiment {plan.base['tracking']['experiment']}\nstore {parent.store.shown}",
        highlight=False,
        markup=False,
    )
    if best is None:
        raise SweepError(f"no trial of {plan.study} finished: see the reasons above")
    front = result.front(plan, trials)
    if len(plan.objectives) > 1:
        numbers = ", ".join(str(trial.number) for trial in front)
        console.print(
            f"Pareto front: trials {numbers}; their configs are in {folder / 'pareto'}", highlight=False, markup=False
        )
    console.print(
        f"pictures and table in {folder}\n"
        f"best: trial {best.number}, {outcome_text(plan, best)}\n"
        f"next: bustseg fit --config {folder / 'best_config.yaml'}",
        highlight=False,
        markup=False,
    )
    return 0
