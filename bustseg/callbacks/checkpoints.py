"""Where a run's checkpoints lie: in its artifact folder, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bustseg.tracking import Tracker


def run_dir(trainer: Trainer) -> Path:
    """Folder of the run's files on this machine, the same on every rank."""
    folder = Path(trainer.default_root_dir)
    if trainer.is_global_zero and isinstance(trainer.logger, Tracker):
        folder = trainer.logger.run_dir
    return Path(trainer.strategy.broadcast(str(folder)))


class _RunCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint in ``checkpoints/`` of the run's artifacts, so that a local store holds one copy of it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(run_dir(trainer) / "checkpoints")
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
    """Everything that is needed to go on after the last finished epoch, as ``last.ckpt``."""

    def __init__(self) -> None:
        super().__init__(
            filename="last",
            monitor=None,
            save_top_k=1,
            # after the epoch, so that a resumed run begins the next one instead of repeating this one's end
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
