"""Figures of a sweep: its history, the effect of each key, pruned trials, and the Pareto front of two objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bustseg.figures.style import ALARM, GOOD, MAIN, QUIET, chart, chart_style, fitted, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "viridis"
"""Colour map of the objective: perceptually uniform, bright where it is best."""

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Axis:
    """One searched key, for drawing.

    Attributes:
        name: heading
        choices: labels of its choices, in the file's order; None for numbers
        log: whether numbers are drawn on a logarithmic scale
    """

    name: str
    choices: Sequence[str] | None = None
    log: bool = False


@dataclass(frozen=True)
class Point:
    """One trial, for drawing.

    Attributes:
        number: number of the trial
        state: how it ended
        values: its objectives; empty when it has none
        at: its value on each axis: a number, or a label of the choices
        epochs: the first objective by epoch, from 1
        front: whether it is on the Pareto front: no other trial is better in one objective and as good in the others
    """

    number: int
    state: State
    values: Sequence[float]
    at: Mapping[str, float | str]
    epochs: Mapping[int, float] = field(default_factory=dict)
    front: bool = False


@dataclass(frozen=True)
class Objective:
    """An objective of the sweep.

    Attributes:
        name: name of the metric
        maximize: whether more is better
    """

    name: str
    maximize: bool

    @property
    def label(self) -> str:
        """Its name and the direction that is better."""
        return f"{self.name} ({'higher' if self.maximize else 'lower'} is better)"


def write_plots(
    points: Sequence[Point],
    axes: Sequence[Axis],
    objectives: Sequence[Objective],
    shares: Mapping[str, float],
    folder: Path,
) -> list[Path]:
    """Draw the figures that the trials allow, each as PNG and SVG; returns the PNG files.

    Args:
        points: the trials, oldest first
        axes: the searched keys
        objectives: the objectives
        shares: share of the first objective's variance that each axis accounts for, by name; may be empty
        folder: where to
    """
    done = _complete(points)
    if not done:
        return []
    first = objectives[0]
    pictures: dict[str, tuple[bool, Callable[[Path], list[Path]]]] = {
        "history": (True, lambda path: draw_history(points, first, path)),
        "slice": (True, lambda path: draw_slice(points, axes, first, path)),
        "parallel_coordinate": (len(done) > 1, lambda path: draw_parallel(points, axes, first, path)),
        "importances": (bool(shares), lambda path: draw_importances(shares, first, path)),
        "epochs": (any(len(point.epochs) > 1 for point in points), lambda path: draw_epochs(points, first, path)),
        "pareto": (len(objectives) > 1, lambda path: draw_front(points, objectives, path)),
    }
    return [draw(folder / f"{name}.png")[0] for name, (possible, draw) in pictures.items() if possible]


def draw_history(points: Sequence[Point], objective: Objective, path: Path) -> list[Path]:
    """The objective by trial, the best so far, and which trials were pruned or failed."""
    with chart(f"Trials by {objective.name}", (6.8, 4.2)) as (figure, (axes,)):
        done = _complete(points)
        best: list[float] = []
        for point in done:
            better = max if objective.maximize else min
            best.append(better([*best[-1:], point.values[0]]))
        axes.plot([point.number for point in done], best, color=GOOD, drawstyle="steps-post", label="best so far")
        axes.plot(*_dots(done), "o", color=MAIN, markersize=5, linestyle="none", label=f"complete ({len(done)})")
        pruned = [point for point in points if point.state == "pruned"]
        if pruned:
            x, y = _dots([point for point in pruned if point.values])
            axes.plot(x, y, "x", color="#8c8c8c", markersize=6, label=f"pruned ({len(pruned)}), at its best epoch")
        failed = [point.number for point in points if point.state == "failed"]
        if failed:
            bottom = np.zeros(len(failed))
            label = f"failed ({len(failed)})"
            axes.plot(failed, bottom, "|", color=ALARM, markersize=10, transform=_bottom(axes), label=label)
        axes.set(xlabel="trial", ylabel=objective.label)
        _whole_numbers(axes)
        figure.legend(loc="outside lower center", ncols=4, fontsize=8)
        return save(figure, path)


def draw_slice(points: Sequence[Point], keys: Sequence[Axis], objective: Objective, path: Path) -> list[Path]:
    """The objective by the value of each key; later trials are darker."""
    from matplotlib.figure import Figure

    shown = _complete(points)
    across = min(len(keys), 4)
    down = math.ceil(len(keys) / across)
    with chart_style():
        figure = Figure(figsize=(max(2.6 * across + 1.2, 5), 3.3 * down + 0.2), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False)
        numbers = [point.number for point in shown]
        y = [point.values[0] for point in shown]
        drawn = None
        for place, (axes, key) in enumerate(zip(grid.flat, keys, strict=False)):
            x = _positions([point.at.get(key.name) for point in shown], key)
            jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(x)) if key.choices else np.zeros(len(x))
            drawn = axes.scatter(x + jitter, y, c=numbers, cmap="Blues", vmin=-max(numbers, default=1) / 2, s=26)
            drawn.set(edgecolor="#4d4d4d", linewidth=0.4)
            _label(axes, key)
            if place % across == 0:
                axes.set_ylabel(objective.name)
        for axes in grid.flat[len(keys) :]:
            axes.set_axis_off()
        grid[0, 0].set_title(f"{objective.name} by key")
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=grid, shrink=0.7, label="trial", ticks=_few(numbers))
            bar.ax.set_ylim(min(numbers, default=0), max(numbers, default=1) or 1)
        return save(figure, path)


def draw_parallel(points: Sequence[Point], keys: Sequence[Axis], objective: Objective, path: Path) -> list[Path]:
    """A line for each trial through its values of all keys, in the colour of its objective; the best ones on top."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = _complete(points)
    values = [point.values[0] for point in shown]
    low, high = min(values), max(*values, min(values) + 1e-9)
    norm = Normalize(low, high)
    colours = ScalarMappable(norm, COLOURS if objective.maximize else f"{COLOURS}_r")
    with chart(f"Trials by key and {objective.name}", (max(1.9 * (len(keys) + 1) + 1, 6), 4.4)) as (figure, (axes,)):
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        limits = [_limits([point.at.get(key.name) for point in shown], key) for key in keys]
        order = sorted(range(len(shown)), key=lambda k: values[k], reverse=not objective.maximize)
        for k in order:
            point = shown[k]
            heights = [
                _height(_positions([point.at.get(key.name)], key)[0], key, limit)
                for key, limit in zip(keys, limits, strict=True)
            ]
            heights.append(norm(values[k]))
            axes.plot(range(len(heights)), heights, color=colours.cmap(norm(values[k])), linewidth=1.6, alpha=0.85)
        for place, (key, limit) in enumerate(zip(keys, limits, strict=True)):
            _upright(axes, place, key, limit)
        _upright(axes, len(keys), Axis(objective.name), (low, high))
        names = [fitted(name, 1.8, 9) for name in (*(key.name for key in keys), objective.name)]
        axes.set(ylim=(-0.04, 1.04), xlim=(-0.35, len(keys) + 0.5), yticks=[])
        axes.set_xticks(range(len(names)), names, fontsize=9)
        axes.tick_params(length=0)
        figure.colorbar(colours, ax=axes, label=objective.label, pad=0.02)
        return save(figure, path)


def draw_importances(shares: Mapping[str, float], objective: Objective, path: Path) -> list[Path]:
    """Share of the objective's variance that each key accounts for."""
    with chart("What matters", (6.4, 0.45 * len(shares) + 1.3)) as (figure, (axes,)):
        names, lengths = list(shares)[::-1], list(shares.values())[::-1]
        axes.barh(names, lengths, color=MAIN, height=0.62)
        for place, share in enumerate(lengths):
            text = "< 0.01" if share < 0.01 else f"{share:.2f}"
            axes.text(share + 0.012, place, text, va="center", fontsize=9)
        axes.grid(visible=False, axis="y")
        axes.set(xlim=(0, max(1.0, *lengths) * 1.08), xlabel=f"share of the variance of {objective.name} (fANOVA)")
        return save(figure, path)


def draw_epochs(points: Sequence[Point], objective: Objective, path: Path) -> list[Path]:
    """The objective by epoch of every trial, and the epochs at which trials were pruned."""
    with chart(f"{objective.name} by epoch", (6.8, 4.4)) as (figure, (axes,)):
        done = _complete(points)
        sign = 1 if objective.maximize else -1
        best = max(done, key=lambda point: sign * point.values[0])
        for point in points:
            x, y = list(point.epochs), list(point.epochs.values())
            if point.state == "pruned":
                axes.plot(x, y, color=ALARM, linewidth=1, alpha=0.7, zorder=2)
                axes.plot(x[-1:], y[-1:], "x", color=ALARM, markersize=6, zorder=3)
            elif point is not best:
                axes.plot(x, y, color=QUIET, linewidth=1.2, zorder=1)
        axes.plot(list(best.epochs), list(best.epochs.values()), color=GOOD, linewidth=2.4, zorder=4)
        pruned = sum(point.state == "pruned" for point in points)
        lines = [("-", GOOD, f"best: trial {best.number}"), ("-", QUIET, "complete")]
        if pruned:
            lines.append(("x-", ALARM, f"pruned ({pruned} of {len(points)})"))
        for style, colour, label in lines:
            axes.plot([], [], style, color=colour, label=label)
        axes.set(xlabel="epoch", ylabel=objective.label)
        _whole_numbers(axes)
        figure.legend(loc="outside lower center", ncols=3)
        return save(figure, path)


def draw_front(points: Sequence[Point], objectives: Sequence[Objective], path: Path) -> list[Path]:
    """The first two objectives against each other, and the Pareto front."""
    second, first = objectives[1], objectives[0]
    with chart(f"{first.name} against {second.name}", (6.4, 4.6)) as (figure, (axes,)):
        done = [point for point in points if point.state == "complete" and len(point.values) > 1]
        others = [point for point in done if not point.front]
        front = sorted((point for point in done if point.front), key=lambda point: point.values[1])
        axes.plot([p.values[1] for p in others], [p.values[0] for p in others], "o", color=QUIET, label="dominated")
        corner: Any = "steps-post" if second.maximize != first.maximize else "steps-pre"
        x, y = [point.values[1] for point in front], [point.values[0] for point in front]
        axes.plot(x, y, color=GOOD, linewidth=1.2, drawstyle=corner, zorder=2)
        axes.plot(x, y, "o", color=GOOD, markersize=7, zorder=3, label="Pareto front, with the trials' numbers")
        # on the empty side of the front
        across, up = (5 if second.maximize else -5), (5 if first.maximize else -5)
        for point in front:
            axes.annotate(
                str(point.number),
                (point.values[1], point.values[0]),
                (across, up),
                textcoords="offset points",
                fontsize=9,
                ha="left" if across > 0 else "right",
                va="bottom" if up > 0 else "top",
            )
        axes.set(xlabel=second.label, ylabel=first.label)
        axes.margins(0.08)
        figure.legend(loc="outside lower center", ncols=2)
        return save(figure, path)


def _complete(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.state == "complete" and point.values]


def _dots(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    return [point.number for point in points], [point.values[0] for point in points]


def _bottom(axes: Axes) -> Any:
    """Transform with data coordinates in x and axes fractions in y."""
    return axes.get_xaxis_transform()


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _few(numbers: Sequence[int]) -> list[int]:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return sorted({low, (low + high) // 2, high})


def _positions(values: Sequence[Any], key: Axis) -> np.ndarray:
    """Positions of values on an axis; nan for a missing value."""
    if key.choices is not None:
        places = {label: place for place, label in enumerate(key.choices)}
        return np.array([places.get(str(value), np.nan) for value in values], dtype=float)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _label(axes: Axes, key: Axis) -> None:
    if key.choices is not None:
        long = sum(len(label) for label in key.choices) > 22
        axes.set_xticks(
            range(len(key.choices)),
            [fitted(label, 1.5, 9) for label in key.choices],
            fontsize=8,
            rotation=30 if long else 0,
            ha="right" if long else "center",
        )
        axes.set_xlim(-0.5, len(key.choices) - 0.5)
    elif key.log:
        axes.set_xscale("log")
    axes.set_xlabel(fitted(key.name, 2.4, 10))


def _limits(values: Sequence[Any], key: Axis) -> tuple[float, float]:
    if key.choices is not None:
        return 0.0, max(len(key.choices) - 1, 1)
    known = _positions(values, key)
    return float(np.nanmin(known)), float(np.nanmax(known))


def _height(position: float, key: Axis, limits: tuple[float, float]) -> float:
    """Position as a fraction of the range from the lowest to the highest value."""
    low, high = limits
    if key.log:
        position, low, high = (math.log(value) for value in (position, low, high))
    return 0.5 if high == low else (position - low) / (high - low)


def _upright(axes: Axes, place: int, key: Axis, limits: tuple[float, float]) -> None:
    """A vertical axis for a key, labelled with its values."""
    axes.plot([place, place], [0, 1], color="#4d4d4d", linewidth=1, zorder=5)
    if key.choices is not None:
        marks = {label: _height(k, key, limits) for k, label in enumerate(key.choices)}
    else:
        low, high = limits
        middle = math.sqrt(low * high) if key.log else (low + high) / 2
        values = [low] if low == high else [low, middle, high]
        marks = {f"{value:.3g}": _height(value, key, limits) for value in values}
    for text, height in marks.items():
        axes.text(
            place + 0.03,
            height,
            fitted(text, 1.4),
            fontsize=8,
            va="center",
            zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )
