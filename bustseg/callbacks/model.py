"""A trained run's model in MLflow, and its model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.callbacks.checkpoints import best_checkpoint
from bustseg.progress import error_console
from bustseg.runs import card
from bustseg.runs.record import NOTE_TAG, Record
from bustseg.runs.run import Run
from bustseg.runs.scores import SCORES, all_scores
from bustseg.runs.store import one_line
from bustseg.runs.tracker import run_of, runs_logger


class ModelRecorder(Callback):
    """After a fit, records the best checkpoint as ``runs:/RUN_ID/model`` and writes ``model_card.md``.

    A test updates the card and attaches its scores to the model. What cannot be written only gives a warning: by then
    the training is done and the checkpoint exists.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best, run = best_checkpoint(trainer), run_of(trainer)
        if best is None or run is None:
            return
        path, wanted = Path(best.best_model_path), getattr(runs_logger(trainer), "log_model", False)
        _try("the model", lambda: self._record(run, path, wanted))
        _try("the model card", lambda: self._describe(run))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (run := run_of(trainer)) is not None:
            _try("the model card", lambda: self._describe(run, tested=True))

    def _record(self, run: Run, path: Path, as_model: bool) -> None:
        from bustseg.runs.checkpoint import read_checkpoint

        epoch = int(read_checkpoint(path)["epoch"])
        run.set_tags({"best.epoch": epoch})
        if as_model:
            run.log_model(path, epoch)

    def _describe(self, run: Run, tested: bool = False) -> None:
        record = run.record
        if "checkpoint_of_run" in record.tags:  # a test on other data; the model belongs to the run that trained it
            return
        described, validation = record.to_run(), best_validation(record)
        scores = all_scores(record.metrics, lambda: run.files / SCORES)
        run.add_text(card.model_card(described, validation, scores), "model_card.md")
        if record.has_model:
            run.add_model_file(run.files / "model_card.md")
        if card.may_describe(described):
            run.set_tags({NOTE_TAG: card.short_note(described, validation)})
        if tested and record.has_model:
            run.show_with_model("test/")


def best_validation(record: Record) -> dict[str, float]:
    """A run's validation metrics of the epoch of its best weights, else of the last one."""
    epoch = record.tags.get("best.epoch")
    found = {name: value for name, value in record.metrics.items() if name.startswith("val/")}
    if epoch is not None:
        of_best = {name: record.at(name, int(epoch)) for name in found}
        found |= {name: value for name, value in of_best.items() if value is not None}
    return found


def _try(what: str, record: Callable[[], None]) -> None:
    try:
        record()
    except Exception as error:  # no error here may mark a finished training as failed
        error_console.print(f"[yellow]warning:[/] {what} could not be written: {one_line(error)}", highlight=False)
