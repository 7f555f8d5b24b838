"""Trainings of two processes on one machine (gloo), as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run

from bustseg.data.datamodule import EpochSampler, EqualBatches
from bustseg.errors import TrainingError
from bustseg.runs.tracker import Tracker, tracking_uri
from bustseg.training import processes
from bustseg.training.processes import OtherProcesses, command
from tests.conftest import REPOSITORY, TINY, TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
PLAIN = (
    *("--config", TINY, "--data.augmentation", "none", "--data.eval_batch_size", 2),
    *("--model.network", "tests.networks_for_tests.PlainNet", "--model.optimizer", "torch.optim.SGD"),
    *("--model.optimizer.init_args.lr", 0.1),
)


def runs() -> list[Run]:
    client = mlflow.MlflowClient(tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time"])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 5, 7, 12])
def test_ranks_share_every_image_once_in_as_many_batches(length: int, world: int) -> None:
    ranks = [
        list(EqualBatches(EpochSampler(length, 0, shuffle=False, rank=rank, world_size=world), 2, drop_last=False))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(image for batches in ranks for batch in batches for image in batch) == list(range(length))
    for rank in range(world):
        sampler = EpochSampler(length, 0, shuffle=True, rank=rank, world_size=world)
        assert len(sampler) == len(list(sampler)) == -(-length // world), "training never waits for a short rank"
        assert len(EqualBatches(sampler, 2, drop_last=False)) == len(ranks[0])


def test_the_ranks_batches_make_up_one_large_batch() -> None:
    one = list(EqualBatches(EpochSampler(24, 3, shuffle=True), 8, drop_last=False))
    two = [
        list(EqualBatches(EpochSampler(24, 3, shuffle=True, rank=rank, world_size=2), 4, drop_last=False))
        for rank in range(2)
    ]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]


def write_split(phantoms: Path, path: Path, val: int, test: int) -> Path:
    """A split with ``val`` lesion images and ``test`` images of all classes; the rest, of even number, trains."""
    images = sorted(file.stem for file in phantoms.rglob("*.png") if "_mask" not in file.stem)
    normals = [image for image in images if image.startswith("normal")]
    lesions = [image for image in images if not image.startswith("normal")]
    order = lesions[:val] + normals[:2] + lesions[val::3][: test - 2]
    order += [image for image in images if image not in order]
    subsets = ["val"] * val + ["test"] * test + ["train"] * (len(images) - val - test)
    pd.DataFrame({"image": order, "subset": subsets}).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_two_processes_train_and_test_as_one(
    bustseg: Bustseg, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One validation image, so that a process has none; nine test images in batches of two: three batches and two."""
    monkeypatch.setenv("BUSTSEG_CACHE", str(tmp_path / "cache"))
    options = (*PLAIN, "--data.root", phantoms, "--data.split", write_split(phantoms, tmp_path / "split.csv", 1, 9))
    for own in ((*TWO, "--data.batch_size", 4), ("--data.batch_size", 8)):
        code, _, err = bustseg("fit", *options, *own)
        assert code == 0, err
    two, one = runs()
    assert (two.info.status, one.info.status) == ("FINISHED", "FINISHED")
    assert two.data.tags["device"].endswith(" x 2")
    assert two.data.tags["mlflow.runName"].startswith("tiny ")
    for name in ("train/loss", "val/loss", "val/dice_lesion"):
        assert two.data.metrics[name] == pytest.approx(one.data.metrics[name], rel=1e-5), name
    folders = [Path("mlruns/artifacts") / run.info.run_id / "artifacts" for run in (two, one)]
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 6
    for name, values in weights[1]["state_dict"].items():
        torch.testing.assert_close(weights[0]["state_dict"][name], values, rtol=1e-4, atol=1e-6)
    assert len(list(Path().rglob("*.ckpt"))) == 4, "each checkpoint lies there once"
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1
    assert "LOCAL_RANK" not in os.environ
    assert not torch.distributed.is_initialized()

    scores, tables, images = [], [], []
    for own in ((), TWO):
        code, out, err = bustseg("test", "--ckpt_path", two.info.run_id, *own, "--model.threshold", 0.25)
        assert code == 0, err
        images.append(next(line for line in out.splitlines() if line.startswith("test: ")))
        metrics = mlflow.MlflowClient(tracking_uri()).get_run(two.info.run_id).data.metrics
        scores.append({name: value for name, value in metrics.items() if "seconds" not in name})
        tables.append({name: pd.read_csv(folders[0] / "tables" / f"{name}.csv") for name in ("val", "test")})
        pictures = {str(path.relative_to(folders[0])) for path in folders[0].rglob("*.png")}
        assert {"panels/test.png", "curves/roc.png", "explain/cases.png"} <= pictures
        for path in folders[0].rglob("*.png"):
            path.unlink()
    assert all(line.startswith("test: 9 images") for line in images)
    assert scores[0].keys() == scores[1].keys()
    assert {"test/loss", "test/auc_pixel", "test/hd95", "test/dice_lesion_benign", "train/auc_pixel"} <= set(scores[0])
    assert 0.01 < scores[0]["test/dice_lesion"] < 0.99
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    for name, count in (("val", 1), ("test", 9)):
        assert len(tables[0][name]) == count
        pd.testing.assert_frame_equal(tables[0][name], tables[1][name], rtol=1e-6)
        assert not tables[1][name]["image"].duplicated().any()
    assert len(runs()) == 2
    assert runs()[0].info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_whose_second_process_fails_says_why(bustseg: Bustseg, phantoms: Path) -> None:
    code, _, err = bustseg(
        "fit", *PLAIN, *TWO, "--data.root", phantoms, "--data.batch_size", 4, "--model.network.init_args.fails_on", 1
    )
    assert code == 2
    assert err.strip().splitlines()[-1] == (
        "error: process 1 of this machine's 2 (counted from 0) ended with exit code 1"
    )
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "process 1: RuntimeError: this process was told to fail"
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_both_processes_and_the_run_as_killed(phantoms: Path) -> None:
    command = [sys.executable, "-m", "bustseg.cli", "fit", *PLAIN, *TWO, "--data.root", phantoms]
    process = subprocess.Popen(
        [*map(str, command), "--trainer.max_epochs", "10000", "--early_stopping.patience", "10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(REPOSITORY),
        },
        start_new_session=True,
        # a shell's background jobs ignore Ctrl-C, and what they start inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to both
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in err
    assert "error: " not in err.replace("error: stopped", "")
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert "error" not in run.data.tags
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, 0)


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}


def together(others: OtherProcesses, program: str, work: Callable[[], object], said: list[str] | None = None) -> object:
    """What ``work`` gives in this process while another runs ``program``."""
    said = [] if said is None else said
    with others.running([sys.executable, "-S", "-c", program], 2, PLACE, said.append):
        return work()


def lost_connection() -> None:
    raise RuntimeError("Connection closed by peer")


def test_a_lost_connection_is_explained_by_the_process_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 5)
    before = dict(os.environ)
    with pytest.raises(TrainingError, match=r"process 1 .* was ended by signal 9"):
        together(OtherProcesses(), "import os; os.kill(os.getpid(), 9)", lost_connection)
    assert dict(os.environ) == before
    monkeypatch.setattr(processes, "GRACE", 0.1)
    started: list[subprocess.Popen[bytes]] = []
    others = OtherProcesses()

    def fail() -> None:
        started.extend(others.processes)
        lost_connection()

    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        together(others, "import time; time.sleep(60)", fail)
    assert started[0].wait(5) == -signal.SIGKILL, "the other process does not outlive this one's failure"


def test_the_run_says_which_process_died(trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks learn of an error before the command line does, and the first of them to close the run says why."""
    closed: list[str] = []
    monkeypatch.setattr(Tracker, "close_as_failed", lambda self, error: closed.append(error))
    others, trainer = OtherProcesses(), SimpleNamespace(loggers=[Tracker(uri=trained_run.uri)], is_global_zero=True)

    def fail() -> None:
        try:
            lost_connection()
        except RuntimeError as error:
            others.on_exception(trainer, None, error)  # type: ignore[arg-type]
            raise

    with pytest.raises(TrainingError):
        together(others, "raise SystemExit(3)", fail)
    assert closed == ["process 1 of this machine's 2 (counted from 0) ended with exit code 3"]


def test_the_other_process_finds_its_place_in_the_environment(tmp_path: Path) -> None:
    program = (
        "import os; print(*[os.environ[name] for name in ('LOCAL_RANK', 'WORLD_SIZE', 'NODE_RANK', 'MASTER_ADDR')], "
        f"file=open({str(tmp_path / 'place')!r}, 'w'))"
    )
    assert together(OtherProcesses(), program, lambda: os.environ["LOCAL_RANK"]) == "0"
    assert (tmp_path / "place").read_text().split() == ["1", "2", "0", "127.0.0.1"]


@pytest.mark.parametrize(("argv", "last"), [(["fit"], "x.yaml"), (["fit", "--debug"], "--debug")])
def test_the_other_processes_show_tracebacks_where_this_one_does(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], last: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bustseg", *argv])
    assert command("fit", Path("x.yaml"))[-1] == last


def test_a_process_that_hangs_for_a_dead_one_closes_the_run_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, said = threading.Event(), []
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(processes, "GRACE", 0.2)
    monkeypatch.setattr(processes.os, "_exit", end)
    started = time.monotonic()
    together(OtherProcesses(), "raise SystemExit(3)", lambda: ended.wait(30), said)
    assert codes[:1] == [3]
    assert said[0].endswith("ended with exit code 3")
    assert np.less(time.monotonic() - started, 30)
