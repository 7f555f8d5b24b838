"""What a run records in addition to its metrics: configuration, origin, split, checkpoint, and how it ended."""

from __future__ import annotations

import json
import platform
import subprocess
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from bustseg.callbacks.checkpoints import best_checkpoint
from bustseg.callbacks.mirror import show_in
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.sources import LABELS
from bustseg.data.splits import write_split
from bustseg.progress import error_console, several
from bustseg.redact import redact_nested
from bustseg.runs.record import flatten
from bustseg.runs.run import Run
from bustseg.runs.store import one_line
from bustseg.runs.tracker import PARENT_TAG, RunLogger, run_of, runs_logger
from bustseg.task import SegmentationTask

PACKAGES = ("torch", "torchvision", "lightning", "timm", "segmentation-models-pytorch", "albumentations", "mlflow")


@cache
def versions() -> dict[str, str]:
    """Versions of bustseg, Python and the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in ("bustseg", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the code in use, with ``-dirty`` for uncommitted changes; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None if commit.returncode == 0 else None


def device_name(trainer: Trainer) -> str:
    """The accelerator, or the CPU with its thread count."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} x {trainer.world_size}"
    processes = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    return f"{device.type} ({several(torch.get_num_threads(), 'thread')}){processes}"


def network_tags(task: SegmentationTask) -> dict[str, str | None]:
    """Tags that describe what is trained, for filtering and comparing runs."""
    parameters = list(task.network.parameters())
    return {
        "network": type(task.network).__name__,
        "loss": type(task.loss).__name__,
        "parameters": str(sum(parameter.numel() for parameter in parameters)),
        "parameters_trainable": str(sum(parameter.numel() for parameter in parameters if parameter.requires_grad)),
    }


CONTEXTS = {
    "fit": {"train": "training", "val": "validation"},
    "validate": {"val": "validation"},
    "test": {"test": "testing"},
}
"""What each verb uses the subsets for, in MLflow's terms."""


def datasets(datamodule: UltrasoundDataModule, contexts: dict[str, str]) -> list[tuple[dict[str, str], str]]:
    """The subsets in use as MLflow's data sets: name, digest, origin and counts of each, and its context.

    The origin is the data folder's name without its path, which may contain a user's name.
    """
    found = []
    for subset, context in contexts.items():
        indices = datamodule.indices[subset]
        if not len(indices):
            continue
        labels = [datamodule.samples[index].label for index in indices]
        profile = {
            "images": len(indices),
            **{label: labels.count(label) for label in LABELS if label in labels},
            "image_size": list(datamodule.image_size),
            "resize": datamodule.resize,
            "split": Path(datamodule.split_scheme).name,
            "split_digest": datamodule.split_digest,
            "data_digest": datamodule.data_digest,
        }
        dataset = {
            "name": f"{datamodule.source.name}-{subset}",
            "digest": datamodule.subset_digest(subset),
            "source_type": "local",
            "source": json.dumps({"uri": datamodule.data_root.name}),
            "profile": json.dumps(profile),
        }
        found.append((dataset, context))
    return found


class RunRecorder(Callback):
    """Writes a run's configuration, origin, split and best checkpoint, and makes checkpoints self-contained.

    Args:
        config: the resolved configuration as plain types; it is stored without credentials, since checkpoints are
            shared
        defaults: the default configuration of an experiment
    """

    def __init__(self, config: dict[str, Any], defaults: dict[str, Any]) -> None:
        self.config, self.defaults = redact_nested(config), defaults

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger, datamodule = runs_logger(trainer), trainer.datamodule  # type: ignore[attr-defined]
        if logger is not None:
            logger.share(trainer.strategy.broadcast)
        if stage == "fit" and isinstance(pl_module, SegmentationTask):
            pl_module.record = self._record(logger, datamodule)
        run = run_of(trainer)
        if logger is None or run is None:
            return
        run.write_through = False
        others = [other for other in trainer.loggers if other is not logger]
        run.listeners = [shown for other in others if (shown := show_in(other)) is not None]
        if stage != "fit":
            run.hold(resumable=False)
        if logger.final_status is None:
            logger.reopen()
        # one tag for all, so that the tags that people read are not buried
        tags: dict[str, str | None] = {"versions": ", ".join(f"{name} {value}" for name, value in versions().items())}
        if isinstance(pl_module, SegmentationTask):
            tags |= network_tags(pl_module)
        tags |= {"git_commit": git_commit(), "device": device_name(trainer), "precision": trainer.precision}
        if isinstance(datamodule, UltrasoundDataModule):
            tags |= {
                "data_digest": datamodule.data_digest,
                "split_digest": datamodule.split_digest,
                "split": datamodule.split_scheme,
                "source": datamodule.source.name,
                **{f"images_{subset}": str(len(indices)) for subset, indices in datamodule.indices.items()},
            }
        if stage == "fit" or logger.final_status is None:
            self._record_config(logger, run, datamodule)
            for other in others:
                other.log_hyperparams(dict(flatten(self.config)))
            run.set_tags(tags)
        if isinstance(datamodule, UltrasoundDataModule):
            run.log_datasets(datasets(datamodule, CONTEXTS.get(stage, {})))

    def _record(self, logger: RunLogger | None, datamodule: Any) -> dict[str, Any]:
        record: dict[str, Any] = {"config": self.config, "versions": dict(versions()), "git_commit": git_commit()}
        if logger is not None:
            record |= {"run_id": logger.run_id, "tracking_uri": logger.store.shown}
        if isinstance(datamodule, UltrasoundDataModule):
            record |= {"data_digest": datamodule.data_digest, "split_digest": datamodule.split_digest}
        return record

    def _record_config(self, logger: RunLogger, run: Run, datamodule: Any) -> None:
        import yaml

        logger.log_config(self.config, self.defaults)
        run.add_text(yaml.safe_dump(self.config, sort_keys=False), "config.yaml")
        if isinstance(datamodule, UltrasoundDataModule) and datamodule.split is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "split.csv"
                write_split(datamodule.split, path)
                run.add_file(path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send_best(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        logger = runs_logger(trainer)
        if logger is None:
            return
        what = f"{type(exception).__name__}: {one_line(exception)}"
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if not trainer.is_global_zero:
            if not stopped:
                logger.close_as_failed(f"process {trainer.global_rank}: {what}")
            return
        if not logger.started:  # bad input that is found before the run starts leaves no run behind
            return
        if stopped and not logger.closed:
            logger.killed = True
        else:
            logger.close_as_failed(what)
        self._send_best(trainer)
        last = logger.run.files / "checkpoints" / "last.ckpt"
        if trainer.state.fn != "fit":
            return
        if last.is_file():
            error_console.print(
                f"to continue from the last finished epoch: bustseg fit --ckpt_path {last}", highlight=False
            )
        elif stopped and PARENT_TAG not in logger.run.record.tags:
            error_console.print("no epoch is finished, so nothing can be continued: start again", highlight=False)

    def _send_best(self, trainer: Trainer) -> None:
        """Upload the best checkpoint to a store on another machine; a local store already has it."""
        best, run = best_checkpoint(trainer), run_of(trainer)
        if best is None or run is None:
            return
        run.add_file(Path(best.best_model_path), "checkpoints")
        if best.best_model_score is not None:
            run.set_tags({f"best.{best.monitor}": f"{float(best.best_model_score):.6g}"})
