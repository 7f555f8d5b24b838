"""Images with outlines: undistorted, at their own resolution, and with a bar of the right length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from bustseg.data.sources import Sample
from bustseg.disclaimer import RESEARCH
from bustseg.figures.heat import Case, cases_figure, details_figure
from bustseg.figures.panels import Picture, draw_picture, picture_grid, sheet, title_lines
from bustseg.figures.style import DPI, fitted, save

DECODER, ENCODER = "decoder.blocks.4", "encoders.0.net.blocks.6"


def picture(shape: tuple[int, int] = (60, 120), spacing: tuple[float, float] | None = None) -> Picture:
    """A grey image whose left half has a lesion; the prediction is known at a tenth of the resolution only."""
    height, width = shape
    truth = np.zeros(shape, dtype=np.uint8)
    truth[:, : width // 2] = 1
    small = np.zeros((height // 10, width // 10), dtype=np.uint8)
    small[2:4, 3:6] = 1
    return Picture(np.full(shape, 90, dtype=np.uint8), truth, small, spacing)


def drawn(of: Picture) -> tuple[Figure, object]:
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    draw_picture(axes, of)
    figure.draw_without_rendering()
    return figure, axes


@pytest.mark.parametrize(("spacing", "aspect"), [(None, 0.5), ((0.1, 0.1), 0.5), ((0.2, 0.1), 1.0)])
def test_an_image_keeps_its_proportions(spacing: tuple[float, float] | None, aspect: float) -> None:
    of = picture(spacing=spacing)
    assert of.aspect == pytest.approx(aspect)
    _, axes = drawn(of)
    box = axes.get_window_extent()
    assert box.height / box.width == pytest.approx(aspect, rel=0.01)


def test_a_coarse_mask_is_outlined_where_it_lies_on_the_image() -> None:
    _, axes = drawn(picture())
    outlines = [np.concatenate(list(lines.get_paths()[0].to_polygons())) for lines in axes.collections]
    truth, prediction = outlines
    assert truth[:, 0].min() == pytest.approx(-0.5, abs=0.5), "along the border too"
    assert truth[:, 0].max() == pytest.approx(59.5, abs=0.5)
    # columns 3 to 5 and rows 2 and 3 of ten pixels each
    assert prediction.min(0) == pytest.approx([29.5, 19.5], abs=0.5)
    assert prediction.max(0) == pytest.approx([59.5, 39.5], abs=0.5)


@pytest.mark.parametrize(
    ("spacing", "words", "pixels"), [((0.1, 0.25), "10 mm", 40), ((0.1, 0.1), "2 mm", 20), ((0.001, 0.001), None, 0)]
)
def test_a_scale_bar_has_its_length(spacing: tuple[float, float], words: str | None, pixels: float) -> None:
    _, axes = drawn(picture(spacing=spacing))
    assert [text.get_text() for text in axes.texts] == ([words] if words else [])
    for line in axes.lines:
        assert np.ptp(line.get_xdata()) == pytest.approx(pixels)
    _, plain = drawn(picture())
    assert not plain.lines


def test_the_image_comes_from_its_file(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 50), 7, dtype=np.uint8)).save(tmp_path / "scan.png")
    sample = Sample("scan", tmp_path / "scan.png", (), "normal", spacing=(0.1, 0.2))
    of = Picture.of(sample, np.zeros((4, 4), dtype=np.uint8))
    assert of.image.shape == of.truth.shape == (30, 50)
    assert of.spacing == (0.1, 0.2)


def test_files_are_sharp_and_come_with_a_vector_file(tmp_path: Path) -> None:
    figure = sheet([[(picture(), "a\nb"), (picture((90, 60)), "c")], [(picture(), "d")]], "title")
    png, svg = save(figure, tmp_path / "new" / "sheet.png")
    assert (png.name, svg.name) == ("sheet.png", "sheet.svg")
    assert DPI >= 200
    with Image.open(png) as image:
        assert image.width == pytest.approx(figure.get_figwidth() * DPI, abs=2)
        assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=1)
    content = svg.read_bytes()
    assert b"<svg" in content
    save(figure, tmp_path / "again.png")
    assert (tmp_path / "again.svg").read_bytes() == content, "the same figure is the same file"
    assert save(figure, tmp_path / "alone.png", vector=False) == [tmp_path / "alone.png"]
    assert not (tmp_path / "alone.svg").exists()


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap, and texts that leave the figure."""
    figure.draw_without_rendering()
    texts = [*figure.texts]
    for axes in figure.axes:
        texts += [axes.title, *axes.texts]
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    texts = [text for text in texts if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    found = [
        (first, second)
        for k, (first, one) in enumerate(boxes)
        for second, other in boxes[k + 1 :]
        if one.overlaps(other)
    ]
    canvas = figure.bbox
    outside = [text for text, box in boxes if box.x0 < -1 or box.x1 > canvas.x1 + 1 or box.y1 > canvas.y1 + 1]
    return found + [(text, "the border") for text in outside]


def test_titles_neither_meet_nor_leave_the_sheet() -> None:
    long = "malignant breast left upper outer quadrant transversal view 1234567890"
    figure = sheet([[(picture(), f"{long}\n{long}")] * 4, [(picture((100, 60)), "short")] * 3], long * 5)
    assert overlapping(figure) == []
    assert fitted("short", 2) == "short"
    assert title_lines(f"short\n{long}").split("\n")[1].endswith("…")


@pytest.mark.parametrize(
    "name", ["\udcff\udcfe.png", r"a$\frac{b$.png", "a$b", r"50\$ and 60\$", "a\tb\x00c", "x" * 300]
)
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    figure = sheet([[(picture(), title_lines(name))]], name)
    figure.savefig(tmp_path / "a.png")
    figure.savefig(tmp_path / "a.svg")
    texts = [text.get_text() for text in figure.axes[0].findobj(Text)] + [text.get_text() for text in figure.texts]
    assert not any("\udcff" in text or "\x00" in text for text in texts)


def test_a_dollar_is_drawn_as_a_dollar() -> None:
    assert fitted("cost $5 or $6", 3) == r"cost \$5 or \$6"


def test_every_sheet_says_that_it_is_research() -> None:
    figure, _ = picture_grid([1.0], 1, "title")
    assert RESEARCH in [text.get_text() for text in figure.texts]


def test_rows_are_as_high_as_their_images() -> None:
    _, grid = picture_grid([0.5, 1.0, 9.0], 2, "title")
    heights = [axes.get_position().height for axes in grid[:, 0]]
    assert heights[1] / heights[0] == pytest.approx(2)
    assert heights[2] / heights[0] == pytest.approx(2.5), "a tower does not fill the page"


def case(truth: bool = True, predicted: bool = True) -> Case:
    of = picture((60, 80))
    of = Picture(of.image, of.truth * truth, of.prediction * predicted)
    heat = np.linspace(0, 1, 16).reshape(4, 4)
    return Case(
        of,
        "case (1)\nbenign, Dice 0.50",
        {DECODER: heat, ENCODER: 0 * heat},
        {DECODER: 0.86, ENCODER: 0.0},
        0.1,
        {"decoder.attentions.0": heat},
    )


def test_heat_is_never_shown_without_what_a_constant_map_would_score() -> None:
    figure = cases_figure({"best": [case()], "false positive": [case(truth=False)]}, [DECODER, ENCODER], "GradCAM")
    titles = [axes.get_title() for axes in figure.axes]
    assert f"{DECODER}\n86 % in lesion (constant 10 %)" in titles
    assert f"{ENCODER}\nno evidence here" in titles
    assert sum("constant" in title for title in titles) == 1, "an image without a lesion has no share"
    assert "nothing predicted" in case(predicted=False).heat_title(DECODER)
    assert any("share of each map's maximum" in axes.get_ylabel() for axes in figure.axes), "a colour bar"
    assert overlapping(figure) == []


def test_all_layers_and_attention_modules_stand_side_by_side() -> None:
    figure = details_figure([case(), case()], "GradCAM")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 2 * 4
    assert "decoder.attentions.0\nattention 0 to 1" in titles
    assert overlapping(figure) == []
    # an attention map covers the image: its 4 x 4 pixels are stretched to the image's proportions
    maps = [axes for axes in figure.axes if axes.get_title().startswith("decoder.attentions")]
    figure.draw_without_rendering()
    assert maps[0].get_window_extent().height / maps[0].get_window_extent().width == pytest.approx(0.75, rel=0.02)
