"""After a kill at any step, metrics neither miss nor appear twice, and no run is left as if it went on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import harness

EPOCHS = ("--trainer.max_epochs", 3)

pytestmark = pytest.mark.faults


def die() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until the signal is there


def kill_at(
    owner: Any, name: str, nth: int = 1, after: bool = False, match: Callable[..., bool] = lambda *a, **k: True
) -> None:
    """Kill this process at the nth call of a function that matches, before or after what it does."""
    original, count = getattr(owner, name), 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        hit = match(*args, **kwargs)
        count += hit
        if hit and count == nth and not after:
            die()
        result = original(*args, **kwargs)
        if hit and count == nth and after:
            die()
        return result

    setattr(owner, name, wrapper)


def is_last(checkpoints: Any, content: Any, path: Any, *rest: Any, **named: Any) -> bool:
    return Path(path).name == "last.ckpt"


def of_kind(kind: str) -> Callable[..., bool]:
    return lambda session, written, *rest, **named: written == kind


def has(text: bytes) -> Callable[..., bool]:
    return lambda file, content, offset: text in content


def half_a_line(text: bytes, nth: int) -> None:
    """Kill this process in the middle of the nth line with ``text``."""
    write, count = os.pwrite, 0

    def half(file: int, content: bytes, offset: int) -> int:
        nonlocal count
        count += text in content
        if text in content and count == nth:
            write(file, content[: len(content) // 2], offset)
            die()
        return write(file, content, offset)

    os.pwrite = half


def half_a_checkpoint(nth: int) -> None:
    """Kill this process in the middle of the nth ``last.ckpt``."""
    from bustseg.callbacks.checkpoints import AtomicCheckpointIO

    save, count = AtomicCheckpointIO.save_checkpoint, 0

    def half(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        nonlocal count
        count += is_last(self, checkpoint, path)
        if is_last(self, checkpoint, path) and count == nth:
            Path.replace = lambda *args: die()  # the whole temporary file is there, and never gets its name
        save(self, checkpoint, path, storage_options)

    AtomicCheckpointIO.save_checkpoint = half


def steps() -> dict[str, harness.Patch]:
    """The places at which a fit is killed, in the order in which it comes by them; most of them in its second epoch."""
    from mlflow.tracking import MlflowClient

    from bustseg.callbacks import LastCheckpoint
    from bustseg.callbacks.checkpoints import AtomicCheckpointIO
    from bustseg.runs.run import Run
    from bustseg.runs.session import Session
    from bustseg.runs.sinks import MlflowSink

    return {
        "while the run is made": lambda: kill_at(Session, "begin"),
        "after the run was made": lambda: kill_at(Run, "log_params", after=True),
        "in the first epoch": lambda: kill_at(LastCheckpoint, "on_train_epoch_end"),
        "after a validation": lambda: kill_at(Session, "append", 2, after=True, match=of_kind("metrics")),
        "before an epoch's metrics": lambda: kill_at(LastCheckpoint, "on_train_epoch_end", 2),
        "in an epoch's metrics": lambda: half_a_line(b'"train/loss"', 2),
        "before a checkpoint": lambda: kill_at(AtomicCheckpointIO, "save_checkpoint", 2, match=is_last),
        "in the first checkpoint": lambda: half_a_checkpoint(1),
        "in a checkpoint": lambda: half_a_checkpoint(2),
        "after a checkpoint": lambda: kill_at(AtomicCheckpointIO, "save_checkpoint", 2, after=True, match=is_last),
        "in the note of a checkpoint": lambda: half_a_line(b'"commit"', 2),
        "after the note of a checkpoint": lambda: kill_at(Session, "append", 2, after=True, match=of_kind("commit")),
        "before something is sent": lambda: kill_at(MlflowSink, "send", 3),
        "after the store has it": lambda: kill_at(MlflowClient, "log_batch", 3, after=True),
        "before that is noted": lambda: kill_at(Session, "acknowledge", 3),
        "after the last epoch": lambda: kill_at(Run, "close"),
        "before the end is noted": lambda: kill_at(Session, "append", match=of_kind("status")),
        "after the end is noted": lambda: kill_at(Session, "append", after=True, match=of_kind("closed")),
        "before the end is sent": lambda: kill_at(MlflowClient, "set_terminated"),
        "after the end is sent": lambda: kill_at(MlflowClient, "set_terminated", after=True),
        "before the spool is cleared": lambda: kill_at(Session, "remove"),
    }


SHORT = ("before a checkpoint", "after a checkpoint", "before the end is sent")
"""The steps of the short form: one for each way to recover."""


def recover(world: harness.World, undisturbed: harness.Undisturbed) -> None:
    """Go on after a kill as a user would, and check that it is as if nothing had happened."""
    checkpoint = world.last_checkpoint()
    options = [] if checkpoint is None else ["--ckpt_path", checkpoint]
    ended = world.run("fit", *(options or world.options), *EPOCHS)
    assert ended.code == 0, ended.err
    check(world, undisturbed)


def check(world: harness.World, undisturbed: harness.Undisturbed) -> None:
    """Check that there is one whole run, that the others are KILLED, and that nothing waits any more."""
    assert world.run("sync").code == 0
    statuses = harness.statuses(world.database)
    (whole,) = [run_id for run_id, status in statuses.items() if status == "FINISHED"]
    assert set(statuses.values()) <= {"FINISHED", "KILLED"}, "no run is left as if it went on"
    harness.compare_points(harness.points(world.database, whole), undisturbed.points)
    assert world.spooled() == []
    assert not list(world.folder.glob("mlruns/**/*.tmp")), "no half files are left"


STEPS = list(SHORT) if not harness.LONG else None


@pytest.mark.promise(
    "A fit that is killed at any step goes on as if nothing had happened: no metric is lost or doubled"
)
@pytest.mark.parametrize("step", STEPS or list(steps()))
def test_a_fit_that_is_killed_goes_on_as_if_nothing_had_happened(
    world: harness.World, undisturbed: harness.Undisturbed, step: str
) -> None:
    ended = world.fit(*EPOCHS, patch=steps()[step])
    assert ended.code == -signal.SIGKILL, f"it was not killed at this step: {ended.err}"
    recover(world, undisturbed)


@pytest.mark.promise("So does one that is killed at a random moment, twice")
@pytest.mark.parametrize("seed", range(40 if harness.LONG else 1))
def test_a_fit_that_is_killed_at_random_goes_on_as_if_nothing_had_happened(
    world: harness.World, undisturbed: harness.Undisturbed, seed: int
) -> None:
    moments = random.Random(seed)
    for _ in range(2):
        checkpoint = world.last_checkpoint()
        options = world.options if checkpoint is None else ["--ckpt_path", str(checkpoint)]
        started = harness.start(world.folder, "fit", *options, *EPOCHS)
        time.sleep(moments.uniform(0.2, 1.0) * undisturbed.seconds)
        started.kill()
        started.wait()
    recover(world, undisturbed)


@pytest.mark.promise("A run whose process was killed is marked KILLED by the next command in its store")
@pytest.mark.parametrize(
    "command", [("sync",), *([("compare", "0" * 32, "1" * 32)] if harness.LONG else [])], ids=lambda words: words[0]
)
def test_the_next_command_marks_a_killed_run(world: harness.World, command: tuple[str, ...]) -> None:
    from bustseg.callbacks import LastCheckpoint

    ended = world.fit(*EPOCHS, patch=lambda: kill_at(LastCheckpoint, "on_train_epoch_end"))
    assert ended.code == -signal.SIGKILL
    assert list(harness.statuses(world.database).values()) == ["RUNNING"]
    err = world.run(*command).err
    assert list(harness.statuses(world.database).values()) == ["KILLED"]
    assert "left behind by a process that has ended: marked KILLED" in err
    ((end,),) = harness.read(world.database, "SELECT end_time FROM runs")
    assert end <= time.time() * 1000, "it ended when it was last heard of"
    assert [step for step, _ in harness.points(world.database)["val/loss"]] == [0], "nobody will measure it again"


@pytest.mark.long_form
@pytest.mark.promise("A run that goes on is left alone by other commands in its store")
def test_a_living_run_is_left_alone(world: harness.World) -> None:
    started = harness.start(world.folder, "fit", *world.options, "--trainer.max_epochs", 200)
    while not (world.last_checkpoint() or (world.spooled() and harness.statuses(world.database))):
        time.sleep(0.05)
    assert world.run("sync").code == 0
    assert list(harness.statuses(world.database).values()) == ["RUNNING"]
    started.kill()
    started.wait()


@pytest.mark.promise("A test that is killed leaves no half of its scores, and its run as it was")
def test_a_killed_test_is_repeated_as_a_whole(world: harness.World, undisturbed: harness.Undisturbed) -> None:
    from bustseg.runs.run import Run

    assert world.fit(*EPOCHS).code == 0
    options = ("test", "--ckpt_path", "latest", "--explain.enabled", "false")
    ended = world.run(*options, patch=lambda: kill_at(Run, "close"))
    assert ended.code == -signal.SIGKILL
    assert world.run("sync").code == 0
    assert list(harness.statuses(world.database).values()) == ["FINISHED"]
    assert not [name for name in harness.points(world.database) if name.startswith("test/")]
    assert world.run(*options).code == 0
    scores = {name: found for name, found in harness.points(world.database).items() if name.startswith("test/")}
    assert scores["test/dice_lesion"]
    assert {len(found) for found in scores.values()} == {1}
