"""What a person sees: the screen of a real pseudo-terminal at 80 and 120 columns, and plain lines in a pipe."""

from __future__ import annotations

import io
import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console

from bustseg.callbacks import StepMetrics
from bustseg.callbacks.progress import Columns, Pace, plain_line
from bustseg.metrics import overlap_scores
from bustseg.progress import clock, console, error_console, print_entry, print_error
from bustseg.training.report import intervals, next_line
from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]
WATCHED = ["train/loss", "val/loss", "val/dice_lesion", "val/dice_paper", "val/auc_pixel"]


def watch(columns: int, *args: object, seconds: float = 280) -> tuple[int, list[list[str]]]:
    """Run the command line in a pseudo-terminal.

    Args:
        columns: width of the terminal
        args: of `bustseg`
        seconds: how long it may take

    Returns:
        exit code, and the lines of the screen after each output (the last is what stays)
    """
    fcntl, pty, pyte = (pytest.importorskip(name) for name in ("fcntl", "pty", "pyte"))
    import termios

    screen = pyte.Screen(columns, 60)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "bustseg.cli", *map(str, args)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    screens: list[list[str]] = []
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                output = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not output:
                break
            stream.feed(output)
            screens.append([line.rstrip() for line in screen.display if line.strip()])
        return process.wait(max(deadline - time.monotonic(), 1)), screens
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_fit_shows_a_line_per_epoch_and_one_bar_below(columns: int, phantoms: Path) -> None:
    options = ("--data.root", phantoms, "--trainer.max_epochs", 3, "--tracking.uri", "sqlite:///runs.db")
    code, screens = watch(columns, "fit", "--config", TINY, *options)
    final = screens[-1]
    assert code == 0, final
    first = next(lines for lines in screens if lines)
    assert "loading PyTorch" in first[0], "something is said before anything heavy is imported"
    for lines in screens:
        bars = [place for place, line in enumerate(lines) if "━" in line]
        assert bars in ([], [len(lines) - 1]), f"one bar, below all lines: {lines}"
    assert any("train ━" in lines[-1] and "loss 0." in lines[-1] for lines in screens if lines), "the loss of now"
    assert any("epoch 1/3" in lines[-1] for lines in screens if lines)
    assert not any("epoch 0" in line for lines in screens for line in lines)

    heads = [place for place, line in enumerate(final) if line.lstrip().startswith("epoch")]
    assert len(heads) == 1
    head, *epochs = final[heads[0] : heads[0] + 4]
    assert [line.split()[0] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert {len(line) for line in epochs} == {len(head)}, "aligned"
    assert len(head) <= columns
    assert ("val/dice_lesion" in head) == (columns == 120)
    assert "dice_lesion" in head
    assert epochs[-1].split()[-1] == "0:00"
    began = [line.split()[0] for line in final[: heads[0]]]
    assert began[:6] == ["run", "name", "data", "source", "network", "device"]
    assert any(line.startswith("next: bustseg test --ckpt_path ") for line in final)


def test_lines_in_a_pipe_say_what_their_numbers_are(bustseg: Bustseg, phantoms: Path) -> None:
    code, out, err = bustseg("fit", "--config", TINY, "--data.root", phantoms)
    assert (code, err) == (0, ""), err
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == [f"{k + 1}/{len(lines)}" for k in range(len(lines))]
    assert all(name in lines[0] for name in WATCHED)
    assert "\x1b" not in out
    assert "━" not in out
    (data,) = (line for line in out.splitlines() if line.startswith("data "))
    assert data == "data      30 images: 22 train, 4 val, 4 test"
    (network,) = (line for line in out.splitlines() if line.startswith("network "))
    assert re.search(r" [\d,]+ parameters", network)


def test_ctrl_c_before_the_first_epoch_says_that_nothing_can_be_continued(
    bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StepMetrics, "on_train_batch_end", stop)
    code, _, err = bustseg("fit", "--config", TINY, "--data.root", phantoms)
    assert code == 130
    assert "no epoch is finished, so nothing can be continued" in err


def test_a_test_ends_with_intervals_of_what_varies() -> None:
    counts = {"tp": [80, 60, 0, 0], "fp": [10, 20, 0, 50], "fn": [20, 40, 0, 0], "tn": [890, 880, 1000, 950]}
    scores = overlap_scores(*(np.array(column) for column in counts.values()))
    table = pd.DataFrame({"image": list("abcd"), "label": ["benign", "benign", "normal", "normal"], **counts})
    table = table.assign(
        lesion_px=table["tp"] + table["fn"], **{name: column.numpy() for name, column in scores.items()}
    )
    limits = intervals(table)
    assert set(limits) == {"dice_paper", "dice_lesion", "dice_empty_one", "dice_pooled"}
    low, high = limits["dice_lesion"]
    assert (low, high) == pytest.approx((2 * 60 / (2 * 60 + 60), 2 * 80 / (2 * 80 + 30))), "of two images the two"
    same = table.assign(dice_lesion=[0.5, 0.5, np.nan, np.nan])
    assert "dice_lesion" not in intervals(same), "nothing varies"
    assert next_line("test", "ID").startswith("next: bustseg predict IMAGES --model ID ")
    assert next_line("fit", "ID") == next_line("validate", "ID") == "next: bustseg test --ckpt_path ID"


def test_columns_take_what_room_there_is() -> None:
    values = dict.fromkeys(WATCHED, 0.123456)
    wide, narrow, tiny = (Columns.that_fit(WATCHED, "epoch 1/100", width) for width in (120, 80, 50))
    assert list(wide.metrics.values()) == WATCHED
    assert list(narrow.metrics.values()) == ["loss", "val/loss", "dice_lesion", "dice_paper", "auc_pixel"]
    assert list(tiny.metrics) == WATCHED[:2]
    for columns, width in ((wide, 120), (narrow, 80), (tiny, 50)):
        line = columns.line("epoch 100/100", values, 1234.5, 3600)
        assert len(columns.head()) <= width
        assert "0.1235" in line
        assert line.endswith("1:00:00")
    assert plain_line("epoch 1/9", {"val/loss": 12.0}, 3.21, 65) == "epoch 1/9  val/loss 12.0000  3.2 s  1:05 left"


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen_of(monkeypatch: pytest.MonkeyPatch, console: Console, columns: int) -> _Screen:
    """Show what a console prints on a terminal of that many columns."""
    screen = _Screen()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_environ", {"COLUMNS": str(columns)})
    monkeypatch.setattr(console, "_width", columns)
    monkeypatch.setattr(console, "_color_system", None)
    monkeypatch.setattr(console, "_file", screen)
    return screen


def test_a_long_entry_continues_below_its_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/a/folder/with/a/name/that/is/longer/than/the/column/of/texts"
    print_entry("name", f"some words and {path}", 6)
    assert capsys.readouterr().out == f"name    some words and {path}\n", "one line in a pipe"
    screen = on_screen_of(monkeypatch, console, 40)
    print_entry("name", "some words that do not fit into a terminal of forty columns", 6)
    print_entry("longer", path, 6)
    assert screen.getvalue().splitlines() == [
        "name    some words that do not fit into",
        "        a terminal of forty columns",
        f"longer  {path}",
    ], "a path stays whole, so that it can be copied"


def test_an_error_is_broken_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/folder/with/a/name/that/is/longer/than/forty/columns"
    print_error(f"cannot read [x] {path} because it is not a folder")
    assert capsys.readouterr().err == f"error: cannot read [x] {path} because it is not a folder\n"
    screen = on_screen_of(monkeypatch, error_console, 40)
    print_error(f"cannot read [x] {path} because it is not a folder, as far as anybody knows")
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert lines == [
        "error: cannot read [x]",
        path,
        "because it is not a folder, as far as",
        "anybody knows",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (7509, "2:05:09"), (-3, "0:00")])
def test_durations_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_time_left_comes_from_batches_at_first_and_then_from_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("bustseg.callbacks.progress.time.perf_counter", lambda: now)
    pace = Pace()
    pace.begin_epoch(0, 4, of=10)
    assert pace.left is None
    for second in (5.0, 6.0, 7.0, 8.0):  # the first batch, which warms up, takes 5 s, the others 1 s
        now = second
        pace.advance(1)
    assert pace.epoch_seconds == pytest.approx(10)
    assert pace.left == pytest.approx(6 + 3 * 10)
    now = 20.0
    assert pace.end_epoch() == 20
    assert pace.left == pytest.approx(3 * 20)
    pace.begin_epoch(1, 4, of=10)
    pace.advance(5)
    assert pace.left == pytest.approx(2.5 * 20)
    pace.begin_epoch(1, None, of=10)
    assert pace.left is None, "nothing bounds the epochs"


class _Spy(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: object, task: object, outputs: dict[str, torch.Tensor], *_: object) -> None:
        self.losses.append(float(outputs["loss"]))


def test_steps_are_logged_within_an_epoch_at_their_place(phantoms: Path) -> None:
    import mlflow

    from bustseg.experiment import Experiment
    from bustseg.runs.tracker import tracking_uri
    from bustseg.training import run_fit

    spy = _Spy()
    every = pytest.MonkeyPatch()
    with every.context() as patch:
        patch.setattr("bustseg.training.setup.StepMetrics", lambda: StepMetrics(every_seconds=0))
        options = ["--config", str(TINY), "--data.root", str(phantoms), "--data.batch_size", "8"]
        run = run_fit(Experiment.parse(options), callbacks=[spy])
    client = mlflow.MlflowClient(tracking_uri())
    points = client.get_metric_history(run.run_id, "train/loss_step")
    assert [point.step for point in points] == list(range(1, len(spy.losses) + 1))
    assert [point.value for point in points] == pytest.approx(spy.losses)
    rates = client.get_metric_history(run.run_id, "train/lr_step")
    assert len(rates) == len(points)
    epochs = client.get_metric_history(run.run_id, "val/loss")
    assert [point.step for point in epochs] == list(range(len(epochs))), "curves over epochs keep their places"
    names = list(client.get_run(run.run_id).data.metrics)
    assert names[:2] == ["val/dice_lesion", "val/loss"], "MLflow lists first what was written first"
    assert names.index("train/loss") < names.index("train/loss_step")


class _Kept(Logger):
    """A logger in memory."""

    name, version = "kept", "0"

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert set(metrics) == {"train/loss_step", "train/lr_step"}
        self.steps.append(step or 0)

    def log_hyperparams(self, *_: object, **__: object) -> None:
        pass


def test_steps_of_a_first_epoch_are_held_back_only_for_a_while() -> None:
    def at(step: int, epoch: int) -> Any:
        parts = {"is_global_zero": True, "accumulate_grad_batches": 1, "num_training_batches": 10, "optimizers": []}
        return SimpleNamespace(
            **parts, log_every_n_steps=1, global_step=step, current_epoch=epoch, loggers=[kept], strategy=None
        )

    def train(metrics: StepMetrics, steps: range, epoch: int) -> None:
        for step in steps:
            metrics.on_train_batch_end(at(step, epoch), None, torch.tensor(0.5), None, step)  # type: ignore[arg-type]

    kept = _Kept()
    metrics = StepMetrics(every_seconds=0)
    metrics.on_train_start(at(0, 0), None)  # type: ignore[arg-type]
    train(metrics, range(1, 4), epoch=0)
    assert kept.steps == []
    assert metrics.latest is not None, "the bar does not wait"
    train(metrics, range(4, 5), epoch=1)
    assert kept.steps == [1, 2, 3, 4]

    kept = _Kept()
    slow = StepMetrics(every_seconds=0, first_seconds=0)
    slow.on_train_start(at(0, 0), None)  # type: ignore[arg-type]
    train(slow, range(1, 4), epoch=0)
    assert kept.steps == [1, 2, 3], "an epoch that takes long is watched while it runs"

    kept = _Kept()
    stopped = StepMetrics(every_seconds=0)
    stopped.on_train_start(at(0, 0), None)  # type: ignore[arg-type]
    train(stopped, range(1, 4), epoch=0)
    stopped.on_exception(at(4, 0), None, KeyboardInterrupt())  # type: ignore[arg-type]
    assert kept.steps == [1, 2, 3], "nothing is lost when a training stops"
