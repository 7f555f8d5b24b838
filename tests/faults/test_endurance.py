"""Long trainings and many runs in one process: nothing grows that should not, and a dead worker is replaced."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults import harness

pytestmark = [pytest.mark.faults, pytest.mark.long_form]

EPOCHS, RUNS = 200, 30

WARM = 0.25
"""Part of the time in which what is loaded and cached once has come; what grows after it, grows for ever."""

MEMORY_MIB = 40.0
"""What the allocator may keep between two times of the same work."""


def note_usage(log: Path, database: Path) -> None:
    """Append what this process uses to a file: MiB of memory, open files, threads, KiB of the store's database."""
    import gc

    import psutil

    gc.collect()
    process = psutil.Process()
    used = {
        "memory": process.memory_info().rss / 2**20,
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "database": database.stat().st_size / 1024,
    }
    with log.open("a") as file:
        file.write(json.dumps(used) + "\n")


def check_flat(log: Path, times: int) -> str:
    """Check that what a process used did not grow once it was warm; returns what it was in words.

    A database has a row for each point of each metric, so that it may grow, but as fast at the end as before.

    Raises:
        AssertionError: something grew
    """
    usage = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(usage) == times
    warm, last = usage[int(WARM * times)], usage[-1]
    assert last["memory"] - warm["memory"] < MEMORY_MIB, f"memory grew: {[round(use['memory']) for use in usage]}"
    for name in ("files", "threads"):
        # the sender's thread and its connection come and go
        assert last[name] <= warm[name] + 2, f"{name} grew: {[use[name] for use in usage]}"
    half = times // 2
    first, second = (usage[b]["database"] - usage[a]["database"] for a, b in ((half // 2, half), (half, times - 1)))
    assert second < 1.3 * 2 * max(first, 64), f"the database grew faster: {[use['database'] for use in usage]}"
    rate = (last["database"] - warm["database"]) / (times - 1 - int(WARM * times))
    words = [f"{name} {warm[name]} to {last[name]}" for name in ("files", "threads")]
    return f"memory {warm['memory']:.0f} to {last['memory']:.0f} MiB, {', '.join(words)}, database {rate:.1f} KiB each"


@pytest.mark.promise("In 200 epochs memory, open files and threads stay, and the database grows evenly")
def test_a_long_fit_stays_as_it_is(world: harness.World, record_property: Callable[[str, object], None]) -> None:
    log = world.folder.parent / "usage.jsonl"

    def watch() -> None:
        from bustseg.callbacks import LastCheckpoint

        begin = LastCheckpoint.on_train_epoch_start

        def wrapper(*args: object) -> None:
            note_usage(log, world.database)
            begin(*args)  # type: ignore[arg-type]

        LastCheckpoint.on_train_epoch_start = wrapper  # type: ignore[assignment, method-assign]

    ended = world.fit("--trainer.max_epochs", EPOCHS, patch=watch)
    assert ended.code == 0, ended.err
    record_property("figure", check_flat(log, EPOCHS))
    assert [step for step, _ in harness.points(world.database)["val/loss"]] == list(range(EPOCHS))
    assert world.spooled() == []


@pytest.mark.promise("In 30 runs of one process memory, open files and threads stay, and the database grows evenly")
def test_many_runs_in_one_process(world: harness.World, record_property: Callable[[str, object], None]) -> None:
    log = world.folder.parent / "usage.jsonl"
    options = [*world.options, "--trainer.max_epochs", "1"]

    def fits_before() -> None:
        from bustseg.cli import main

        for _ in range(RUNS):
            assert main(["fit", *options]) == 0
            note_usage(log, world.database)

    ended = harness.run(world.folder, "sync", patch=fits_before)
    assert ended.code == 0, ended.err
    record_property("figure", check_flat(log, RUNS))
    assert list(harness.statuses(world.database).values()) == ["FINISHED"] * RUNS
    assert world.spooled() == []


SWEEP = """
config: {config}
overrides:
  trainer.max_epochs: 3
space:
  model.optimizer.init_args.lr: [1.0e-4, 1.0e-3, 1.0e-2]
  data.batch_size: [4, 8]
objective: val/loss
direction: minimize
"""


@pytest.mark.promise("A worker of a sweep that is killed is replaced; each point is done once, by three workers")
def test_a_dead_worker_is_replaced(world: harness.World, record_property: Callable[[str, object], None]) -> None:
    plan = world.folder / "six.yaml"
    plan.write_text(SWEEP.format(config=harness.TINY))
    options = ["--config", str(plan), "--data.root", world.options[3], "--tracking.log_model", "false"]
    environment = {"PYTHONPATH": str(harness.REPOSITORY)}
    started = harness.start(world.folder, "sweep", *options, "--workers", 3, env=environment)
    study = world.folder / "mlruns" / "optuna.db"
    killed: list[int] = []
    while len(killed) < 2:  # not more: a point that has killed two workers is given up
        assert time.monotonic() - started.start < 600, "no worker has begun a trial"
        time.sleep(0.5)
        for owner in owners(study):
            if len(killed) < 2 and owner not in killed:
                os.kill(owner, signal.SIGKILL)
                killed.append(owner)
    ended = started.wait()
    assert ended.code == 0, ended.err
    assert ended.err.count("was killed (SIGKILL)") == 2, ended.err
    states = [state for (state,) in harness.read(study, "SELECT state FROM trials")]
    assert states.count("COMPLETE") == 6, states
    assert set(states) <= {"COMPLETE", "FAIL"}, states
    points = harness.read(
        study,
        "SELECT group_concat(param_name || param_value) FROM (SELECT * FROM trial_params ORDER BY param_name) "
        "JOIN trials USING (trial_id) WHERE state = 'COMPLETE' GROUP BY trial_id",
    )
    assert len(set(points)) == 6, "each point once"
    assert not set(killed) & set(owners(study, "COMPLETE")), "what a killed worker had begun was done by another"
    statuses = list(harness.statuses(world.database).values())
    assert statuses.count("FINISHED") == 7, "six trials and the sweep itself"
    assert set(statuses) <= {"FINISHED", "KILLED"}
    assert world.run("sync").code == 0
    assert world.spooled() == []
    record_property("figure", f"2 workers killed, {len(states)} trials for 6 points")


def owners(study: Path, state: str = "RUNNING") -> list[int]:
    """Processes of the trials of a study that are in this state."""
    query = (
        "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) WHERE state = ? AND key = 'owner'"
    )
    with suppress(sqlite3.OperationalError):  # not there yet
        return [int(json.loads(owner)["pid"]) for (owner,) in harness.read(study, query, state)]
    return []
