"""The result of a sweep: the best trial's config, a table, and figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import JustifyMethod
from rich.table import Table

from bustseg.figures.sweep import Axis, Objective, Point, State
from bustseg.figures.sweep import write_plots as draw_sweep
from bustseg.progress import console, print_wide
from bustseg.redact import redact_nested
from bustseg.runs.tracker import RUNS_DIR
from bustseg.sweep.plan import Dimension, Plan
from bustseg.sweep.study import FAILURE, OWNER, PRUNED, RESULT, RUN, interrupted, objectives_of, point

SHOWN = 40
"""Trials in the terminal's table; trials.csv has all."""


def best_trial(plan: Plan, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the best first objective, the earliest of equal ones; None when none has finished."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return min(done, key=lambda trial: (_costs(plan, trial)[0], trial.number), default=None)


def front(plan: Plan, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The Pareto front: finished trials that no other trial dominates.

    Of trials with equal objectives the earliest counts.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    found: list[FrozenTrial] = []
    for trial in done:
        own = _costs(plan, trial)
        beaten = any(
            all(theirs <= ours for theirs, ours in zip(other, own, strict=True))
            and (other != own or rival.number < trial.number)
            for rival in done
            if rival is not trial and (other := _costs(plan, rival))
        )
        if not beaten:
            found.append(trial)
    return found


def _costs(plan: Plan, trial: FrozenTrial) -> list[float]:
    """A finished trial's objectives, with signs such that less is better."""
    return [-value if way == "maximize" else value for value, way in zip(trial.values, plan.directions, strict=True)]


def trial_table(plan: Plan, trials: list[FrozenTrial]) -> pd.DataFrame:
    """A row for each trial that was not interrupted, best first; choices as labels."""
    rows = []
    best = {trial.number for trial in front(plan, trials)}
    for trial in trials:
        if interrupted(trial):
            continue
        result = trial.user_attrs.get(RESULT, {})
        values = objectives_of(result) if result else [None] * len(plan.objectives)
        at = point(trial)
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                **dict(zip(plan.objectives, values, strict=True)),
                **({"pareto": trial.number in best} if len(plan.objectives) > 1 else {}),
                "best_epoch": result["epoch"] + 1 if result else None,
                "epochs": result.get("epochs"),
                **{one.key: _cell_value(one, at[one.key]) for one in plan.dimensions if one.key in at},
                "seconds": round(trial.duration.total_seconds(), 2) if trial.duration else None,
                "reason": trial.user_attrs.get(FAILURE) or trial.user_attrs.get(PRUNED),
                "host": trial.user_attrs.get(OWNER, {}).get("host"),
                "run": trial.user_attrs.get(RUN),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(plan.objective, ascending=plan.direction == "minimize", na_position="last", kind="stable")


def _cell_value(dimension: Dimension, chosen: Any) -> Any:
    """A plain value unchanged, a class or list as a label."""
    return dimension.label(chosen) if chosen in dimension.decoded else chosen


def importances(plan: Plan, trials: list[FrozenTrial]) -> dict[str, float]:
    """Share of the first objective's variance that each key accounts for (fANOVA); empty without variance."""
    study = _renamed(plan, trials)
    values = {trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    if len(values) < 2:
        return {}
    try:
        return optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError):
        return {}


def _renamed(plan: Plan, trials: list[FrozenTrial]) -> optuna.Study:
    """The study in memory, with short names for its parameters, by its first objective."""
    short = plan.short_names()
    study = optuna.create_study(direction=plan.direction)
    for trial in trials:
        if trial.state != TrialState.COMPLETE:
            continue
        first = next(iter(trial.values))
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=first,
                params={short[key]: value for key, value in trial.params.items()},
                distributions={short[key]: value for key, value in trial.distributions.items()},
            )
        )
    return study


def drawn_points(plan: Plan, trials: list[FrozenTrial]) -> list[Point]:
    """The trials for drawing, without those that were interrupted or have not ended."""
    best = {trial.number for trial in front(plan, trials)}
    states: dict[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    short = plan.short_names()
    found = []
    for trial in trials:
        if trial.state not in states or interrupted(trial):
            continue
        result = trial.user_attrs.get(RESULT, {})
        history = trial.intermediate_values or {int(epoch): one for epoch, one in result.get("history", {}).items()}
        at = point(trial)
        found.append(
            Point(
                number=trial.number,
                state=states[trial.state],
                values=objectives_of(result),
                at={
                    short[one.key]: one.label(at[one.key]) if one.labels else at[one.key]
                    for one in plan.dimensions
                    if one.key in at
                },
                epochs={epoch + 1: value for epoch, value in sorted(history.items())},
                front=trial.number in best,
            )
        )
    return found


def write_plots(plan: Plan, trials: list[FrozenTrial], folder: Path) -> list[Path]:
    """Draw the sweep's figures into ``folder``, as PNG and SVG, as far as the trials allow."""
    short = plan.short_names()
    axes = [
        Axis(short[one.key], list(one.labels.values()) or None, bool(getattr(one.distribution, "log", False)))
        for one in plan.dimensions
    ]
    judged = [Objective(name, way == "maximize") for name, way in zip(plan.objectives, plan.directions, strict=True)]
    return draw_sweep(drawn_points(plan, trials), axes, judged, importances(plan, trials), folder)


def write_result(plan: Plan, trials: list[FrozenTrial]) -> Path:
    """Write ``best_config.yaml``, ``trials.csv`` and the pictures, and return their folder.

    A sweep with several objectives also writes the configs of its Pareto front.
    """
    folder = RUNS_DIR / "sweeps" / plan.study
    folder.mkdir(parents=True, exist_ok=True)
    trial_table(plan, trials).to_csv(folder / "trials.csv", index=False)
    best = best_trial(plan, trials)
    if best is not None:
        _write_config(plan, best, f"the best by {plan.objective}", folder / "best_config.yaml")
        write_plots(plan, trials, folder / "plots")
    if len(plan.objectives) > 1:
        for trial in front(plan, trials):
            _write_config(plan, trial, "on the Pareto front", folder / "pareto" / f"trial_{trial.number}.yaml")
    return folder


def _write_config(plan: Plan, trial: FrozenTrial, what: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    reached = ", ".join(f"{name} {value:.4g}" for name, value in zip(plan.objectives, trial.values, strict=True))
    config = yaml.safe_dump(redact_nested(plan.best_config(trial.params)), sort_keys=False)
    path.write_text(f"# trial {trial.number} of the sweep {plan.study}, {what}: {reached}\n{config}")


def print_result(plan: Plan, trials: list[FrozenTrial]) -> None:
    """Print the table of trials, best first, and the failures."""
    frame = trial_table(plan, trials)
    short = plan.short_names()
    table = Table(title=f"{plan.study}: {plan.judged_by}, of the best epoch")
    several = len(plan.objectives) > 1
    columns = ["trial", "state", *plan.objectives, *(["pareto"] if several else []), "best_epoch", *short, "seconds"]
    for column in columns:
        justify: JustifyMethod = "left" if column == "state" else "right"
        table.add_column(short.get(column, column), justify=justify, overflow="fold")
    for row in frame.head(SHOWN).to_dict("records"):
        table.add_row(*(_cell(row[column]) for column in columns))
    print_wide(table)
    if len(frame) > SHOWN:
        console.print(f"and {len(frame) - SHOWN} more in trials.csv")
    for row in frame[frame["state"] == "FAIL"].head(10).to_dict("records"):
        console.print(f"trial {row['trial']} failed: {row['reason']}", highlight=False, markup=False)
    if shares := importances(plan, trials):
        text = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        console.print(f"share of the variance (fANOVA): {text}", highlight=False)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
    return str(value)
