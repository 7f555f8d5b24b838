"""What a person wants to know at the end of a verb: scores with their convention, where things are, what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from rich.table import Table

from bustseg.metrics import CONVENTIONS, overlap_metrics
from bustseg.metrics.registry import score, single_scores, value_of
from bustseg.progress import console
from bustseg.tracking import Tracker


def report(trainer: pl.Trainer, verb: str) -> None:
    """Print it, on the first process."""
    if not trainer.is_global_zero:
        return
    tracker = trainer.logger
    if verb != "fit":
        _print_scores(trainer.callback_metrics, verb if verb == "test" else "val")
    if not isinstance(tracker, Tracker):
        return
    lines = [f"run {tracker.run_id}  experiment {tracker._experiment_name}  store {tracker.store.shown}"]
    if tracker.artifact_dir is not None:
        if verb == "test":
            lines.append(f"pictures, curves and tables in {tracker.artifact_dir}")
        if verb == "fit":
            lines.append(f"checkpoint {tracker.artifact_dir / 'checkpoints' / 'best.ckpt'}")
    if verb == "fit":
        lines.append(f"next: bustseg test --ckpt_path {tracker.run_id}")
    lines.append("look at it: bustseg ui")
    for line in lines:
        console.print(line, highlight=False)


def _print_scores(metrics: Mapping[str, Any], stage: str) -> None:
    table = Table(title=f"{stage}: one row per convention (what an image with an empty mask counts)")
    scores = {name.removeprefix(f"{stage}/"): float(value) for name, value in metrics.items()}
    overlap = overlap_metrics()
    for column in ("convention", *(metric.title for metric in overlap)):
        table.add_column(column)
    for convention in CONVENTIONS:
        cells = (metric.text(value_of(scores, f"{metric.name}_{convention}")) for metric in overlap)
        table.add_row(convention, *(cell or "-" for cell in cells))
    console.print(table)
    for name in single_scores(scores):
        if score(name).metric.name != "loss":
            console.print(f"{name} {score(name).metric.text(scores[name])}", highlight=False)
