"""Where a run's checkpoints lie: in its artifact folder, once."""

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
    """Writes a checkpoint beside its place and moves it there when it is whole and on the disk.

    Lightning's own goes through the folder for temporary files. Where that is another file system the move is a copy,
    and a process that is killed in it, or a disk that is full, leaves half a file in place of the last good one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """See Lightning's ``CheckpointIO``."""
        target = Path(path)
        content = io.BytesIO()  # so that a full disk shows as such, and not as an error of torch's archive writer
        torch.save(checkpoint, content)
        write_whole(target, content.getbuffer(), sync=True)


class _RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint in ``checkpoints/`` of the run's files, so that a local store holds one copy of it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(run_dir(trainer) / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a plugin of the user's own stays
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            remove_unfinished(Path(self.dirpath))
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the run's own files.

        The state names files by whole paths. It may come from a stranger's checkpoint, and Lightning deletes what it
        names once a better epoch comes; or from a project that has moved, whose best score would be forgotten. So only
        names are taken from it, of files that lie in this run's folder; without its best file nothing is.
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
        """A continued run finds its own checkpoints there; that is no reason to warn."""


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
    """The callback that keeps the best epoch, if there is one and it has written its file."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and Path(callback.best_model_path).is_file():
            return callback
    return None


class LastCheckpoint(_RunCheckpoint):
    """Everything that is needed to go on after the last finished epoch, as ``last.ckpt``.

    An epoch counts once its checkpoint is there, so that no kill leaves metrics out or twice. In this order:

    1. the epoch's metrics go into the run's journal, where they wait;
    2. the checkpoint is written, with the journal's position in it;
    3. the journal notes that it was, and the metrics are sent.

    Whoever goes on from the checkpoint passes on what waits up to its position, and drops what came after.
    """

    def __init__(self) -> None:
        self._position: Position | None = None
        self._before: dict[str, Any] = {}
        super().__init__(
            filename="last",
            monitor=None,
            save_top_k=1,
            # after the epoch, so that a resumed run begins the next one instead of repeating this one's end
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and (run := run_of(trainer)) is not None:
            run.hold(resumable=True)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {**super().state_dict(), POSITION: self._position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._position = state_dict.get(POSITION)
        super().load_state_dict({name: value for name, value in state_dict.items() if name != POSITION})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in setup: only now is the checkpoint's state here
        if trainer.ckpt_path is not None and (run := run_of(trainer)) is not None:
            run.go_on_from(self._position)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = dict(trainer.logged_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning logs what the epoch has measured only after this hook. On every process, since metrics are reduced.
        metrics = trainer.logged_metrics
        run = run_of(trainer)
        if run is not None:
            # an epoch without a validation still shows the last one's metrics, as the same objects
            fresh = {name: value for name, value in metrics.items() if value is not self._before.get(name)}
            new = {name: float(value) for name, value in fresh.items() if charted(name)}
            run.log_metrics(new, trainer.current_epoch)
            self._position = run.position
        super().on_train_epoch_end(trainer, pl_module)
        if run is not None:
            run.commit()
