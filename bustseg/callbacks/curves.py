"""Curves of a test: pixel ROC, precision-recall, Dice by threshold and reliability, as pictures and tables."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from bustseg.callbacks.per_image import known_groups
from bustseg.callbacks.subsets import SubsetCallback, log_subset
from bustseg.data.datamodule import Batch, UltrasoundDataModule
from bustseg.data.sources import Sample
from bustseg.figures.curves import Bands, draw_precision_recall, draw_reliability, draw_roc, draw_sweep
from bustseg.figures.style import SUBSETS
from bustseg.metrics import Calibration, PixelCurves, ThresholdSweep, best_threshold
from bustseg.metrics.bands import CurveBands
from bustseg.metrics.curves import SWEEP, thin
from bustseg.metrics.sweep import ImageSweeps, sweep_means
from bustseg.progress import console
from bustseg.runs.tracker import run_of
from bustseg.task import SegmentationTask

_SWEPT = ("val", "test")


class TestCurves(SubsetCallback):
    """After a test, writes ``curves/``: ``roc``, ``precision_recall``, ``dice_by_threshold`` and ``reliability``.

    Each is a PNG, an SVG and a CSV of at most 500 points per subset, and for validation and test a CSV with the limits
    of its 95 % band over images (``roc_band.csv``); ``curves.json`` has the numbers. Memory is bounded: histograms of
    at most 24 MB per subset, and 3.2 kB per validation and test image.
    """

    __test__ = False  # pytest would collect it by its name

    def __init__(self) -> None:
        self._curves: dict[str, PixelCurves] = {}
        self._sweeps: dict[str, ThresholdSweep] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # every process needs all of them, even if it gets no batch of a subset; otherwise the others would wait for it
        self._curves = {subset: PixelCurves().to(pl_module.device) for subset in SUBSETS if subset != "test"}
        self._sweeps = {subset: ThresholdSweep().to(pl_module.device) for subset in _SWEPT}

    def on_subset_batch(self, task: SegmentationTask, subset: str, logits: Tensor, masks: Tensor, batch: Batch) -> None:
        if subset in self._curves:  # the task has already counted the test images
            self._curves[subset].update(logits, batch["mask"])
        if subset in self._sweeps:
            self._sweeps[subset].update(logits, batch["mask"], batch["index"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SegmentationTask):
            return
        curves = {**self._curves, "test": pl_module.curves("test")}
        # a subset without lesion or without background pixels has no curve
        scores = {subset: found for subset in SUBSETS if (found := _scores(curves[subset]))}
        images = {subset: metric.per_image() for subset, metric in self._sweeps.items()}
        sweeps = {subset: means for subset, found in images.items() if "dice_lesion" in (means := sweep_means(found))}
        _add_best_thresholds(scores, sweeps)
        for subset, found in scores.items():
            log_subset(
                trainer,
                subset,
                {name: value for name, value in found.items() if name != "auc_pixel" or subset != "test"},
            )
        drawn = {subset: curves[subset] for subset in scores}
        frames = {
            "roc": roc_data(drawn),
            "precision_recall": precision_recall_data(drawn),
            "dice_by_threshold": sweep_data(drawn, sweeps),
            "reliability": reliability_data(drawn),
        }
        self._curves, self._sweeps = {}, {}
        if not (trainer.is_global_zero and scores):
            return
        shown = "  ".join(f"{subset} {found['auc_pixel']:.4f}" for subset, found in scores.items())
        console.print(f"pixel AUC  {shown}", highlight=False)
        datamodule, run = trainer.datamodule, run_of(trainer)  # type: ignore[attr-defined]
        if run is None or not isinstance(datamodule, UltrasoundDataModule):
            return
        bands = curve_bands({subset: images[subset] for subset in scores if subset in images}, datamodule)
        intervals = {subset: {"auc_pixel_interval": own.auc()} for subset, own in bands.items()}
        context = {
            "scores": {subset: {**found, **intervals.get(subset, {})} for subset, found in scores.items()},
            "threshold": pl_module.threshold,
        }
        with tempfile.TemporaryDirectory() as folder:
            write_curves(frames, context, bands, Path(folder))
            run.add_files(Path(folder), "curves")


def curve_bands(images: dict[str, ImageSweeps], datamodule: UltrasoundDataModule) -> dict[str, CurveBands]:
    """Bands by subset; groups of images (copies, patients) are drawn together where the split or source knows them."""
    groups = known_groups(datamodule)
    found = {}
    for subset, counts in images.items():
        samples: list[Sample] = [datamodule.samples[index] for index in counts.positions]
        names = np.array([groups.get(sample.id) or sample.group or f"image {sample.id}" for sample in samples])
        found[subset] = CurveBands(counts, names, np.array([sample.label for sample in samples]))
    return found


def write_curves(
    frames: dict[str, pd.DataFrame], context: dict[str, Any], bands: dict[str, CurveBands], folder: Path
) -> None:
    """Write pictures, tables and ``curves.json``.

    Args:
        frames: of :func:`roc_data`, ``precision_recall_data``, ``sweep_data`` and ``reliability_data``
        context: content of ``curves.json``
        bands: by subset
        folder: where to
    """
    limits: dict[str, Bands] = {
        "roc": {subset: found.roc() for subset, found in bands.items()},
        "precision_recall": {subset: found.precision_recall() for subset, found in bands.items()},
        "dice_by_threshold": {subset: found.by_threshold() for subset, found in bands.items()},
    }
    draw = {"roc": draw_roc, "precision_recall": draw_precision_recall, "dice_by_threshold": draw_sweep}
    draw["reliability"] = draw_reliability
    for name, frame in frames.items():
        if frame.empty:
            continue
        frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        if own := limits.get(name):
            table = pd.concat([band.assign(subset=subset) for subset, band in own.items()], ignore_index=True)
            table.to_csv(folder / f"{name}_band.csv", index=False, float_format="%.6g")
        draw[name](frame, context, limits.get(name, {}), folder / f"{name}.png")
    (folder / "curves.json").write_text(json.dumps(context, indent=1))


def _scores(curves: PixelCurves) -> dict[str, float]:
    auc = curves.compute()
    if not auc:
        return {}
    return {
        "auc_pixel": float(auc["auc_pixel"]),
        "average_precision": float(curves.average_precision()),
        "ece": float(curves.calibration().ece),
    }


def _add_best_thresholds(scores: dict[str, dict[str, float]], sweeps: dict[str, dict[str, Tensor]]) -> None:
    for subset, means in sweeps.items():
        threshold, dice = best_threshold(means["dice_lesion"])
        scores[subset] |= {"best_threshold": threshold, "dice_lesion_best_threshold": dice}
    if {"val", "test"} <= set(sweeps):
        # the threshold chosen on the validation images, scored on the test images
        place = int((SWEEP - scores["val"]["best_threshold"]).abs().argmin())
        scores["test"]["dice_lesion_val_threshold"] = float(sweeps["test"]["dice_lesion"][place])


def _thinned(subset: str, x: Tensor, y: Tensor, names: tuple[str, str], thresholds: Tensor) -> pd.DataFrame:
    kept = thin(x.numpy(), y.numpy())
    columns = dict(zip((*names, "threshold"), (x[kept], y[kept], thresholds[kept]), strict=True))
    return pd.DataFrame({"subset": subset, **{name: column.numpy() for name, column in columns.items()}})


def roc_data(curves: dict[str, PixelCurves]) -> pd.DataFrame:
    """Columns ``subset``, ``false_positive_rate``, ``true_positive_rate``, ``threshold``."""
    names = ("false_positive_rate", "true_positive_rate")
    frames = []
    for subset, metric in curves.items():
        fpr, tpr, thresholds = metric.roc()
        frames.append(_thinned(subset, fpr, tpr, names, thresholds))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def precision_recall_data(curves: dict[str, PixelCurves]) -> pd.DataFrame:
    """Columns ``subset``, ``recall``, ``precision``, ``threshold``, with falling thresholds."""
    frames = []
    for subset, metric in curves.items():
        precision, recall, thresholds = (values.flip(0) for values in metric.precision_recall())
        # the point at recall 0 has no threshold and belongs to no pixel
        frames.append(_thinned(subset, recall[1:], precision[1:], ("recall", "precision"), thresholds))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def sweep_data(curves: dict[str, PixelCurves], sweeps: dict[str, dict[str, Tensor]]) -> pd.DataFrame:
    """Columns ``subset``, ``threshold``, ``dice_pooled`` and those of :func:`bustseg.metrics.sweep.sweep_means`."""
    frames = []
    for subset, means in sweeps.items():
        columns = {"threshold": SWEEP, "dice_pooled": curves[subset].dice_by_threshold()[1], **means}
        frames.append(pd.DataFrame({"subset": subset, **{name: value.numpy() for name, value in columns.items()}}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def reliability_data(curves: dict[str, PixelCurves]) -> pd.DataFrame:
    """Columns ``subset``, ``from``, ``to`` (limits of the bin), ``pixels``, ``probability``, ``frequency``."""
    frames = []
    for subset, metric in curves.items():
        found: Calibration = metric.calibration()
        columns = {"from": found.edges[:-1], "to": found.edges[1:], "pixels": found.pixels}
        columns |= {"probability": found.probability, "frequency": found.frequency}
        frames.append(pd.DataFrame({"subset": subset, **{name: value.numpy() for name, value in columns.items()}}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
