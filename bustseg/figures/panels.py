"""Images with outlines at their own resolution and aspect ratio, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bustseg.disclaimer import RESEARCH
from bustseg.figures.colours import PREDICTION, TRUTH
from bustseg.figures.style import fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bustseg.data.sources import Sample

CELL = 2.3
"""Width of an image on a sheet, in inches."""

MOST_DRAWN = 2048
"""Most pixels of an image's longer side that are drawn: a cell has about 300."""

_TALLEST = 1.25  # largest height of a cell as a multiple of its width
_GAP, _LINE, _TOP, _FOOT = 0.08, 0.135, 0.3, 0.12  # inches between cells, per line of a title, above and below all
_BAR_LENGTHS = (1, 2, 5, 10, 20, 50)  # mm


@dataclass(frozen=True)
class Picture:
    """An image at its own resolution, and the masks that are outlined on it.

    Attributes:
        image: grey ``uint8`` (H, W)
        truth, prediction: 0 and 1, of any shape; they are stretched over the image
        spacing: size of the image's pixels in mm as (row, column); None when unknown
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float] | None = None

    @classmethod
    def of(cls, sample: Sample, prediction: np.ndarray) -> Picture:
        """An image of a data set at its file's resolution, with its truth, and a prediction of any resolution.

        Raises:
            DataError: a file cannot be read
        """
        image = sample.read_image()
        truth = sample.read_mask((image.shape[0], image.shape[1]))
        return cls(image, truth.astype(np.uint8), prediction, sample.spacing)

    @property
    def pixel_aspect(self) -> float:
        """Height of a pixel by its width."""
        return self.spacing[0] / self.spacing[1] if self.spacing else 1.0

    @property
    def aspect(self) -> float:
        """Height of the image by its width, as displayed."""
        return self.image.shape[0] / self.image.shape[1] * self.pixel_aspect


def draw_picture(axes: Axes, picture: Picture, title: str = "", outlines: bool = True) -> None:
    """Draw an image undistorted, with outlines of truth and prediction, and a scale bar if the pixel size is known."""
    place: dict[str, Any] = {"extent": extent(picture), "aspect": picture.pixel_aspect}
    axes.imshow(thinned(picture.image), cmap="gray", vmin=0, vmax=255, **place)
    if outlines:
        draw_outline(axes, picture, picture.truth, colors=TRUTH, linewidths=1.2)
        draw_outline(axes, picture, picture.prediction, colors=PREDICTION, linewidths=1.2)
    if picture.spacing is not None:
        draw_scale_bar(axes, picture.image.shape, picture.spacing)
    finish(axes, title)


def finish(axes: Axes, title: str) -> None:
    """Set the title and remove the frame; the image is directly below its title."""
    axes.set_title(title, fontsize=8, pad=3)
    axes.set_anchor("N")
    axes.set_axis_off()


def thinned(values: np.ndarray) -> np.ndarray:
    """A map (H, W) downsampled to the resolution of a panel: matplotlib takes 64 bytes per pixel while it draws."""
    step = -(-max(values.shape) // MOST_DRAWN)
    return values[::step, ::step]


def extent(picture: Picture) -> tuple[float, float, float, float]:
    """Extent for ``imshow`` with which a map of any resolution covers the image."""
    height, width = picture.image.shape
    return -0.5, width - 0.5, height - 0.5, -0.5


def draw_outline(axes: Axes, picture: Picture, mask: np.ndarray, **style: Any) -> None:
    """Outline a mask of any resolution on an image, in a given colour or style.

    Args:
        axes: where the image is
        picture: the image
        mask: (h, w) of 0 and 1
        style: options of matplotlib's ``contour``
    """
    if not mask.any():
        return
    mask = thinned(mask)
    (height, width), (rows, columns) = picture.image.shape, mask.shape
    # so that a lesion that touches the border is outlined there too
    framed = np.pad(mask.astype(np.float32), 1)
    x = (np.arange(-1, columns + 1) + 0.5) * width / columns - 0.5
    y = (np.arange(-1, rows + 1) + 0.5) * height / rows - 0.5
    axes.contour(np.clip(x, -0.5, width - 0.5), np.clip(y, -0.5, height - 0.5), framed, levels=[0.5], **style)


def draw_scale_bar(axes: Axes, shape: tuple[int, ...], spacing: tuple[float, float]) -> None:
    """Draw a bar of a round length, at most a third of the image wide, into its lower left corner.

    Args:
        axes: where the image is
        shape: (H, W) of the image
        spacing: size of its pixels in mm as (row, column)
    """
    from matplotlib import patheffects

    height, width = shape[:2]
    fitting = [length for length in _BAR_LENGTHS if length / spacing[1] <= width / 3]
    if not fitting:
        return
    length = fitting[-1]
    dark = [patheffects.withStroke(linewidth=3.5, foreground="black")]
    x, y = 0.05 * width, 0.95 * height
    axes.plot(
        [x, x + length / spacing[1]], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=dark
    )
    axes.text(
        x, y - 0.02 * height, f"{length} mm", color="white", fontsize=7, va="bottom", ha="left", path_effects=dark
    )


def picture_grid(
    aspects: Sequence[float], columns: int, title: str, lines: int = 2, cell: float = CELL, bar: bool = False
) -> tuple[Figure, Any]:
    """Figure for rows of images, and the (rows, columns) array of its empty axes.

    Args:
        aspects: height by width of the tallest image of each row
        columns: images in a row
        title: stands above all
        lines: lines of the title of an image
        cell: width of an image in inches
        bar: whether there is room for a colour bar at the right
    """
    from matplotlib.figure import Figure

    # placed explicitly: a layout engine takes longer than the drawing
    heights = [cell * min(max(aspect, 0.2), _TALLEST) for aspect in aspects]
    heading = _LINE * lines + 0.1
    right = 0.75 if bar else 0.0
    width = columns * (cell + _GAP) + _GAP + right
    total = sum(heights) + len(heights) * (heading + _GAP) + _TOP + _FOOT
    figure = Figure(figsize=(width, total))
    grid = np.empty((len(heights), columns), dtype=object)
    top = total - _TOP
    for row, height in enumerate(heights):
        top -= heading + height
        for column in range(columns):
            left = _GAP + column * (cell + _GAP)
            axes = figure.add_axes((left / width, top / total, cell / width, height / total))
            axes.set_axis_off()
            grid[row, column] = axes
        top -= _GAP
    figure.text(0.5, 1 - 0.07 / total, fitted(title, width, 9), fontsize=9, ha="center", va="top")
    notice = fitted(RESEARCH, width - 2 * _GAP, 6)
    figure.text(_GAP / width, 0.04 / total, notice, fontsize=6, color="#707070", ha="left", va="bottom")
    return figure, grid


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], title: str, columns: int | None = None) -> Figure:
    """Figure with rows of images, each with its outlines and a title of two lines.

    Args:
        rows: images with their titles
        title: stands above all
        columns: images per row; the length of the longest row when not given
    """
    aspects = [max(picture.aspect for picture, _ in row) for row in rows]
    figure, grid = picture_grid(aspects, columns or max(map(len, rows)), title)
    for places, row in zip(grid, rows, strict=True):
        for axes, (picture, heading) in zip(places, row, strict=False):
            draw_picture(axes, picture, title_lines(heading))
    return figure


def title_lines(text: str, width: float = CELL) -> str:
    """A title with each line cut to the width of an image."""
    return "\n".join(fitted(line, width + 0.05) for line in text.split("\n"))


def colour_bar(figure: Figure, cmap: str, label: str, ticks: Sequence[str]) -> None:
    """Draw a colour bar into the space that :func:`picture_grid` has reserved for it.

    Args:
        figure: figure from :func:`picture_grid` with ``bar``
        cmap: the colour map
        label: meaning of the colours
        ticks: words at equal distances from the lowest value to the highest
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = figure.get_size_inches()
    tall = min(height - _TOP - 0.5, 3.5)
    axes = figure.add_axes(((width - 0.68) / width, (height - _TOP - 0.4 - tall) / height, 0.12 / width, tall / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), cmap), cax=axes, ticks=np.linspace(0, 1, len(ticks)).tolist())
    bar.ax.set_yticklabels(ticks, fontsize=7)
    bar.set_label(label, fontsize=8, labelpad=1)
    bar.outline.set_visible(False)
