"""Heat maps over images: a sheet of informative cases, and one with all layers and attention modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bustseg.figures.colours import OUTLINES, TRUTH
from bustseg.figures.panels import (
    Picture,
    colour_bar,
    draw_outline,
    draw_picture,
    extent,
    finish,
    picture_grid,
    thinned,
    title_lines,
)
from bustseg.figures.style import HEAT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 1.75  # inches; a sheet of cases has up to nine images in a row
_HEAT_BAR = ("heat, as a share of each map's maximum", ("0", "0.5", "1"))
_BOTH_BAR = ("heat and attention, each map by itself", ("low", "", "high"))


@dataclass
class Case:
    """One image with everything that is drawn for it.

    Attributes:
        picture: the image with truth and prediction
        title: one or two lines above the image
        heat: layer -> (h, w) in 0..1, stretched over the image
        energy: layer -> share of its heat that lies in the lesion; nan without a lesion
        constant: share of uniform heat that would lie in the lesion: the lesion's share of the image
        attention: attention module -> (h, w), any range
    """

    picture: Picture
    title: str
    heat: Mapping[str, np.ndarray]
    energy: Mapping[str, float]
    constant: float
    attention: Mapping[str, np.ndarray] = field(default_factory=dict)

    def heat_title(self, layer: str) -> str:
        """Text about a layer's heat, in up to three lines."""
        lines = [layer]
        if not self.heat[layer].any():
            return "\n".join([*lines, "no evidence here"])
        if not self.picture.prediction.any():
            # in this case the whole image is explained, and the hottest spot may be a speck
            lines.append("nothing predicted")
        if self.picture.truth.any():
            lines.append(f"{100 * self.energy[layer]:.0f} % in lesion (constant {100 * self.constant:.0f} %)")
        return "\n".join(lines)


def draw_heat(axes: Axes, case: Case, layer: str, title: str) -> None:
    """Draw a case with its outlines and a layer's heat over the image, opaque where it is hot.

    The prediction is white here: its usual colour would not be visible on the heat.
    """
    draw_picture(axes, case.picture, outlines=False)
    heat = thinned(case.heat[layer])
    alpha = 0.75 * np.sqrt(np.clip(heat, 0, 1))
    axes.imshow(
        heat, cmap=HEAT, vmin=0, vmax=1, alpha=alpha, extent=extent(case.picture), aspect=case.picture.pixel_aspect
    )
    draw_outline(axes, case.picture, case.picture.truth, colors=TRUTH, linewidths=1.0)
    draw_outline(
        axes, case.picture, case.picture.prediction, colors="white", linewidths=0.8, linestyles=[(0, (1, 1.2))]
    )
    finish(axes, title)


def draw_attention(axes: Axes, case: Case, name: str, title: str) -> None:
    """Draw an attention module's map over the image's extent at its own resolution, to show how coarse it is."""
    attention, picture = case.attention[name], case.picture
    axes.imshow(attention, cmap=HEAT, extent=extent(picture), interpolation="nearest", aspect=picture.pixel_aspect)
    draw_outline(axes, picture, picture.truth, colors="white", linewidths=0.8)
    finish(axes, title)


def cases_figure(rows: Mapping[str, Sequence[Case]], layers: Sequence[str], title: str) -> Figure:
    """Rows of cases (best, median, ...), each case as image and heat maps side by side.

    Args:
        rows: cases by the name of their row
        layers: layers whose heat is drawn: the decoder's, and an encoder's if there is one
        title: title of the figure
    """
    across = max(len(cases) for cases in rows.values())
    aspects = [max(case.picture.aspect for case in cases) for cases in rows.values()]
    title = f"{title}; {OUTLINES} (dotted white over heat)"
    figure, grid = picture_grid(aspects, across * (1 + len(layers)), title, lines=3, cell=_CELL, bar=True)
    for places, (name, cases) in zip(grid, rows.items(), strict=True):
        for number, case in enumerate(cases):
            first, *others = places[number * (1 + len(layers)) : (number + 1) * (1 + len(layers))]
            draw_picture(first, case.picture, title_lines(f"{name}: {case.title}", _CELL))
            for axes, layer in zip(others, layers, strict=True):
                draw_heat(axes, case, layer, title_lines(case.heat_title(layer), _CELL))
    colour_bar(figure, HEAT, *_HEAT_BAR)
    return figure


def details_figure(cases: Sequence[Case], method: str) -> Figure:
    """One row per case: the image, a heat map for each layer, and each attention module's map."""
    layers, attentions = list(cases[0].heat), list(cases[0].attention)
    title = f"{method}; {OUTLINES} (dotted white over heat)"
    title += "; on attention maps truth white" * bool(attentions)
    aspects = [case.picture.aspect for case in cases]
    figure, grid = picture_grid(aspects, 1 + len(layers) + len(attentions), title, lines=3, bar=True)
    for places, case in zip(grid, cases, strict=True):
        draw_picture(places[0], case.picture, title_lines(case.title))
        for axes, layer in zip(places[1:], layers, strict=False):
            draw_heat(axes, case, layer, title_lines(case.heat_title(layer)))
        for axes, name in zip(places[1 + len(layers) :], attentions, strict=True):
            lowest, highest = case.attention[name].min(), case.attention[name].max()
            draw_attention(axes, case, name, title_lines(f"{name}\nattention {lowest:.2g} to {highest:.2g}"))
    colour_bar(figure, HEAT, *(_BOTH_BAR if attentions else _HEAT_BAR))
    return figure
