"""Runs commands in processes that can be killed, without paying for their imports each time."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.launcher import REPOSITORY, Limits, Request, launcher

TINY = REPOSITORY / "tests" / "configs" / "tiny.yaml"
LONG = os.environ.get("BUSTSEG_FAULTS") == "long"
"""Whether the long form runs (``python -m tests.faults``), or the short one that CI runs."""

Patch = Callable[[], None]
"""Changes the child process before it runs its command: where it is killed, what its disk or store does."""


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative for a signal
        out, err: what it printed
        seconds: how long it took
        mebibytes: the most memory that it has held, beyond that of the imports
        cpu_seconds: how long its threads have computed, whatever else the machine did
    """

    code: int
    out: str
    err: str
    seconds: float
    mebibytes: float
    cpu_seconds: float


@dataclass
class Started:
    """A command that is running in a process of its own."""

    pid: int
    log: Path
    start: float

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait_for(self, text: str, times: int = 1, limit: float = 300) -> None:
        """Wait until the command has printed a text so many times on its standard output."""
        printed = self.log.with_suffix(".out")  # made by the command itself
        while not printed.exists() or printed.read_text(errors="replace").count(text) < times:
            assert not self.log.with_suffix(".status").exists(), self.wait()
            if time.monotonic() - self.start > limit:
                self.kill()
                raise AssertionError(f"{text!r} was not printed within {limit} s")
            time.sleep(0.02)

    def wait(self, limit: float = 900) -> Ended:
        """Wait for the command's end; one that takes longer than ``limit`` seconds is killed."""
        noted = self.log.with_suffix(".status")
        while not noted.exists():
            if time.monotonic() - self.start > limit:
                os.kill(self.pid, signal.SIGUSR1)  # where it hangs
                time.sleep(1)
                self.kill()
                raise AssertionError(f"no end after {limit} s:\n{self.log.with_suffix('.err').read_text()[-3000:]}")
            time.sleep(0.01)
        self.kill()  # loader processes that a killed command leaves
        seconds = time.monotonic() - self.start
        out, err = (self.log.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err"))
        status, kibibytes, computed = noted.read_text().split()
        code = os.waitstatus_to_exitcode(int(status))
        return Ended(code, out, err, seconds, int(kibibytes) / 1024, float(computed))


_numbers = itertools.count(1)
_logs = tempfile.TemporaryDirectory(prefix="bustseg-faults-")
"""What commands print, on a disk that no test fills"""


def start(
    folder: Path,
    *args: object,
    patch: Patch | None = None,
    env: dict[str, str] | None = None,
    limits: Limits | None = None,
) -> Started:
    """Start ``bustseg ARGS`` in a folder, in a process of its own, which has everything imported."""
    log = Path(_logs.name) / f"{next(_numbers):03d}"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | (env or {})
    begun = time.monotonic()
    pid = launcher().start(Request(folder, [str(arg) for arg in args], log, environment, patch, limits))
    return Started(pid, log, begun)


def run(
    folder: Path,
    *args: object,
    patch: Patch | None = None,
    env: dict[str, str] | None = None,
    limit: float = 900,
    limits: Limits | None = None,
) -> Ended:
    """Run ``bustseg ARGS`` in a folder and wait for its end, see :func:`start`."""
    return start(folder, *args, patch=patch, env=env, limits=limits).wait(limit)


class World:
    """A folder with phantoms and a fresh local store, in which commands run.

    Args:
        folder: made
        phantoms: their data
        template: a database that a local store begins with, since making one takes seconds; None for none
    """

    def __init__(self, folder: Path, phantoms: Path, template: Path | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.options = ["--config", str(TINY), "--data.root", str(phantoms), "--tracking.log_model", "false"]
        if template is not None:
            (folder / "mlruns").mkdir()
            shutil.copy(template, folder / "mlruns" / "mlflow.db")

    @property
    def database(self) -> Path:
        """The local store's database."""
        return self.folder / "mlruns" / "mlflow.db"

    def fit(self, *options: object, patch: Patch | None = None, env: dict[str, str] | None = None) -> Ended:
        """Run a fit."""
        return run(self.folder, "fit", *self.options, *options, patch=patch, env=env)

    def run(self, *args: object, patch: Patch | None = None, env: dict[str, str] | None = None) -> Ended:
        """Run any command."""
        return run(self.folder, *args, patch=patch, env=env)

    def last_checkpoint(self) -> Path | None:
        """The newest ``last.ckpt``."""
        found = sorted(self.folder.glob("mlruns/**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def spooled(self) -> list[Path]:
        """Journals that wait in the spool."""
        return sorted(self.folder.glob("mlruns/spool/*/*.jsonl"))


def read(database: Path, query: str, *values: object) -> list[tuple]:
    """Rows of a query, read without MLflow, which would hold the database open."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def statuses(database: Path) -> dict[str, str]:
    """Status by run id."""
    return dict(read(database, "SELECT run_uuid, status FROM runs"))


Points = dict[str, list[tuple[int, float]]]
"""Step and value of every point of every metric, in order of steps."""


def points(database: Path, run_id: str | None = None) -> Points:
    """All points of a run, or of the only one."""
    if run_id is None:
        (run_id,) = statuses(database)
    found: Points = {}
    for name, step, value in read(
        database, "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step, value", run_id
    ):
        found.setdefault(name, []).append((step, value))
    return found


TIMED = ("train/epoch_seconds", "train/images_per_second", "train/peak_memory_gib")
"""Metrics that differ between two runs of the same."""


def compare_points(found: Points, expected: Points) -> None:
    """Check that every metric is there at every step exactly once, with the value of an undisturbed run.

    Raises:
        AssertionError: a point is missing, there twice, or has another value
    """
    for name in sorted({*found, *expected}):
        if name.endswith("_step"):  # at most one a second, so that no two runs have the same
            steps = [step for step, _ in found.get(name, [])]
            assert len(set(steps)) == len(steps), f"{name} has steps twice: {steps}"
            continue
        steps, wanted = [step for step, _ in found.get(name, [])], [step for step, _ in expected.get(name, [])]
        assert steps == wanted, f"{name} has the steps {steps}, not {wanted}"
        if not name.startswith(TIMED) and "seconds" not in name:
            assert found[name] == expected[name], f"{name} has other values: {found[name]}, not {expected[name]}"


@dataclass(frozen=True)
class Undisturbed:
    """A fit to which nothing happened.

    Attributes:
        points: all its points
        seconds: how long it took
    """

    points: Points
    seconds: float
