"""How the pictures of a run look: colours, fonts and sizes, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes a third of a second that a training need not wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBSETS = {"train": "#8c8c8c", "val": "#e08214", "test": "#1f5fa8"}
"""Colour of each subset's curve."""

ALARM = "#b2182b"
"""Curves that show what went wrong."""

QUIET = "#b8b8b8"
"""Lines that only orient: diagonals, levels, chance."""

DPI = 110

_RC: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def chart(
    title: str, size: tuple[float, float], ratios: tuple[float, ...] = (1,)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Figure in the house style, as is what is drawn inside the ``with``.

    Args:
        title: stands over the uppermost axes
        size: width and height in inches
        ratios: height of each of the axes, which stand below each other and share x
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0].tolist()
        axes[0].set_title(title)
        yield figure, axes


def picture_grid(rows: int, columns: int, title: str) -> tuple[Figure, Any]:
    """Figure for ``rows`` x ``columns`` images, and the (rows, columns) array of its empty axes."""
    from matplotlib.figure import Figure

    # placed by hand: a layout engine takes longer than the drawing
    cell, heading, gap, top = 2.2, 0.38, 0.08, 0.3
    width, height = columns * (cell + gap) + gap, rows * (cell + heading) + top
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=gap / width,
        right=1 - gap / width,
        bottom=gap / 2 / height,
        top=1 - (top + heading) / height,
        wspace=gap / cell,
        hspace=heading / cell,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    figure.text(0.5, 1 - 0.06 / height, title, fontsize=9, ha="center", va="top")
    return figure, grid


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the PNG's size hardly depends on the level, its time does
    figure.savefig(path, dpi=DPI, pil_kwargs={"compress_level": 3})
    return path
