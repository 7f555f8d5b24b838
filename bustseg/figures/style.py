"""The style of all figures: colours, fonts, sizes and files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing matplotlib takes a third of a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBSETS = {"train": "#8c8c8c", "val": "#e08214", "test": "#1f5fa8"}
"""Colour of each subset's curve."""

CLASSES = {"benign": "#2a7f9e", "malignant": "#b4532a", "normal": "#6b7f3a", "unknown": "#777777"}
"""Colour of each class."""

MAIN = "#1f5fa8"
"""Colour of marks in a figure with only one kind of them."""

GOOD, ALARM = "#1b7837", "#b2182b"
"""Colours of the best result, and of failures."""

QUIET = "#b8b8b8"
"""Colour of auxiliary lines (diagonals, levels, chance) and of less important data."""

SERIES = ("#1f5fa8", "#e08214", "#1b7837", "#7b3294", "#b2182b", "#4d4d4d", "#01857d", "#c51b7d")
"""Colours of several series, distinguishable for colour-blind readers."""

HEAT = "inferno"
"""Colour map of heat: perceptually uniform, dark where there is none."""

DPI = 200

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for what cannot be drawn."""

_BASE: Any = {
    "font.size": 10,
    "svg.hashsalt": "bustseg",  # equal figures give equal files
    "savefig.facecolor": "white",
}

_CHART: Any = {
    **_BASE,
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
def chart_style() -> Iterator[None]:
    """Context in which charts have the house style."""
    import matplotlib

    with matplotlib.rc_context(_CHART):
        yield


@contextmanager
def chart(
    title: str, size: tuple[float, float], ratios: tuple[float, ...] = (1,)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Context with a figure in the house style, which also applies to what is drawn inside.

    Args:
        title: title above the uppermost axes
        size: width and height in inches
        ratios: relative heights of the axes, which are stacked and share x
    """
    from matplotlib.figure import Figure

    with chart_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(ratios), sharex=True, height_ratios=ratios, squeeze=False)[:, 0].tolist()
        axes[0].set_title(title)
        yield figure, axes


@contextmanager
def vector_style() -> Iterator[None]:
    """Context in which equal figures give equal vector files."""
    import matplotlib

    with matplotlib.rc_context(_BASE):
        yield


def save(figure: Figure, path: Path, vector: bool = True) -> list[Path]:
    """Write a figure as PNG and as SVG.

    SVG and not PDF: browsers, MLflow, office programs and Inkscape open it (and Inkscape converts it to PDF), and
    matplotlib writes it three times faster, since it embeds no fonts.

    Args:
        figure: the figure
        path: the PNG; the SVG is written next to it with the same name
        vector: whether the SVG is written

    Returns:
        the files
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with vector_style():
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)  # once here; otherwise it would be done twice for each file
            figure.set_layout_engine("none")
        # the compression level hardly affects the PNG's size, but its time
        figure.savefig(path, dpi=DPI, pil_kwargs={"compress_level": 3})
        if not vector:
            return [path]
        document = path.with_suffix(".svg")
        figure.savefig(document, dpi=DPI, metadata={"Date": None, "Creator": "bustseg"})
    return [path, document]


def fitted(text: str, width: float, size: float = 8) -> str:
    """A line of text, cut to ``width`` inches at a font of ``size`` points; an ellipsis says that it goes on.

    Names of files may hold what cannot be drawn, such as bytes that are no text, and dollars, between which matplotlib
    would read a formula.
    """
    text = "".join(letter if letter.isprintable() else _UNKNOWN for letter in text)
    return _cut(text, width, size).replace("$", r"\$")


def _cut(text: str, width: float, size: float) -> str:
    if _text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _text_width(text[:middle] + "…", size) <= width else (low, middle)
    return text[:low] + "…"


def _text_width(text: str, size: float) -> float:
    """Width of a line of text in the default font in inches, with a margin for the rounding to pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72 * 1.05


def note(axes: Axes, x: float, text: str, side: str, y: float = 0.02) -> None:
    """Write small grey text into axes; positions are fractions of their width and height."""
    axes.text(x, y, text, ha=side, fontsize=8, color="#707070", transform=axes.transAxes)
