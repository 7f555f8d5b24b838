"""Curves over thresholds: pixel ROC, precision-recall, Dice by threshold and reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bustseg.figures.style import QUIET, SUBSETS, chart, note, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bands = Mapping[str, pd.DataFrame]
"""Limits of a curve by subset, from :class:`bustseg.metrics.bands.CurveBands`."""

_BAND = 0.18  # opacity


def draw_roc(frame: pd.DataFrame, context: Mapping[str, Any], bands: Bands, path: Path) -> None:
    """Draw pixel ROC curves with their bands, and an enlarged view of the upper left corner.

    Args:
        frame: columns ``subset``, ``false_positive_rate``, ``true_positive_rate``, ``threshold``
        context: ``scores`` by subset and the ``threshold`` in use, as in ``curves.json``
        bands: limits of the curves of some subsets
        path: PNG to write; an SVG is written next to it
    """
    with chart("Pixel ROC", (5.6, 5.2)) as (figure, (axes,)):
        places = [axes]
        # otherwise the curves run through that area
        if min(found["auc_pixel"] for found in context["scores"].values()) > 0.9:
            corner = axes.inset_axes((0.42, 0.36, 0.56, 0.54))
            corner.set(xlim=(0, 0.3), ylim=(0.7, 1.005), xticks=[0, 0.1, 0.2, 0.3], yticks=[0.7, 0.8, 0.9, 1.0])
            corner.tick_params(labelsize=8)
            zoom = axes.indicate_inset_zoom(corner, edgecolor="#8c8c8c")
            for line in zoom.connectors or ():  # the connectors would cross the curves
                line.set_visible(False)
            places.append(corner)
        for place in places:
            place.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
            for subset, part in _subsets(frame):
                _band(place, bands.get(subset), "false_positive_rate", subset)
                scores = context["scores"][subset]
                label = f"{subset}: AUC {scores['auc_pixel']:.3f}{_limits(scores.get('auc_pixel_interval'))}"
                place.plot(part["false_positive_rate"], part["true_positive_rate"], color=SUBSETS[subset], label=label)
                _dot(place, _at(part, context["threshold"])[["false_positive_rate", "true_positive_rate"]], subset)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="false positive rate (1 - specificity)", ylabel="true positive rate (recall)")
        axes.legend(loc="lower right", title=_legend_title(context, bands), title_fontsize=8)
        save(figure, path)


def draw_precision_recall(frame: pd.DataFrame, context: Mapping[str, Any], bands: Bands, path: Path) -> None:
    """Draw precision-recall curves with their bands, over lines of equal Dice.

    Args:
        frame: columns ``subset``, ``recall``, ``precision``, ``threshold``
        context, bands, path: as in :func:`draw_roc`
    """
    with chart("Pixel precision and recall", (5.6, 5.4)) as (figure, (axes,)):
        for dice in (0.5, 0.6, 0.7, 0.8, 0.9):
            start = dice / (2 - dice)
            recall = np.linspace(start, 1, 60)
            axes.plot(recall, dice * recall / (2 * recall - dice), ":", color=QUIET, linewidth=0.9)
            text = f"Dice {dice:g}" if dice == 0.5 else f"{dice:g}"
            axes.text(start, 1.015, text, fontsize=8, color="#808080", ha="right" if dice == 0.5 else "center")
        for subset, part in _subsets(frame):
            _band(axes, bands.get(subset), "recall", subset)
            label = f"{subset}: AP {context['scores'][subset]['average_precision']:.3f}"
            axes.plot(part["recall"], part["precision"], color=SUBSETS[subset], label=label)
            _dot(axes, _at(part, context["threshold"])[["recall", "precision"]], subset)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="recall", ylabel="precision")
        axes.set_title(axes.get_title(loc="left"), pad=18)
        axes.legend(loc="lower left", title=_legend_title(context, bands), title_fontsize=8)
        save(figure, path)


def draw_sweep(frame: pd.DataFrame, context: Mapping[str, Any], bands: Bands, path: Path) -> None:
    """Draw Dice and the false alarms on normals by threshold.

    Args:
        frame: columns ``subset``, ``threshold``, ``dice_lesion``, ``dice_pooled`` and with normals
            ``false_positive_rate_normal``
        context, bands, path: as in :func:`draw_roc`
    """
    lines = {"dice_lesion": ("-", "mean per lesion image"), "dice_pooled": ("--", "pooled pixels")}
    name = "false_positive_rate_normal"
    alarms = [(subset, part) for subset, part in _subsets(frame) if name in part and part[name].notna().any()]
    with chart("Dice by threshold", (6.4, 5.6 if alarms else 4.6), (2.6, 1) if alarms else (1,)) as (figure, axes):
        for subset, part in _subsets(frame):
            if (limits := bands.get(subset)) is not None:
                low, high = limits["dice_lesion_low"], limits["dice_lesion_high"]
                _fill(axes[0], limits["threshold"], low, high, SUBSETS[subset])
            for column, (line, text) in lines.items():
                axes[0].plot(part["threshold"], part[column], line, color=SUBSETS[subset], label=f"{subset}, {text}")
            best = context["scores"][subset]
            _dot(axes[0], (best["best_threshold"], best["dice_lesion_best_threshold"]), subset)
        for subset, part in alarms:
            if (limits := bands.get(subset)) is not None and f"{name}_low" in limits:
                _fill(axes[1], limits["threshold"], limits[f"{name}_low"], limits[f"{name}_high"], SUBSETS[subset])
            axes[1].plot(part["threshold"], part[name], color=SUBSETS[subset])
        for place in axes:
            place.axvline(context["threshold"], color=QUIET, linewidth=1)
            place.set(xlim=(0, 1), ylim=(0, 1.02))
        axes[0].set_ylabel("Dice")
        if alarms:
            axes[1].set_ylabel("normals with\na false alarm")
        axes[-1].set_xlabel("threshold on the probability")
        words = "dots: best threshold; grey line: threshold in use" + "; bands: 95 %, over images" * bool(bands)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, title=words, title_fontsize=8)
        save(figure, path)


def draw_reliability(frame: pd.DataFrame, context: Mapping[str, Any], bands: Bands, path: Path) -> None:
    """Draw the reliability diagram, and below it the share of pixels in each bin.

    Args:
        frame: columns ``subset``, ``pixels``, ``probability``, ``frequency``, a row per bin
        context, path: as in :func:`draw_roc`
        bands: not used
    """
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
        note(axes, 0.97, "below the diagonal: overconfident about lesions", "right")
        axes.legend(loc="upper left")
        save(figure, path)


def _subsets(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(subset, part) for subset in SUBSETS if len(part := frame[frame["subset"] == subset])]


def _at(part: pd.DataFrame, threshold: float) -> pd.Series:
    return part.iloc[int((part["threshold"] - threshold).abs().to_numpy().argmin())]


def _dot(axes: Axes, point: Sequence[float] | pd.Series, subset: str) -> None:
    x, y = point
    axes.plot(x, y, "o", color=SUBSETS[subset], markersize=5.5)


def _band(axes: Axes, limits: pd.DataFrame | None, x: str, subset: str) -> None:
    if limits is not None:
        _fill(axes, limits[x], limits["low"], limits["high"], SUBSETS[subset])


def _fill(axes: Axes, x: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> None:
    axes.fill_between(x.to_numpy(), low.to_numpy(), high.to_numpy(), color=colour, alpha=_BAND, linewidth=0)


def _limits(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def _legend_title(context: Mapping[str, Any], bands: Bands) -> str:
    return f"dots: threshold {context['threshold']:g}" + "; bands: 95 %, over images" * bool(bands)
