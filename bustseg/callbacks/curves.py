"""Curves of a test: pixel ROC, precision-recall, Dice by threshold and reliability, as pictures and as data."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from bustseg.callbacks.style import ALARM, QUIET, SUBSETS, chart, save
from bustseg.callbacks.subsets import SubsetCallback, log_subset
from bustseg.data.datamodule import Batch
from bustseg.metrics import Calibration, DiceSweep, PixelCurves, best_threshold
from bustseg.metrics.curves import SWEEP, thin
from bustseg.progress import console
from bustseg.task import SegmentationTask
from bustseg.tracking import Tracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SWEPT = ("val", "test")


class TestCurves(SubsetCallback):
    """After a test, leaves ``curves/``: ``roc``, ``precision_recall``, ``dice_by_threshold`` and ``reliability``.

    Each is a PNG and a CSV of at most 500 points per subset; ``curves.json`` has the numbers. Memory is bounded:
    histograms of at most 24 MB per subset, and 0.8 kB per validation and test image.
    """

    __test__ = False  # no test class, whatever pytest reads into the name

    def __init__(self) -> None:
        self._curves: dict[str, PixelCurves] = {}
        self._sweeps: dict[str, DiceSweep] = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # all of them on every process, or one would wait for another that has seen no batch of a subset
        self._curves = {subset: PixelCurves().to(pl_module.device) for subset in SUBSETS if subset != "test"}
        self._sweeps = {subset: DiceSweep().to(pl_module.device) for subset in _SWEPT}

    def on_subset_batch(self, task: SegmentationTask, subset: str, logits: Tensor, masks: Tensor, batch: Batch) -> None:
        if subset in self._curves:  # the task has counted the test itself
            self._curves[subset].update(logits, batch["mask"])
        if subset in self._sweeps:
            self._sweeps[subset].update(logits, batch["mask"], batch["index"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SegmentationTask):
            return
        curves = {**self._curves, "test": pl_module.curves("test")}
        # without lesion or background pixels there is no curve
        scores = {subset: found for subset in SUBSETS if (found := _scores(curves[subset]))}
        sweeps = {
            subset: means for subset, metric in self._sweeps.items() if "dice_lesion" in (means := metric.compute())
        }
        _add_best_thresholds(scores, sweeps)
        for subset, found in scores.items():
            log_subset(
                trainer,
                subset,
                {name: value for name, value in found.items() if name != "auc_pixel" or subset != "test"},
            )
        drawn = {subset: curves[subset] for subset in scores}
        data = {
            "roc": (roc_data(drawn), draw_roc),
            "precision_recall": (precision_recall_data(drawn), draw_precision_recall),
            "dice_by_threshold": (sweep_data(drawn, sweeps), draw_sweep),
            "reliability": (reliability_data(drawn), draw_reliability),
        }
        self._curves, self._sweeps = {}, {}
        if not (trainer.is_global_zero and scores):
            return
        shown = "  ".join(f"{subset} {found['auc_pixel']:.4f}" for subset, found in scores.items())
        console.print(f"pixel AUC  {shown}", highlight=False)
        if not isinstance(trainer.logger, Tracker):
            return
        context = {"scores": scores, "threshold": pl_module.threshold}
        with tempfile.TemporaryDirectory() as folder:
            for name, (frame, draw) in data.items():
                if frame.empty:
                    continue
                frame.to_csv(Path(folder) / f"{name}.csv", index=False, float_format="%.6g")
                draw(frame, context, Path(folder) / f"{name}.png")
            (Path(folder) / "curves.json").write_text(json.dumps(context, indent=1))
            trainer.logger.log_folder(Path(folder), "curves")


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
        # chosen where one may choose, scored where one may not
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
        # the point at recall 0 has no threshold and is drawn by none of the pixels
        frames.append(_thinned(subset, recall[1:], precision[1:], ("recall", "precision"), thresholds))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def sweep_data(curves: dict[str, PixelCurves], sweeps: dict[str, dict[str, Tensor]]) -> pd.DataFrame:
    """Columns ``subset``, ``threshold``, ``dice_pooled`` and those of :meth:`DiceSweep.compute`."""
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


def _subsets(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(subset, part) for subset in SUBSETS if len(part := frame[frame["subset"] == subset])]


def _at(part: pd.DataFrame, threshold: float) -> pd.Series:
    return part.iloc[int((part["threshold"] - threshold).abs().to_numpy().argmin())]


def draw_roc(frame: pd.DataFrame, context: dict[str, Any], path: Path) -> None:
    """Draw the ROC curves of :func:`roc_data`, with the corner that matters enlarged."""
    with chart("Pixel ROC", (5.6, 5.2)) as (figure, (axes,)):
        places = [axes]
        if min(found["auc_pixel"] for found in context["scores"].values()) > 0.9:  # else the curves run there
            corner = axes.inset_axes((0.4, 0.31, 0.58, 0.56))
            corner.set(xlim=(0, 0.3), ylim=(0.7, 1.005), xticks=[0, 0.1, 0.2, 0.3], yticks=[0.7, 0.8, 0.9, 1.0])
            corner.tick_params(labelsize=8)
            axes.indicate_inset_zoom(corner, edgecolor=QUIET)
            places.append(corner)
        for place in places:
            place.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
            for subset, part in _subsets(frame):
                label = f"{subset}: AUC {context['scores'][subset]['auc_pixel']:.3f}"
                place.plot(part["false_positive_rate"], part["true_positive_rate"], color=SUBSETS[subset], label=label)
                _dot(place, _at(part, context["threshold"])[["false_positive_rate", "true_positive_rate"]], subset)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (recall)")
        axes.legend(loc="lower right", title=f"dots: threshold {context['threshold']:g}", title_fontsize=8)
        save(figure, path)


def draw_precision_recall(frame: pd.DataFrame, context: dict[str, Any], path: Path) -> None:
    """Draw the precision-recall curves of :func:`precision_recall_data` over lines of equal Dice."""
    with chart("Pixel precision and recall", (5.6, 5.4)) as (figure, (axes,)):
        for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
            start = dice / (2 - dice)
            recall = np.linspace(start, 1, 60)
            axes.plot(recall, dice * recall / (2 * recall - dice), ":", color=QUIET, linewidth=0.9)
            text = f"Dice {dice:g}" if dice == 0.5 else f"{dice:g}"
            axes.text(start, 1.015, text, fontsize=8, color="#808080", ha="right" if dice == 0.5 else "center")
        for subset, part in _subsets(frame):
            label = f"{subset}: AP {context['scores'][subset]['average_precision']:.3f}"
            axes.plot(part["recall"], part["precision"], color=SUBSETS[subset], label=label)
            _dot(axes, _at(part, context["threshold"])[["recall", "precision"]], subset)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="recall", ylabel="precision")
        axes.set_title(axes.get_title(loc="left"), pad=18)
        axes.legend(loc="lower left", title=f"dots: threshold {context['threshold']:g}", title_fontsize=8)
        save(figure, path)


def draw_sweep(frame: pd.DataFrame, context: dict[str, Any], path: Path) -> None:
    """Draw Dice and the false alarms on normals of :func:`sweep_data` by threshold."""
    lines = {"dice_lesion": ("-", "mean per lesion image"), "dice_pooled": ("--", "pooled pixels")}
    with chart("Dice by threshold", (6.4, 4.6)) as (figure, (axes,)):
        for subset, part in _subsets(frame):
            for name, (line, text) in lines.items():
                axes.plot(part["threshold"], part[name], line, color=SUBSETS[subset], label=f"{subset}, {text}")
            best = context["scores"][subset]
            _dot(axes, (best["best_threshold"], best["dice_lesion_best_threshold"]), subset)
        test = frame[frame["subset"] == "test"]
        if "false_positive_rate_normal" in test and test["false_positive_rate_normal"].notna().any():
            label = "test, share of normals with a false alarm"
            axes.plot(test["threshold"], test["false_positive_rate_normal"], color=ALARM, linewidth=1.2, label=label)
        axes.axvline(context["threshold"], color=QUIET, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="threshold on the probability", ylabel="Dice, share")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        _note(axes, 0.01, "dots: best threshold; grey line: threshold in use", "left")
        save(figure, path)


def draw_reliability(frame: pd.DataFrame, context: dict[str, Any], path: Path) -> None:
    """Draw the reliability diagram of :func:`reliability_data`, and below it the share of pixels behind each point."""
    with chart("Reliability of pixel probabilities", (5.6, 6.2), (3.4, 1)) as (figure, (axes, share)):
        axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
        for subset, part in _subsets(frame):
            part = part[part["pixels"] > 0]
            label = f"{subset}: ECE {context['scores'][subset]['ece']:.3f}"
            style: dict[str, Any] = {"color": SUBSETS[subset], "marker": "o", "markersize": 4}
            axes.plot(part["probability"], part["frequency"], label=label, **style)
            share.plot(part["probability"], part["pixels"] / part["pixels"].sum(), **style)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), ylabel="share of the pixels that are lesion")
        share.set(yscale="log", xlabel="mean predicted probability of the bin", ylabel="share of\nall pixels")
        _note(axes, 0.97, "below the diagonal: too sure of lesions", "right")
        axes.legend(loc="upper left")
        save(figure, path)


def _dot(axes: Axes, point: Sequence[float] | pd.Series, subset: str) -> None:
    x, y = point
    axes.plot(x, y, "o", color=SUBSETS[subset], markersize=5.5)


def _note(axes: Axes, x: float, text: str, side: str) -> None:
    axes.text(x, 0.02, text, ha=side, fontsize=8, color="#707070", transform=axes.transAxes)
