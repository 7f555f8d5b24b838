"""Shared fixtures: every test runs in a folder of its own, on phantoms, without the user's data or MLflow store."""

from __future__ import annotations

import gc
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fresh_stores import copy_new_stores

# one thread per process: tiny tensors gain nothing from more, and threads that wait for each other cost a lot
os.environ.setdefault("OMP_NUM_THREADS", "1")
# the queues of an MLflow server, a dozen busy processes, which nothing here uses
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

pytest_plugins = ["tests.servers_for_tests"]

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
TINY = Path(__file__).parent / "configs" / "tiny.yaml"


def find_busi() -> Path | None:
    """The real BUSI, where it is at hand: ``BUSI_ROOT``, or beside the checkout."""
    candidates = [os.environ.get("BUSI_ROOT"), REPOSITORY.parent / "shared" / "data" / "Dataset_BUSI_with_GT"]
    return next((Path(path) for path in candidates if path and Path(path).is_dir()), None)


SHORT_TEST = ("--explain.enabled", "false", "--report.subsets", "[]")
"""Options of `bustseg test` where only its scores matter: they spare two passes and most of the pictures."""

BUSI_ROOT = find_busi()
"""Read before the fixture below hides it from the tests."""


def pytest_collection_finish() -> None:
    """Leave what imports have made out of garbage collections, which would look through it for half a second each."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was skipped and why: what a machine lacks must not look like what passed."""
    files: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        files[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[0])
    if files:
        parts = [f"{len(found)} in {', '.join(sorted(set(found)))} ({reason})" for reason, found in files.items()]
        terminalreporter.write_line(f"skipped: {'; '.join(parts)}")


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store is kept that new ones are copies of."""
    return tmp_path_factory.mktemp("store") / "empty.db"


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, cache_folder: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder, a shared cache and no settings from outside."""
    copy_new_stores(empty_store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUSTSEG_CACHE", str(cache_folder))
    for name in ("BUSI_ROOT", "MLFLOW_TRACKING_URI", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 small phantoms in BUSI's layout; read only."""
    from bustseg.data.phantom import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("data") / "phantoms", n=30, seed=1, shape=(96, 128))


@pytest.fixture(scope="session")
def busi_root() -> Path:
    """The real BUSI; skips the test where it is not at hand."""
    if BUSI_ROOT is None:
        pytest.skip("the real BUSI is not at hand (set BUSI_ROOT)")
    return BUSI_ROOT


@pytest.fixture
def bustseg(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, standard output, standard error."""
    from bustseg.cli import main

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def unpadded(text: str) -> str:
    """Markdown whose tables' cells have one blank at each side, however wide the columns are."""
    return "\n".join(
        re.sub(r" *\| *", " | ", line).strip() if line.startswith("|") else line for line in text.splitlines()
    )


@dataclass(frozen=True)
class TrainedRun:
    """A tiny fit that tests share; read only.

    Attributes:
        run_id: its MLflow run
        uri: the store that it is in
        checkpoint: its best checkpoint
    """

    run_id: str
    uri: str
    checkpoint: Path


@pytest.fixture(scope="session")
def _trained_run(phantoms: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    import mlflow

    from bustseg.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BUSTSEG_CACHE", str(cache_folder))
        for name in ("BUSI_ROOT", "MLFLOW_TRACKING_URI", "PL_GLOBAL_SEED"):
            patch.delenv(name, raising=False)
        assert main(["fit", "--config", str(TINY), "--data.root", str(phantoms)]) == 0
    (checkpoint,) = folder.glob("mlruns/artifacts/*/artifacts/checkpoints/best.ckpt")
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    yield TrainedRun(checkpoint.parts[-4], uri, checkpoint)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.run_id == checkpoint.parts[-4], "a test has written into the store that all share"


@pytest.fixture
def trained_run(_trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    """The shared run, its store in use."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _trained_run.uri)
    return _trained_run
