"""A recipe as a point of a factorial design, and its configuration of `bustseg fit`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from studies.cross_source.data import SOURCES

FACTORS = {
    "letterbox": "the image's own proportions, padded, in place of a stretched square",
    "zoom": "magnification from 0.5 to 2 in place of 0.7 to 1.35",
    "looks": "scanners' looks (tone, gain over depth, resolution, compression) in place of the plain strong preset",
    "reference": "histogram or low frequencies of another training image",
    "balance": "sources and normals evened out by the square root of their numbers",
    "lesion_free": "15 % of the lesion images shown as a part without the lesion",
    "presence": "cross-entropy of the image's peak, weight 0.1 (PresenceLoss)",
    "large": "256 px in place of 192",
    "classify": "benign, malignant, normal as a second task, weight 0.2",
    "transplants": "half of the images get a lesion or tissue of another image",
    "deep": "deep supervision of the decoder, weight 0.4",
    "detection": "a coarse map of where there are lesions, weight 0.5; masks learned from lesions only (LesionLoss)",
}
"""Factors that can be switched on; with all off, it is the flagship's recipe without its gap and peak."""


@dataclass
class Recipe:
    """One training.

    Attributes:
        name: name of its files
        train: sources that it is trained on
        on: factors that are switched on
        encoder: ``lite0``, ``lite1`` or ``lite2``
        steps: optimiser steps, of 16 images each
        seed: seed of weights, order and augmentation
        all_parts: train on a source's training and test images (it is tested on other sources); otherwise only on the
            former
        lr: highest learning rate
        teacher: checkpoint of a teacher
        split: CSV file to use instead of the study's split
        maps: keep the logits of every image, not only its scores
    """

    name: str
    train: list[str]
    on: list[str] = field(default_factory=list)
    encoder: str = "lite2"
    steps: int = 1600
    seed: int = 0
    all_parts: bool = True
    lr: float = 1e-3
    teacher: str | None = None
    split: str | None = None
    maps: bool = False
    batch: int = 16

    def __post_init__(self) -> None:
        if unknown := set(self.on) - set(FACTORS):
            raise ValueError(f"unknown factors {sorted(unknown)}")

    @property
    def shape(self) -> str:
        """How images become squares."""
        return "letterbox" if "letterbox" in self.on else "stretch"

    @property
    def size(self) -> int:
        """Side of the network's input in pixels."""
        return 256 if "large" in self.on else 192

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def config(recipe: Recipe, data: Path, work: Path, workers: int) -> dict[str, Any]:
    """Complete configuration of the fit; writes its split to ``work``.

    Args:
        recipe: the training
        data: output of ``studies.cross_source.data unpack``
        work: folder of this training
        workers: loader processes
    """
    work.mkdir(parents=True, exist_ok=True)
    split = write_split(recipe, data, work)
    images = int((split["subset"] == "train").sum())
    epochs = max(1, round(recipe.steps * recipe.batch / images))
    steps = epochs * math.ceil(images / recipe.batch)
    on = set(recipe.on)
    loss: dict[str, Any] = {"class_path": "bustseg.losses.HybridLoss"}
    if "presence" in on:
        loss = {"class_path": "bustseg.losses.PresenceLoss", "init_args": {"pixels": loss, "weight": 0.1}}
    if "detection" in on:
        loss = {"class_path": "bustseg.losses.LesionLoss", "init_args": {"pixels": loss}}
    network = {
        "encoders": [f"timm/tf_efficientnet_{recipe.encoder}"],
        "attention": "cbam",
        "skips": True,
        "dropout": 0.2,
        "decoder_channels": [256, 128, 96, 64],
        "classify": 0.2 if "classify" in on else 0.0,
        "deep_supervision": 0.4 if "deep" in on else 0.0,
        "detection": 0.5 if "detection" in on else 0.0,
    }
    optimizer = {"lr": recipe.lr, "weight_decay": 1e-2, "fused": True}
    model: dict[str, Any] = {
        "network": {"class_path": "bustseg.models.FusionUNet", "init_args": network},
        "loss": loss,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.OneCycleLR",
            "init_args": {"max_lr": recipe.lr, "total_steps": steps, "pct_start": 0.05, "div_factor": 10.0},
        },
        "lr_scheduler_interval": "step",
        "flip": True,
    }
    if recipe.teacher:
        model |= {"teacher": recipe.teacher, "teacher_weight": 0.5}
    return {
        "seed_everything": recipe.seed,
        "model": model,
        "data": {
            "source": combined(recipe.train, data / recipe.shape),
            "split": str(work / "split.csv"),
            "image_size": recipe.size,
            "resize": recipe.shape,  # the files have this shape already, and the model must be told
            "batch_size": recipe.batch,
            "augmentation": augmentation(on),
            "balance": 0.5 if "balance" in on else 0.0,
            "transplants": 0.5 if "transplants" in on else 0.0,
            "lesion_free": 0.15 if "lesion_free" in on else 0.0,
            "num_workers": workers,
        },
        "trainer": {
            "max_epochs": epochs,
            "check_val_every_n_epoch": epochs,
            "gradient_clip_val": 5.0,
            "callbacks": [{"class_path": "bustseg.callbacks.MovingAverage", "init_args": {"decay": 0.995}}],
        },
        "early_stopping": {"patience": epochs},
        "tracking": {"experiment": "cross-source", "run_name": recipe.name, "log_model": False},
    }


def combined(sources: list[str], root: Path) -> dict[str, Any]:
    """The data section's source: these sources as one."""
    folders = {"class_path": "Folders", "init_args": {"labels": "table.csv"}}
    parts = [{"source": folders, "root": str(root / name), "name": name} for name in sources]
    return {"class_path": "Combined", "init_args": {"parts": parts}}


def write_split(recipe: Recipe, data: Path, work: Path) -> pd.DataFrame:
    """Split of the sources that are trained on, also as ``work/split.csv``."""
    frames = []
    for name in recipe.train:
        table = pd.read_csv(data / recipe.shape / name / "table.csv", dtype=str, keep_default_na=False)
        frames.append(pd.DataFrame({"image": name + "/" + table["image"], "subset": table["subset"]}))
    split = pd.concat(frames, ignore_index=True)
    if recipe.split is not None:
        own = pd.read_csv(recipe.split, dtype=str)
        split = own[["image", "subset"]]
    elif recipe.all_parts:
        split["subset"] = split["subset"].replace("test", "train")
    split.to_csv(work / "split.csv", index=False)
    return split


def augmentation(on: set[str]) -> list[dict[str, Any]]:
    """The transforms in the form of a configuration."""
    import cv2

    reflect = cv2.BORDER_REFLECT_101
    steps: list[tuple[str, dict[str, Any]]] = [
        ("HorizontalFlip", {"p": 0.5}),
        (
            "Affine",
            {
                "scale": [0.5, 2.0] if "zoom" in on else [0.7, 1.35],
                "translate_percent": [-0.12, 0.12],
                "rotate": [-20, 20],
                "shear": [-8, 8],
                "border_mode": reflect,
                "p": 0.85,
            },
        ),
        ("ElasticTransform", {"alpha": 50, "sigma": 7, "border_mode": reflect, "p": 0.15}),
        ("GridDistortion", {"num_steps": 5, "distort_limit": [-0.2, 0.2], "border_mode": reflect, "p": 0.15}),
    ]
    if "reference" in on:
        steps += [
            ("HistogramMatching", {"blend_ratio": [0.3, 1.0], "metadata_key": "reference", "p": 0.2}),
            ("FDA", {"beta_limit": [0.0, 0.05], "metadata_key": "reference", "p": 0.2}),
        ]
    if "looks" in on:
        steps += [
            (
                "RandomBrightnessContrast",
                {"brightness_limit": [-0.25, 0.25], "contrast_limit": [-0.35, 0.35], "p": 0.7},
            ),
            ("RandomGamma", {"gamma_limit": [55, 180], "p": 0.5}),
            ("RandomToneCurve", {"scale": 0.2, "p": 0.3}),
            ("Illumination", {"mode": "linear", "intensity_range": [0.05, 0.2], "effect_type": "both", "p": 0.3}),
            ("Sharpen", {"alpha": [0.1, 0.5], "lightness": [0.9, 1.1], "p": 0.12}),
            ("UnsharpMask", {"blur_limit": [3, 7], "alpha": [0.2, 0.6], "p": 0.12}),
            ("GaussianBlur", {"blur_limit": [3, 7], "p": 0.12}),
            ("Downscale", {"scale_range": [0.3, 0.8], "interpolation_pair": {"downscale": 3, "upscale": 1}, "p": 0.15}),
            ("MultiplicativeNoise", {"multiplier": [0.7, 1.3], "elementwise": True, "p": 0.15}),
            ("GaussNoise", {"std_range": [0.01, 0.06], "p": 0.15}),
            ("ImageCompression", {"quality_range": [40, 95], "p": 0.2}),
        ]
    else:
        steps += [
            ("RandomBrightnessContrast", {"brightness_limit": [-0.3, 0.3], "contrast_limit": [-0.3, 0.3], "p": 0.7}),
            ("RandomGamma", {"gamma_limit": [60, 160], "p": 0.4}),
            ("MultiplicativeNoise", {"multiplier": [0.75, 1.25], "elementwise": True, "p": 0.13}),
            ("GaussianBlur", {"blur_limit": [3, 7], "p": 0.13}),
            ("Downscale", {"scale_range": [0.4, 0.8], "p": 0.13}),
        ]
    shadows = {
        "num_holes_range": [1, 2],
        "hole_height_range": [0.3, 0.9],
        "hole_width_range": [0.03, 0.1],
        "fill": 12.0,
    }
    steps.append(("CoarseDropout", {**shadows, "p": 0.15}))
    return [{"class_path": f"albumentations.{name}", "init_args": arguments} for name, arguments in steps]


def leave_one_out(left_out: str) -> list[str]:
    """The other sources."""
    return [name for name in SOURCES if name != left_out]
