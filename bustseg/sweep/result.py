"""What a sweep leaves: the best trial's config, a table, and Optuna's pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from bustseg.progress import console
from bustseg.sweep.plan import Plan
from bustseg.sweep.study import FAILURE, OWNER, PRUNED, RESULT, RUN, interrupted, point
from bustseg.tracking import RUNS_DIR

SHOWN = 40
"""Trials in the terminal's table; trials.csv has all."""


def best_trial(plan: Plan, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The finished trial with the best objective, the earliest of equals; None when none has finished."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1 if plan.direction == "maximize" else 1
    return min(done, key=lambda trial: (sign * float(trial.value or 0), trial.number), default=None)


def trial_table(plan: Plan, trials: list[FrozenTrial]) -> pd.DataFrame:
    """A row for each trial that was not interrupted, best first."""
    rows = []
    for trial in trials:
        if interrupted(trial):
            continue
        result = trial.user_attrs.get(RESULT, {})
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                plan.objective: result.get("value"),
                "best_epoch": result["epoch"] + 1 if result else None,
                "epochs": result.get("epochs"),
                **point(trial),
                "seconds": round(trial.duration.total_seconds(), 2) if trial.duration else None,
                "reason": trial.user_attrs.get(FAILURE) or trial.user_attrs.get(PRUNED),
                "host": trial.user_attrs.get(OWNER, {}).get("host"),
                "run": trial.user_attrs.get(RUN),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values(plan.objective, ascending=plan.direction == "minimize", na_position="last", kind="stable")


def importances(plan: Plan, trials: list[FrozenTrial]) -> dict[str, float]:
    """Share of the objective's variance that each key accounts for (fANOVA); empty when there is none to share."""
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
    """The study in memory, with short names for its parameters."""
    short = plan.short_names()
    study = optuna.create_study(direction=plan.direction)
    for trial in trials:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params={short[key]: value for key, value in trial.params.items()},
                distributions={short[key]: value for key, value in trial.distributions.items()},
                intermediate_values=trial.intermediate_values,
            )
        )
    return study


def write_plots(plan: Plan, trials: list[FrozenTrial], folder: Path) -> list[Path]:
    """Optuna's pictures as PNG files in ``folder``; one that the trials do not allow is left out."""
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as draw

    study = _renamed(plan, trials)
    shares = importances(plan, trials)
    pictures: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study, target_name=plan.objective),
        "slice": lambda: draw.plot_slice(study, target_name=plan.objective),
        "parallel_coordinate": lambda: draw.plot_parallel_coordinate(study, target_name=plan.objective),
    }
    if shares:
        pictures["importances"] = lambda: draw.plot_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            target=lambda trial: float(trial.value or 0),
            target_name=plan.objective,
        )
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    backend = plt.get_backend()
    plt.switch_backend("agg")
    with warnings.catch_warnings(), plt.rc_context():
        warnings.simplefilter("ignore")
        for name, picture in pictures.items():
            try:
                picture()
                path = folder / f"{name}.png"
                plt.gcf().set_size_inches(max(8, 3.2 * len(plan.dimensions)), 5)
                plt.savefig(path, dpi=110, bbox_inches="tight")
                written.append(path)
            except (ValueError, RuntimeError, ArithmeticError):
                continue
            finally:
                plt.close("all")
    plt.switch_backend(backend)
    return written


def write_result(plan: Plan, trials: list[FrozenTrial]) -> Path:
    """Write ``best_config.yaml``, ``trials.csv`` and the pictures; returns their folder."""
    folder = RUNS_DIR / "sweeps" / plan.study
    folder.mkdir(parents=True, exist_ok=True)
    trial_table(plan, trials).to_csv(folder / "trials.csv", index=False)
    best = best_trial(plan, trials)
    if best is not None:
        lines = [
            f"# trial {best.number} of the sweep {plan.study}, the best by {plan.objective}: {best.value:.4f}",
            yaml.safe_dump(plan.best_config(best.params), sort_keys=False),
        ]
        (folder / "best_config.yaml").write_text("\n".join(lines))
        write_plots(plan, trials, folder / "plots")
    return folder


def print_result(plan: Plan, trials: list[FrozenTrial]) -> None:
    """The table of trials, best first, and what failed."""
    frame = trial_table(plan, trials)
    short = plan.short_names()
    table = Table(title=f"{plan.study}: {plan.objective} of the best epoch ({plan.direction})")
    columns = ["trial", "state", plan.objective, "best_epoch", *short, "seconds"]
    for column in columns:
        table.add_column(short.get(column, column), justify="left" if column == "state" else "right")
    for row in frame.head(SHOWN).to_dict("records"):
        table.add_row(*(_cell(row[column]) for column in columns))
    console.print(table)
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
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
    return str(value)
