"""A full disk, a locked or read-only store: one line, and nothing lost that fits."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import harness

pytestmark = pytest.mark.faults

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of some megabytes and gives its folder."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            pytest.skip("needs the right to mount a small disk (root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    """Take all room of a disk but some bytes."""
    usage = shutil.disk_usage(folder)
    with (folder / "ballast").open("wb") as file:
        try:
            file.write(bytes(max(0, usage.free - leave)))
        except OSError:
            return


def one_line(ended: harness.Ended) -> str:
    """The error that a command ended with: the only one, in one line, without a traceback."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, ended.err[-3000:]
    assert "Traceback" not in ended.err, ended.err[-3000:]
    assert len(ended.err.splitlines()) < 15, ended.err
    return lines[0]


def fill_at(name: str, nth: int, folder: Path) -> None:
    """Fill the disk of this process before the nth call of a method of `LastCheckpoint`."""
    from bustseg.callbacks import LastCheckpoint

    original, count = getattr(LastCheckpoint, name), 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            fill(folder)
        return original(*args, **kwargs)

    setattr(LastCheckpoint, name, wrapper)


@pytest.mark.promise("A disk that fills up ends a fit in one line; with room it goes on, and no metric is missing")
@pytest.mark.parametrize(
    "place", ["on_train_epoch_end", *(["on_train_epoch_start"] if harness.LONG else [])], ids=lambda name: name[9:]
)
def test_a_full_disk_ends_a_fit_in_one_line(
    small_disk: Callable[[int], Path],
    few_phantoms: Path,
    template: Path,
    undisturbed: harness.Undisturbed,
    place: str,
) -> None:
    disk = small_disk(128)
    world = harness.World(disk / "world", few_phantoms, template)
    options = ("--trainer.max_epochs", 3)
    ended = world.fit(*options, patch=lambda: fill_at(place, 2, disk))
    assert ended.code == 2, ended.err
    assert "the disk is full" in one_line(ended)
    checkpoint = world.last_checkpoint()
    assert checkpoint is not None
    assert not list(world.folder.glob("mlruns/**/*.tmp")), "half files would take the room that is missing"

    (disk / "ballast").unlink()
    ended = world.run("fit", "--ckpt_path", checkpoint, *options)
    assert ended.code == 0, ended.err
    harness.compare_points(harness.points(world.database), undisturbed.points)
    assert list(harness.statuses(world.database).values()) == ["FINISHED"]
    assert world.spooled() == []


@pytest.mark.promise("A disk that is full from the beginning is said in one line")
@pytest.mark.parametrize("room", [0, 200_000, 2 * MEGABYTE] if harness.LONG else [200_000])
def test_a_disk_that_is_full_from_the_beginning_is_said_in_one_line(
    small_disk: Callable[[int], Path], few_phantoms: Path, template: Path, room: int
) -> None:
    disk = small_disk(64)
    world = harness.World(disk / "world", few_phantoms, template)
    fill(disk, leave=room)
    ended = world.fit("--trainer.max_epochs", 1)
    assert ended.code == 2, ended.err
    assert "disk is full" in one_line(ended)
    (disk / "ballast").unlink()
    assert world.run("sync").code == 0
    assert "RUNNING" not in harness.statuses(world.database).values()


@pytest.mark.long_form
@pytest.mark.promise("A disk that fills up in a test ends it in one line, and its run stays as it was")
def test_a_full_disk_ends_a_test_in_one_line(
    small_disk: Callable[[int], Path], few_phantoms: Path, template: Path
) -> None:
    disk = small_disk(128)
    world = harness.World(disk / "world", few_phantoms, template)
    assert world.fit("--trainer.max_epochs", 1).code == 0

    def full() -> None:
        from bustseg.callbacks import TestPasses

        begin = TestPasses.on_test_start

        def wrapper(self: Any, *args: Any) -> None:
            fill(disk)
            begin(self, *args)

        TestPasses.on_test_start = wrapper

    options = ("test", "--ckpt_path", "latest", "--explain.enabled", "false")
    ended = world.run(*options, patch=full)
    assert ended.code == 2, ended.err
    assert "disk is full" in one_line(ended)
    (disk / "ballast").unlink()
    assert world.run(*options).code == 0
    assert list(harness.statuses(world.database).values()) == ["FINISHED"]
    found = harness.points(world.database)
    assert found["test/dice_lesion"]


@pytest.mark.long_form
@pytest.mark.promise("A database that another process locks for a while holds up no fit, and has everything at the end")
def test_a_locked_database_holds_up_no_fit(world: harness.World, undisturbed: harness.Undisturbed) -> None:
    holder: list[sqlite3.Connection] = []

    def lock() -> None:
        from bustseg.callbacks import LastCheckpoint

        begin = LastCheckpoint.on_train_epoch_start

        def wrapper(self: Any, trainer: Any, task: Any) -> None:
            begin(self, trainer, task)
            if trainer.current_epoch == 1:
                holder.append(sqlite3.connect(world.database, isolation_level=None))
                holder[0].execute("BEGIN EXCLUSIVE")
            if trainer.current_epoch == 2:
                holder.pop().close()

        LastCheckpoint.on_train_epoch_start = wrapper

    ended = world.fit("--trainer.max_epochs", 3, patch=lock)
    assert ended.code == 0, ended.err
    assert world.run("sync").code == 0
    harness.compare_points(harness.points(world.database), undisturbed.points)
    assert list(harness.statuses(world.database).values()) == ["FINISHED"]


@pytest.mark.promise("A store that is locked from the beginning is said in one line, and no run is left behind")
def test_a_store_that_is_locked_from_the_beginning(world: harness.World) -> None:
    holder = sqlite3.connect(world.database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        ended = world.fit("--trainer.max_epochs", 1)
    finally:
        holder.close()
    assert ended.code == 2
    assert "locked by another process" in one_line(ended)
    assert harness.statuses(world.database) == {}


@pytest.mark.promise("A store that can only be read is read, and refused for writing in one line")
def test_a_read_only_store(world: harness.World) -> None:
    assert world.fit("--trainer.max_epochs", 1).code == 0
    (run_id,) = harness.statuses(world.database)
    folder = str(world.database.parent)
    mounted = (
        subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode == 0
        and subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True).returncode == 0
    )
    if not mounted:
        if os.getuid() == 0:
            pytest.skip("root writes anyway, and this machine lets nobody mount")
        world.database.chmod(0o444)
        world.database.parent.chmod(0o555)
    try:
        for verb in (("fit", *world.options), ("test", "--ckpt_path", run_id)):
            ended = world.run(*verb)
            assert ended.code == 2, ended.err
            assert "is read-only" in one_line(ended)
        picture = sorted((Path(world.options[3]) / "benign").glob("*.png"))[0]
        ended = world.run("predict", picture, "--model", run_id, "--out", "predicted")
        assert ended.code == 0, ended.err
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            world.database.parent.chmod(0o755)
            world.database.chmod(0o644)


@pytest.mark.long_form
@pytest.mark.promise("A project that was moved finds its checkpoints, and keeps new runs to itself")
def test_a_moved_project(world: harness.World) -> None:
    assert world.fit("--trainer.max_epochs", 1).code == 0
    moved = world.folder.with_name("moved")
    world.folder.rename(moved)
    ended = harness.run(moved, "test", "--ckpt_path", "latest", "--explain.enabled", "false")
    assert ended.code == 0, ended.err
    world.folder = moved
    assert world.fit("--trainer.max_epochs", 1).code == 0
    assert not world.folder.with_name("world").exists()
    assert len(list(moved.glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt"))) == 2


@pytest.mark.promise("A deleted experiment is said in one line with the command that restores it")
def test_a_deleted_experiment(world: harness.World) -> None:
    assert world.fit("--trainer.max_epochs", 1).code == 0
    with sqlite3.connect(world.database) as connection:
        connection.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'tiny'")
    connection.close()
    ended = world.fit("--trainer.max_epochs", 1)
    assert ended.code == 2
    assert "mlflow experiments restore" in one_line(ended)
    assert len(harness.statuses(world.database)) == 1, "and no run is left behind"
