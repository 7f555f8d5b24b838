"""A run's checkpoints, stored once, in its artifact folder."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bustseg.metrics.registry import charted
from bustseg.runs.session import POSITION, Position
from bustseg.runs.tracker import run_of
from bustseg.whole import remove_unfinished, write_whole


def run_dir(trainer: Trainer) -> Path:
    """Folder of the run's files on this machine, the same on every rank."""
    run = run_of(trainer)
    folder = Path(trainer.default_root_dir) if run is None else run.files
    return Path(trainer.strategy.broadcast(str(folder)))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file next to its destination, and renames it when it is complete and on disk.

    Lightning's own class uses the system's temporary folder. If that is on another file system, the move is a copy, and
    a killed process or a full disk leaves half a file in place of the last good one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """See Lightning's ``CheckpointIO``."""
        target = Path(path)
        content = io.BytesIO()  # so that a full disk is reported as such, and not as an error of torch's archive writer
        torch.save(checkpoint, content)
        write_whole(target, content.getbuffer(), sync=True)


class _RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that writes to ``checkpoints/`` in the run's files, so that a local store has only one copy."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(run_dir(trainer) / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a user's own plugin is kept
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            remove_unfinished(Path(self.dirpath))
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the run's own files.

        The state names files by full paths. It may come from a stranger's checkpoint, and Lightning deletes the named
        files once there is a better epoch; or from a project that has moved, whose best score would be forgotten. So
        only the names of files in this run's folder are used; if the best file is not there, nothing is.
        """
        folder = Path(str(self.dirpath))

        def own(path: Any) -> str:
            name = Path(str(path or "")).name
            return str(folder / name) if name and (folder / name).is_file() else ""

        best = own(state_dict.get("best_model_path"))
        if not best:
            return
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        kept = dict(state_dict.get("best_k_models") or {})
        super().load_state_dict(
            {
                **state_dict,
                **{name: own(state_dict.get(name)) for name in names},
                "best_k_models": {own(path): score for path, score in kept.items() if own(path)},
                "dirpath": self.dirpath,
            }
        )

    def _warn_if_dir_not_empty(self, dirpath: str) -> None:
        """Do not warn: a continued run finds its own checkpoints there."""


class BestCheckpoint(_RunCheckpoint):
    """Weights of the best epoch, as ``best.ckpt``.

    Args:
        monitor: metric that decides (paper: validation loss)
        mode: ``min`` or ``max``
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )


def best_checkpoint(trainer: Trainer) -> BestCheckpoint | None:
    """The callback that saves the best epoch, if there is one and it has written its file."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and Path(callback.best_model_path).is_file():
            return callback
    return None


class LastCheckpoint(_RunCheckpoint):
    """Everything that is needed to continue after the last finished epoch, as ``last.ckpt``.

    An epoch counts once its checkpoint is written, so that a killed process neither loses nor repeats metrics. In this
    order:

    1. the epoch's metrics go into the run's journal, where they wait;
    2. the checkpoint is written, with the journal's position in it;
    3. the journal records that it was, and the metrics are sent.

    A fit that continues from the checkpoint sends what waits up to its position, and drops what came after.
    """

    def __init__(self) -> None:
        self._position: Position | None = None
        self._before: dict[str, Any] = {}
        super().__init__(
            filename="last",
            monitor=None,
            save_top_k=1,
            # after the epoch, so that a resumed run starts with the next one instead of repeating the end of this one
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and (run := run_of(trainer)) is not None:
            run.hold(resumable=True)

    def state_dict(self) -> dict[str, Any]:
        """This callback's state in a checkpoint."""
        return {**super().state_dict(), POSITION: self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from :meth:`state_dict`."""
        self._position = state_dict.get(POSITION)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != POSITION})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in setup: the checkpoint's state is available only now
        if trainer.ckpt_path is not None and (run := run_of(trainer)) is not None:
            run.go_on_from(self._position)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = dict(trainer.logged_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning logs the epoch's metrics only after this hook. On every process, since metrics are reduced.
        metrics = trainer.logged_metrics
        run = run_of(trainer)
        if run is not None:
            # after an epoch without a validation the metrics of the last one are still there, as the same objects
            fresh = {name: value for name, value in metrics.items() if value is not self._before.get(name)}
            new = {name: float(value) for name, value in fresh.items() if charted(name)}
            run.log_metrics(new, trainer.current_epoch)
            self._position = run.position
        super().on_train_epoch_end(trainer, pl_module)
        if run is not None:
            run.commit()
