"""The summary at the end of a verb: scores with their convention, where the results are, and the next command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from rich.table import Table

from bustseg.callbacks import ImageTables
from bustseg.metrics import CONVENTIONS, overlap_metrics
from bustseg.metrics.measures import drawn_together, measures
from bustseg.metrics.registry import score, single_scores, value_of
from bustseg.progress import console, print_wide
from bustseg.runs.tracker import Tracker, runs_logger
from bustseg.statistics import Bootstrap


def report(trainer: pl.Trainer, verb: str) -> None:
    """Print the summary, on the first process."""
    if not trainer.is_global_zero:
        return
    logger = runs_logger(trainer)
    if verb != "fit":
        tables = next((one for one in trainer.callbacks if isinstance(one, ImageTables)), None)  # type: ignore[attr-defined]
        table = None if tables is None else tables.tested
        _print_scores(trainer.callback_metrics, verb if verb == "test" else "val", table)
    if logger is None:
        return
    files = logger.run.files
    lines = [logger.where]
    if verb == "test":
        lines.append(f"pictures, curves and tables in {files}")
    if verb == "fit" and (best := files / "checkpoints" / "best.ckpt").is_file():
        lines.append(f"checkpoint {best}")
    lines.append(next_line(verb, str(logger.run_id)))
    if isinstance(logger, Tracker):
        lines.append("look at it: bustseg ui")
    for line in lines:
        console.print(line, highlight=False)


def next_line(verb: str, run_id: str) -> str:
    """The command that usually follows a verb."""
    if verb == "test":
        return (
            f"next: bustseg predict IMAGES --model {run_id} --out predictions\n  or: bustseg compare {run_id} OTHER_RUN"
        )
    return f"next: bustseg test --ckpt_path {run_id}"


def _print_scores(metrics: Mapping[str, Any], stage: str, table: pd.DataFrame | None) -> None:
    scores = {name.removeprefix(f"{stage}/"): float(value) for name, value in metrics.items()}
    overlap = overlap_metrics()
    shown = Table(title=f"{stage}: one row per convention (how an image with an empty mask counts)")
    shown.add_column("convention")
    for metric in overlap:
        shown.add_column(metric.title, justify="right")
    for convention in CONVENTIONS:
        cells = (metric.text(value_of(scores, f"{metric.name}_{convention}")) for metric in overlap)
        shown.add_row(convention, *(cell or "-" for cell in cells))
    print_wide(shown)
    limits = {} if table is None else intervals(table)
    if limits:
        between = Table(title=f"{stage}: 95 % intervals (bootstrap over images, within classes)")
        between.add_column("score")
        between.add_column("value", justify="right")
        between.add_column("95 % interval", justify="right")
        for name, (low, high) in limits.items():
            own = score(name).metric
            text = f"{own.text(low, interval=True)} to {own.text(high, interval=True)}"
            between.add_row(name, own.text(value_of(scores, name)) or "-", text)
        print_wide(between)
    names = [name for name in single_scores(scores) if score(name).metric.name != "loss" and name not in limits]
    width = max(map(len, names), default=0)
    for name in names:
        console.print(f"{name:<{width}}  {score(name).metric.text(scores[name]):>8}", highlight=False)


def intervals(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """95 % confidence limits of the main scores of a test, by name.

    Computed as in `bustseg compare`: BCa over images, or over groups where known, within classes. A score that is equal
    in all images has no limits.

    Args:
        table: one row per image, see :func:`bustseg.metrics.table.image_table`
    """
    chosen = measures(table, ["dice"])
    if not chosen:
        return {}
    groups = table.set_index("image")["group"].replace("", None).dropna() if "group" in table else pd.Series(dtype=str)
    own = drawn_together(table["image"], {str(image): str(group) for image, group in groups.items()})
    boot = Bootstrap(own, strata=table["label"].to_numpy())
    numerator, denominator = (np.stack([measure.terms[k] for measure in chosen], axis=1) for k in (0, 1))
    _, low, high = boot.ratio(numerator, denominator).interval()
    limits = {measure.name: (low[place], high[place]) for place, measure in enumerate(chosen)}
    return {name: pair for name, pair in limits.items() if pair[0] < pair[1]}
