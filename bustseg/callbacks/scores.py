"""All scores of a test in one table, since only a few of them deserve a chart."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.callbacks.subsets import TestPasses
from bustseg.runs.scores import SCORES, write_scores
from bustseg.runs.tracker import run_of


class ScoreTable(Callback):
    """At the end of a test, writes ``tables/test_scores.csv``: every score with its description.

    Only those that :func:`bustseg.metrics.registry.charted` selects become metrics of the run.
    """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = run_of(trainer)
        if run is None:
            return
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TestPasses):
                scores |= callback.seconds
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(SCORES).name
            write_scores(scores, path)
            run.add_file(path, str(Path(SCORES).parent))
