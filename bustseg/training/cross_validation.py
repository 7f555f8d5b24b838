"""Cross-validation: fit and test over folds, as one MLflow run with a child run per fold."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.sources import Sample
from bustseg.data.splits import left_out_values, read_split
from bustseg.errors import UserError
from bustseg.experiment import Experiment, defaults
from bustseg.metrics.registry import charted, headline_scores, score
from bustseg.progress import console, labelled, print_wide
from bustseg.runs.tracker import PARENT_TAG, Tracker, runs_logger
from bustseg.training import Run, prepare, try_ahead
from bustseg.training.nested_runs import Scores, config_digest, fit_and_test, reopen_parent
from bustseg.training.setup import default_name

FOLD, KEY = "cv.fold", "cv.key"


def cross_validate(
    experiment: Experiment, folds: int | None = None, resume: bool = False, by: str | None = None
) -> int:
    """Fit and test over folds; returns the exit code.

    The folds are those of the split: ``kfold``, a CSV file with folds, the k-fold version of ``grouped``, ``lesion``
    or ``curated``, or one for each source or device that ``left_out`` leaves out. The scheme ``paper`` leaks, so it is
    divided like ``grouped`` unless ``data.kfold_of`` is ``paper`` and ``data.split`` is ``kfold``.

    Args:
        experiment: the experiment of every fold
        folds: replaces ``data.folds``
        resume: skip finished folds and continue the interrupted one
        by: column whose values are left out in turn; replaces the split

    Raises:
        UserError: an experiment, data or a split that cannot be used
    """
    if folds is not None:
        if folds < 2:
            raise UserError(f"--folds is {folds}: give a whole number of at least 2")
        if by is not None:
            raise UserError(
                f"--by {by} makes a fold of each value, so it cannot be combined with --folds: leave one of them out"
            )
        experiment = experiment.but({"data.folds": folds})
    if by is not None:
        experiment = experiment.but({"data.split": "left_out", "data.left_out_by": by})
    plan = prepare(experiment)
    if not isinstance(runs_logger(plan.trainer), Tracker):
        raise UserError("cv stores its folds in MLflow: do not set trainer.logger or trainer.fast_dev_run")
    names, split = _folds(plan.data)
    key = _key(plan)
    parent, known = _existing(plan, key) if resume else (None, {})
    if parent is None:
        # what the first fold cannot use, none can; the run over all folds would be left behind
        try_ahead(prepare(experiment.but({**split, "data.fold": next(iter(names))})))
        parent = _new(plan, key, len(names))
    results: dict[int, Scores] = {}
    runs: list[str] = []
    try:
        for number, (fold, name) in enumerate(names.items(), 1):
            console.rule(f"{escape(name)} ({number} of {len(names)})")
            own = experiment.but({**split, "data.fold": fold})
            tags = {PARENT_TAG: str(parent.run_id), FOLD: str(fold), "cv.split": plan.data.split_scheme}
            if plan.data.split_scheme == "left_out":
                tags["cv.left_out"] = name
            with labelled(f"fold {number}/{len(names)}"):
                run_id, results[fold] = fit_and_test(own, tags, known.get(fold))
            runs.append(run_id)
    except BaseException as error:
        parent.killed = isinstance(error, KeyboardInterrupt)
        parent.finalize("failed")
        console.print(f"{len(results)} of {len(names)} folds are done; the same command with --resume continues")
        raise
    _record(parent, results, names)
    parent.finalize("success")
    _print(results, names)
    console.print(parent.where, highlight=False)
    console.print(f"next: bustseg ensemble {' '.join(runs)} --out ensemble.ckpt", highlight=False)
    return 0


def _folds(data: UltrasoundDataModule) -> tuple[dict[int, str], dict[str, str]]:
    """Names of the folds by number, and the changes that select their split."""
    scheme = data.split_scheme
    if scheme.endswith(".csv"):
        split = read_split(Path(scheme), _samples(data))
        if "fold" not in split:
            raise UserError(f"split {scheme} has no folds: `bustseg data split --scheme kfold` writes some")
        return _numbered(sorted(int(fold) for fold in split["fold"].unique())), {}
    if scheme == "left_out":
        return dict(enumerate(left_out_values(_samples(data), data.left_out_by))), {}
    if scheme == "test_all":
        raise UserError("the split test_all has no training images: cross-validate over kfold")
    of = scheme if scheme in ("lesion", "grouped", "curated") else data.kfold_of
    if scheme == "paper":
        console.print(f"the split paper is divided into {data.folds} folds by the scheme {of} (data.kfold_of)")
    return _numbered(range(data.folds)), {"data.split": "kfold", "data.kfold_of": of}


def _samples(data: UltrasoundDataModule) -> list[Sample]:
    data.source.prepare(data.data_root)
    return data.source.read(data.data_root)


def _numbered(folds: Iterable[int]) -> dict[int, str]:
    return {fold: f"fold {fold}" for fold in folds}


def _key(plan: Run) -> str:
    """Digest by which ``--resume`` finds its run."""
    plan.data.prepare_data()
    return config_digest(plan.experiment.config, without=["data.fold"])


def _existing(plan: Run, key: str) -> tuple[Tracker | None, dict[int, Any]]:
    """The newest run over all folds with this key, if there is one, and the existing runs of its folds."""
    parent, children = reopen_parent(plan.experiment["tracking"], KEY, key)
    if parent is None:
        console.print("there is no cross-validation of this configuration to resume: starting a new one")
    return parent, {int(run.data.tags[FOLD]): run for run in children if FOLD in run.data.tags}


def _new(plan: Run, key: str, folds: int) -> Tracker:
    """A new run over all folds."""
    options: dict[str, Any] = plan.experiment["tracking"]
    name = options.pop("run_name", None) or default_name(plan.experiment)
    tags = {**(options.pop("tags", None) or {}), KEY: key, "cv.folds": str(folds)}
    parent = Tracker(**options, run_name=f"{name} ({folds} folds)", tags=tags)
    parent.log_config(plan.experiment.config, defaults())
    return parent


def mean_and_spread(results: Mapping[int, Scores]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of every metric over the folds that have a value for it."""
    names = dict.fromkeys(name for scores in results.values() for name in scores)
    table = {}
    for name in names:
        values = [value for scores in results.values() if math.isfinite(value := scores.get(name, math.nan))]
        if values:
            table[name] = (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
    return table


def _record(parent: Tracker, results: Mapping[int, Scores], names: Mapping[int, str]) -> None:
    import pandas as pd

    table = {name: pair for name, pair in mean_and_spread(results).items() if charted(name)}
    metrics = {f"{name}_mean": mean for name, (mean, _) in table.items()}
    parent.log_metrics({**metrics, **{f"{name}_std": spread for name, (_, spread) in table.items()}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folds.csv"
        rows = [{"fold": fold, "name": names[fold], **scores} for fold, scores in results.items()]
        pd.DataFrame(rows).to_csv(path, index=False)
        parent.log_file(path)


def _print(results: Mapping[int, Scores], names: Mapping[int, str]) -> None:
    table = Table(title="test, by fold; mean and standard deviation over folds")
    table.add_column("")
    for fold in results:
        table.add_column(escape(names[fold]), justify="right")
    table.add_column("mean", justify="right")
    table.add_column("std", justify="right")
    summary = mean_and_spread(results)
    for name in headline_scores(name.removeprefix("test/") for name in summary):
        metric = score(name).metric
        cells = [metric.text(scores.get(f"test/{name}")) or "-" for scores in results.values()]
        table.add_row(name, *cells, *map(metric.text, summary[f"test/{name}"]))
    print_wide(table)
