"""A trained run's model in MLflow, and its model card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg import card
from bustseg.callbacks.checkpoints import best_checkpoint
from bustseg.progress import error_console
from bustseg.tracking import Tracker, one_line


class ModelRecorder(Callback):
    """After a fit, records the best checkpoint as ``runs:/RUN_ID/model`` and writes ``model_card.md``.

    A test renews the card and shows its scores beside the model. What the store does not take becomes a warning: by
    then the training is done, and the checkpoint is there.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker, best = trainer.logger, best_checkpoint(trainer)
        if best is None or not isinstance(tracker, Tracker) or not trainer.is_global_zero:
            return
        path = Path(best.best_model_path)
        _try("the model", lambda: self._record(tracker, path))
        _try("the model card", lambda: self._describe(tracker))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = trainer.logger
        if isinstance(tracker, Tracker) and trainer.is_global_zero:
            _try("the model card", lambda: self._describe(tracker, tested=True))

    def _record(self, tracker: Tracker, path: Path) -> None:
        from bustseg.checkpoint import read_checkpoint
        from bustseg.deploy.mlflow_model import link_metrics, log_model

        epoch = int(read_checkpoint(path)["epoch"])
        tracker.set_tags({"best.epoch": epoch})
        if tracker.log_model:
            model_id = log_model(tracker.experiment, str(tracker.run_id), path)
            link_metrics(tracker.experiment, str(tracker.run_id), model_id, "val/", epoch)

    def _describe(self, tracker: Tracker, tested: bool = False) -> None:
        from bustseg.deploy.mlflow_model import link_metrics, logged_model_id

        client, run_id = tracker.experiment, str(tracker.run_id)
        run, validation = card.read_run(client, run_id)
        if "checkpoint_of_run" in run.data.tags:  # a test on other data: the model belongs to the run that trained it
            return
        model_id = logged_model_id(client, run_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model_card.md"
            path.write_text(card.model_card(run, validation), encoding="utf-8")
            tracker.log_file(path)
            if model_id is not None:
                client.log_model_artifact(model_id, str(path))
        if card.may_describe(run):
            tracker.set_tags({"mlflow.note.content": card.short_note(run, validation)})
        if tested and model_id is not None:
            link_metrics(client, run_id, model_id, "test/")


def _try(what: str, record: Callable[[], None]) -> None:
    try:
        record()
    except Exception as error:  # whatever it is, it must not end a finished training as failed
        error_console.print(f"[yellow]warning:[/] MLflow did not take {what}: {one_line(error)}", highlight=False)
