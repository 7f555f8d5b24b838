"""Pictures of a sweep: whole trials, choices in words, what was pruned, and the front."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from bustseg.figures import sweep
from bustseg.figures.sweep import Axis, Objective, Point, write_plots

AXES = [Axis("lr", log=True), Axis("loss", ["BCELoss", "DiceLoss"])]
DICE, LATENCY = Objective("val/dice_lesion", maximize=True), Objective("latency_ms", maximize=False)
POINTS = [
    Point(0, "complete", [0.6, 20.0], {"lr": 1e-4, "loss": "BCELoss"}, {1: 0.4, 2: 0.6}, front=True),
    Point(1, "failed", [], {"lr": 1e-2, "loss": "BCELoss"}),
    Point(2, "pruned", [0.3, 9.0], {"lr": 1e-5, "loss": "DiceLoss"}, {1: 0.3}),
    Point(3, "complete", [0.7, 30.0], {"lr": 1e-3, "loss": "DiceLoss"}, {1: 0.5, 2: 0.7}, front=True),
    Point(4, "complete", [0.5, 40.0], {"lr": 1e-3, "loss": "BCELoss"}, {1: 0.5, 2: 0.4}),
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """What is drawn, by name, instead of files."""
    found: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> list[Path]:
        figure.draw_without_rendering()
        found[path.stem] = figure
        return [path]

    monkeypatch.setattr(sweep, "save", keep)
    return found


def words(figure: Figure) -> list[str]:
    texts = [text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels())]
    return texts + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_trials_are_whole_numbers_and_every_state_is_shown(figures: dict[str, Figure]) -> None:
    write_plots(POINTS, AXES, [DICE], {"lr": 0.9, "loss": 0.001}, Path("plots"))
    assert set(figures) == {"history", "slice", "parallel_coordinate", "importances", "epochs"}
    (axes,) = figures["history"].axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    shown = words(figures["history"])
    assert {"complete (3)", "pruned (1), at its best epoch", "failed (1)", "best so far"} <= set(shown)
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    assert list(best.get_ydata()) == [0.6, 0.7, 0.7]
    assert axes.get_ylabel() == "val/dice_lesion (higher is better)"
    assert {"0.90", "< 0.01"} <= set(words(figures["importances"]))


def test_classes_are_words_in_every_picture(figures: dict[str, Figure]) -> None:
    write_plots(POINTS, AXES, [DICE], {}, Path("plots"))
    for name in ("slice", "parallel_coordinate"):
        assert {"BCELoss", "DiceLoss"} <= set(words(figures[name])), name
        assert not any("class_path" in word for word in words(figures[name]))
    assert figures["slice"].axes[0].get_xscale() == "log"


def test_pruned_trials_end_where_they_were_stopped(figures: dict[str, Figure]) -> None:
    write_plots(POINTS, AXES, [DICE], {}, Path("plots"))
    (axes,) = figures["epochs"].axes
    ends = [line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ends] == [(1, 0.3)]
    assert {"best: trial 3", "pruned (1 of 5)"} <= set(words(figures["epochs"]))


def test_the_front_of_two_objectives(figures: dict[str, Figure]) -> None:
    write_plots(POINTS, AXES, [DICE, LATENCY], {}, Path("plots"))
    (axes,) = figures["pareto"].axes
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    others, front = (np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() for line in marked)
    assert others == [[40.0, 0.5]], "a pruned trial is not judged"
    assert front == [[20.0, 0.6], [30.0, 0.7]]
    assert [text.get_text() for text in axes.texts] == ["0", "3"]


def test_without_a_finished_trial_nothing_is_drawn(figures: dict[str, Figure]) -> None:
    assert write_plots(POINTS[1:3], AXES, [DICE], {}, Path("plots")) == []
    assert write_plots(POINTS[:1], [Axis("lr")], [DICE], {}, Path("plots")) != []
    assert "parallel_coordinate" not in figures


def test_files_are_png_and_svg(tmp_path: Path) -> None:
    paths = write_plots(POINTS, AXES, [DICE, LATENCY], {"lr": 1.0}, tmp_path)
    assert len(paths) == 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg"}
