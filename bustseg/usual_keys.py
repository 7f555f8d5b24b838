"""The keys of an experiment that people change most: the short help of `fit`, and what a misnamed option may mean.

Defaults are repeated here as text, since importing the parser takes seconds; a test compares them with it.
"""

from __future__ import annotations

import shutil
import textwrap

from bustseg.presets import NOT_A_FIT, presets

KEYS: dict[str, list[tuple[str, str, str]]] = {
    "model": [
        ("model.network", "", "class of the network, see below; set its arguments with --model.network.NAME"),
        ("model.loss", "bustseg.losses.BCELoss", "class of the loss, see below"),
        ("model.optimizer", "torch.optim.Adam", "class of the optimiser"),
        ("model.optimizer.lr", "1e-4", "its learning rate"),
        ("model.lr_scheduler", "", "class of a learning rate schedule"),
        ("model.threshold", "0.5", "probability above which a pixel is lesion"),
        ("model.postprocess", "", "changes to masks, such as small components removed or holes filled"),
    ],
    "data": [
        ("data.root", "$BUSI_ROOT", "folder of the data set"),
        ("data.source", "BUSI", "reader of its layout: BUSI, BUSBRA, Folders, Dicom, ... or a class"),
        ("data.split", "paper", "paper, grouped, lesion, curated, kfold, test_all, or a CSV file"),
        ("data.image_size", "224", "side of the network's input, or height and width"),
        ("data.batch_size", "16", "images per training step"),
        ("data.augmentation", "none", "none, ultrasound, ultrasound_strong, ultrasound_scanners"),
        ("data.num_workers", "auto", "processes that load images"),
    ],
    "training": [
        ("trainer.max_epochs", "50", "epochs at most"),
        ("early_stopping.patience", "10", "epochs without a better val/loss before it stops"),
        ("trainer.accelerator", "auto", "cpu, gpu, mps"),
        ("trainer.devices", "auto", "number of GPUs, or their indices"),
        ("trainer.precision", "bf16-mixed where fast", "32-true, bf16-mixed, 16-mixed"),
        ("checkpoint.monitor", "val/loss", "metric that decides which epoch is the best"),
        ("seed_everything", "0", "seed of weights, order and augmentation; true for a random one"),
    ],
    "tracking": [
        ("tracking.experiment", "bustseg", "MLflow experiment"),
        ("tracking.run_name", "config and time", "name of the run"),
        ("tracking.uri", "mlruns/mlflow.db", "MLflow store, or set MLFLOW_TRACKING_URI"),
    ],
}
"""By group: key, its default as text, its description."""

MEANT = {
    "epochs": "trainer.max_epochs",
    "epoch": "trainer.max_epochs",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "bs": "data.batch_size",
    "size": "data.image_size",
    "img_size": "data.image_size",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "workers": "data.num_workers",
    "seed": "seed_everything",
    "name": "tracking.run_name",
    "network": "model.network",
    "loss": "model.loss",
    "optimizer": "model.optimizer",
    "split": "data.split",
    "data": "data.root",
    "root": "data.root",
    "checkpoint": "ckpt_path",
    "resume": "ckpt_path",
    "patience": "early_stopping.patience",
}
"""The key for an option's name in other tools; a name that is the last part of a usual key needs no entry."""

NETWORKS = ("FusionUNet", "ADUNet", "DDRANet", "DPNet", "MRFECNN", "SwinUNet")
"""Classes of :mod:`bustseg.models` that are networks."""

LOSSES = ("BCELoss", "DiceLoss", "HybridLoss", "LesionLoss", "PresenceLoss")
"""Classes of :mod:`bustseg.losses`."""


def meant(option: str) -> str | None:
    """The key that a misnamed option probably means; None when that is not clear.

    Args:
        option: its name without leading dashes: ``epochs``, ``batch-size``
    """
    name = option.replace("-", "_").lower()
    endings = [key for rows in KEYS.values() for key, _, _ in rows if key.rpartition(".")[2] == name]
    return MEANT.get(name) or (endings[0] if len(endings) == 1 else None)


def help_text() -> str:
    """The usual keys, networks, losses and configs, in groups."""
    width = min(max(shutil.get_terminal_size().columns, 60), 110)
    lines = []
    for group, rows in KEYS.items():
        lines += ["", f"{group}:"]
        for key, default, text in rows:
            shown = f"{text} (default {default})" if default else text
            lines += _entry(f"--{key}", shown, width)
    lines += ["", "what ships:"]
    lines += _entry("networks", f"bustseg.models: {', '.join(NETWORKS)}; segmentation_models_pytorch: Unet, ...", width)
    lines += _entry("losses", f"bustseg.losses: {', '.join(LOSSES)}; any class that takes logits and mask", width)
    lines += _entry("configs", f"{_shipped()} (`bustseg configs` describes them)", width)
    return "\n".join(lines)


def _shipped() -> str:
    """The training presets in one line: a folder's names in braces, a long series by its first and last."""
    by_folder: dict[str, list[str]] = {}
    for name in presets():
        folder, _, own = name.rpartition("/")
        if folder not in NOT_A_FIT:
            by_folder.setdefault(folder, []).append(own)
    words: list[str] = []
    for folder, names in by_folder.items():
        if not folder:
            words += names
        elif len(names) > 15:
            words.append(f"{folder}/{names[0]} to {names[-1]}")
        else:
            words.append(f"{folder}/{{{', '.join(names)}}}")
    return ", ".join(words)


def _entry(name: str, text: str, width: int) -> list[str]:
    lines = textwrap.wrap(text, width - 28, break_long_words=False, break_on_hyphens=False) or [""]
    first = f"  {name:<25} {lines[0]}" if len(name) <= 25 else f"  {name} {lines[0]}"
    return [first, *(f"{'':<28}{line}" for line in lines[1:])]
