"""Histograms by class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from bustseg.figures.style import CLASSES, chart, vector_style

BINS = 28


def class_histogram(series: Mapping[str, Sequence[float]], title: str) -> bytes | None:
    """A histogram with the classes stacked, as the bytes of an SVG file; None without values.

    Args:
        series: values by class
        title: description of the values
    """
    from matplotlib.ticker import MaxNLocator

    known = {label: np.asarray(values, dtype=float) for label, values in series.items() if len(values)}
    if not known:
        return None
    edges = np.linspace(0, max(values.max() for values in known.values()) * 1.0001 + 1e-9, BINS + 1)
    with chart("", (5.6, 2.6)) as (figure, (axes,)), vector_style():
        axes.hist(
            list(known.values()),
            edges.tolist(),
            stacked=True,
            color=[CLASSES.get(label, CLASSES["unknown"]) for label in known],
            label=list(known),
            rwidth=0.92,
        )
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=title, ylabel="images", xlim=(0, edges[-1]))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper right", ncols=len(known), fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "bustseg"})
    return file.getvalue()
