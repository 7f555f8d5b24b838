"""Bad input of every kind ends in one line on standard error and exit code 2, and leaves no run behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bustseg.errors import UserError, in_one_line
from bustseg.whole import whole, write_whole
from tests.conftest import TINY, TrainedRun

Run = Callable[..., tuple[int, str, str]]

LONG = "x" * 300
"""Longer than a file's name may be."""

OPTIONS = {
    ("--data.image_size", "0"): "data.image_size is 0: it must be at least 1",
    ("--data.image_size", "-5"): "data.image_size is -5: it must be at least 1",
    ("--data.image_size", "[0, 5]"): "data.image_size is 0: it must be at least 1",
    ("--data.image_size", "1000000"): "lower data.image_size",
    ("--data.image_size", "nan"): "`data.image_size` is nan: give a whole number",
    ("--data.batch_size", "0"): "data.batch_size is 0: it must be at least 1",
    ("--data.eval_batch_size", "0"): "data.eval_batch_size is 0: it must be at least 1",
    ("--data.num_workers", "-1"): "data.num_workers is -1: it must be auto, or at least 0",
    ("--data.root", LONG): "File name too long",
    ("--data.split", LONG): "error:",
    ("--model.optimizer.init_args.lr", ".nan"): "model.optimizer: Invalid learning rate: nan",
    ("--model.optimizer.init_args.lr", "-1"): "model.optimizer: Invalid learning rate: -1.0",
    ("--model.optimizer.init_args.lr", ".inf"): "model.optimizer: the learning rate is inf",
    ("--model.threshold", ".nan"): "threshold must be a probability between 0 and 1, not nan",
    ("--model.network.class_path", "nope.Nope"): "`model.network` names nope.Nope: No module named 'nope'",
    ("--trainer.max_epochs", "0"): "trainer.max_epochs is 0: nothing would be trained",
    ("--trainer.max_epochs", "-3"): "trainer: `max_epochs` must be a non-negative integer or -1",
    ("--trainer.precision", "fp8"): "`trainer.precision` is fp8: give one of",
    ("--trainer.accelerator", "mps"): "trainer: `MPSAccelerator` can not run on your system",
    ("--trainer.accelerator", "nope"): "trainer: You selected an invalid accelerator name",
    ("--trainer.devices", "1000"): "trainer.devices is 1000, but this machine has",
    ("--trainer.devices", "x"): "error:",
    ("--trainer.gradient_clip_val", ".nan"): "trainer.gradient_clip_val is nan: give a number from 0",
    ("--trainer.gradient_clip_val", "-1"): "trainer.gradient_clip_val is -1",
    ("--trainer.accumulate_grad_batches", "0"): "trainer.accumulate_grad_batches is 0: give 1 or more",
    ("--trainer.check_val_every_n_epoch", "0"): "trainer.check_val_every_n_epoch is 0: give 1 or more",
    ("--trainer.val_check_interval", "0"): "trainer.val_check_interval is 0: give a number above 0",
    ("--trainer.val_check_interval", "500"): "trainer.val_check_interval is 500 and an epoch has",
    ("--trainer.limit_train_batches", "0"): "trainer.limit_train_batches is 0: nothing would be trained",
    ("--trainer.limit_train_batches", "0.0001"): "trainer.limit_train_batches is 0.0001, which is none of",
    ("--trainer.limit_val_batches", "0.0001"): "trainer.limit_val_batches is 0.0001, which is none of",
    ("--trainer.max_steps", "0"): "trainer.max_steps is 0: nothing would be trained",
    ("--model.std", "[0.2, 0.0, 0.2]"): "model.std is [0.2, 0.0, 0.2]: give finite numbers above 0",
    ("--model.std", "[.inf, 1.0, 1.0]"): "model.std is [inf, 1.0, 1.0]: give finite numbers above 0",
    ("--model.mean", "[.nan, 0.5, 0.5]"): "model.mean is [nan, 0.5, 0.5]: give finite numbers",
    ("--model.mean", "[0.5]"): "model.mean has 1 values and model.std 3",
    ("--seed_everything", "-1"): "seed_everything: -1 is not in bounds",
    ("--tracking.experiment", ""): "experiment",
    ("--tracking.experiment", "a" * 600): "500 characters",
    ("--checkpoint.mode", "up"): "`mode` can be min, max but got up",
    ("--checkpoint.monitor", "val/dice_lesio"): (
        "no fit logs checkpoint.monitor val/dice_lesio: did you mean val/dice_lesion"
    ),
    ("--checkpoint.monitor", "x"): "no fit logs checkpoint.monitor x: there are train/epoch_seconds, train/",
    ("--early_stopping.monitor", "loss"): "no fit logs early_stopping.monitor loss: ",
    ("--trainer.limit_val_batches", "0"): "is val/loss, but trainer.limit_val_batches is 0, so there is no",
    ("--model.lr_scheduler", "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/los}}"): (
        "no fit logs model.lr_scheduler.init_args.monitor val/los: did you mean val/loss"
    ),
    ("--model.lr_scheduler_interval", "minute"): "`model.lr_scheduler_interval`",
}
"""What a fit refuses, and what it says."""


@pytest.fixture
def tiny(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a fit that would take seconds."""
    monkeypatch.chdir(tmp_path)
    return ["--config", str(TINY), "--data.root", str(phantoms), "--trainer.accelerator", "cpu"]


def check_refused(result: tuple[int, str, str], words: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert words in err
    (line,) = [line for line in err.splitlines() if line.strip() and not line.startswith("warning:")]
    assert len(line) < 800
    assert list(Path.cwd().glob("mlruns/artifacts/*")) == []


@pytest.mark.parametrize(("option", "words"), OPTIONS.items(), ids=lambda value: str(value)[:50])
def test_a_fit_refuses(option: tuple[str, str], words: str, tiny: list[str], bustseg: Run) -> None:
    check_refused(bustseg("fit", *tiny, *option), words)


def test_a_test_that_would_score_nothing(trained_run: TrainedRun, bustseg: Run) -> None:
    before = set(Path.cwd().glob("mlruns/artifacts/*"))
    for verb, option in (("test", "limit_test_batches"), ("validate", "limit_val_batches")):
        for value, words in (("0", "nothing would be scored"), ("0.0001", "which is none of")):
            code, _, err = bustseg(verb, "--ckpt_path", trained_run.checkpoint, f"--trainer.{option}", value)
            assert code == 2
            assert words in " ".join(err.split())
    assert set(Path.cwd().glob("mlruns/artifacts/*")) == before


def test_a_cross_validation_whose_folds_cannot_be_made_leaves_no_run(tiny: list[str], bustseg: Run) -> None:
    check_refused(bustseg("cv", *tiny, "--folds", "1000"), "cannot make 1000 folds of")


def test_no_file_takes_the_place_of_a_device(phantoms: Path, tmp_path: Path, bustseg: Run) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, _, err = bustseg("data", "split", phantoms, "--out", pipe)
    assert code == 2
    assert "is a pipe, not a file" in " ".join(err.split())
    assert pipe.is_fifo()
    with pytest.raises(UserError, match="is a pipe, not a file"):
        write_whole(pipe, b"x")
    with pytest.raises(UserError, match="is a pipe, not a file"), whole(pipe):
        raise AssertionError("begun")
    assert pipe.is_fifo()


def test_a_schedule_that_follows_a_metric_is_stepped_after_epochs(tiny: list[str], bustseg: Run) -> None:
    schedule = "{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val/loss}}"
    options = ["--model.lr_scheduler", schedule, "--model.lr_scheduler_interval", "step"]
    check_refused(bustseg("fit", *tiny, *options), "which is computed once per epoch: set it to epoch")


class Logging(Callback):
    """Logs a metric of its own."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/own", 1.0)


def test_a_metric_of_the_users_own_callback_may_decide(tiny: list[str], bustseg: Run) -> None:
    options = ["--trainer.callbacks", f"{{class_path: {__name__}.Logging}}", "--checkpoint.monitor", "val/own"]
    code, _, err = bustseg("fit", *tiny, *options, "--trainer.max_epochs", "1")
    assert code == 0, err
    assert len(list(Path.cwd().glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt"))) == 1


def nested(depth: int) -> str:
    return "data: " + "[" * depth + "]" * depth


CONFIGS: dict[str, bytes] = {
    "nested 5,000 deep": nested(5000).encode(),
    "bytes": bytes(range(256)),
    "list": b"- 1\n- 2\n",
    "number": b"5",
    "nothing": b"",
    "broken JSON": b"{",
    "tab": b"data:\n\t- 1",
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_none(content: bytes, tiny: list[str], tmp_path: Path, bustseg: Run) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    check_refused(bustseg("fit", "--config", tmp_path / "odd.yaml"), "odd.yaml")


CHECKPOINTS: dict[str, Any] = {
    "mapping": {"a": 1},
    "list": [1, 2],
    "tensor": torch.zeros(3),
    "empty state": {"state_dict": {}, "hyper_parameters": 5, "pytorch-lightning_version": "2"},
    "module": torch.nn.Linear(2, 2),
    "text": b"hello",
    "nothing": b"",
    "archive": b"PK\x03\x04" + bytes(100),
    "pickle that ends at once": b"\x80\x02.",
    "folder": None,
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_is_none(content: Any, tiny: list[str], tmp_path: Path, bustseg: Run) -> None:
    path = tmp_path / "odd.ckpt"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    image = tmp_path / "image.png"
    for command in (
        ["test", "--ckpt_path", path],
        ["validate", "--ckpt_path", path],
        ["fit", *tiny, "--ckpt_path", path],
        ["predict", image, "--model", path, "--out", tmp_path / "out"],
        ["explain", image, "--model", path, "--out", tmp_path / "out"],
        ["export", path, "--out", tmp_path / "out"],
        ["ensemble", path, path, "--out", tmp_path / "out.ckpt"],
        ["serve", "--model", path],
        ["bench", path],
    ):
        result = bustseg(*command)
        check_refused(result, "error:")
        assert "weights_only" not in result[2], "it quotes torch's advice to load unsafely"
        assert not (tmp_path / "out").exists()


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "record": (lambda content: {"bustseg": 5}, "is not a checkpoint from `bustseg fit`"),
    "weights": (lambda content: {"state_dict": None}, "damaged checkpoint, whose weights cannot be read"),
    "epoch": (lambda content: {"epoch": None}, "damaged checkpoint, whose epoch cannot be read"),
    "version": (lambda content: {"pytorch-lightning_version": None}, "damaged checkpoint, whose version"),
    "no weights": (lambda content: {"state_dict": {}}, "lacks weights network."),
    "unknown": (lambda content: {"state_dict": content["state_dict"] | {"x" * 500: torch.zeros(1)}}, "the unknown"),
    "shape": (
        lambda content: {"state_dict": {name: value[..., None] for name, value in content["state_dict"].items()}},
        "with another shape than its network",
    ),
    "nan": (
        lambda content: {"state_dict": {name: value * float("nan") for name, value in content["state_dict"].items()}},
        "that are not numbers",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_checkpoint(
    damage: Callable[[dict[str, Any]], dict[str, Any]],
    words: str,
    trained_run: TrainedRun,
    phantoms: Path,
    tmp_path: Path,
    bustseg: Run,
) -> None:
    content = torch.load(trained_run.checkpoint.with_name("last.ckpt"), weights_only=True)
    torch.save({**content, **damage(content)}, tmp_path / "odd.ckpt")
    image = next((phantoms / "malignant").glob("*).png"))
    for command in (
        ["test", "--ckpt_path", "odd.ckpt"],
        ["fit", "--ckpt_path", "odd.ckpt", "--trainer.max_epochs", "3"],
        ["predict", image, "--model", "odd.ckpt", "--out", "out"],
        ["ensemble", "odd.ckpt", trained_run.checkpoint, "--out", "both.ckpt"],
    ):
        check_refused(bustseg(*command), words)
    assert not Path("both.ckpt").exists()


@pytest.mark.parametrize("name", [LONG, "a\nb\nc", os.fsdecode(b"\xff\xfe")], ids=["long", "lines", "bytes"])
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "NAME"),
        ("explain", "NAME", "--model", "NAME"),
        ("fit", "--config", "NAME"),
        ("test", "--ckpt_path", "NAME"),
        ("compare", "NAME", "other"),
        ("data", "check", "NAME"),
        ("sweep", "--config", "NAME"),
        ("live", "--device", "NAME"),
        ("fit", "NAME"),
        ("NAME",),
    ],
    ids="-".join,
)
def test_names_that_no_file_has(
    command: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bustseg: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(bustseg(*(name if word == "NAME" else word for word in command)), "error:")


@pytest.mark.parametrize("command", ["serve", "node", "ui"])
@pytest.mark.parametrize("port", ["-1", "99999999"])
def test_ports(command: str, port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bustseg: Run) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(bustseg(command, "--port", port), f"--port is {port}: give a number from 0 to 65535")


def test_errors_that_are_chained_in_a_circle_are_told() -> None:
    first, second = ValueError("first"), RuntimeError("second")
    first.__context__, second.__context__ = second, first
    assert in_one_line(first) == ("ValueError: first (run again with --debug for the traceback)", 1)


def test_an_endless_message_is_cut_in_the_middle() -> None:
    line, code = in_one_line(UserError(f"no image {'x' * 1_000_000}: name another"))
    assert (len(line) < 1100, code) == (True, 2)
    assert line.startswith("no image xxx")
    assert line.endswith("xxx: name another")
