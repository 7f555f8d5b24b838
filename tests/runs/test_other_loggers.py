"""A run without MLflow has the same files in a folder of its own, is tested and compared, and overwrites no other."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY

Bustseg = Callable[..., tuple[int, str, str]]

TENSORBOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "tb"}}
CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
WANDB = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"save_dir": "wb", "offline": True}}


def fit(bustseg: Bustseg, phantoms: Path, logger: Any, *options: object) -> str:
    """Fit with a logger; returns the id of the run, which is in a folder of its own."""
    code, out, err = bustseg(
        *("fit", "--config", TINY, "--data.root", phantoms, "--trainer.logger", json.dumps(logger)),
        *("--trainer.max_epochs", 1, *options),
    )
    assert code == 0, err
    found = re.search(r"^run ([0-9a-f]{32})  in (\S+)", out, re.MULTILINE)
    assert found, out
    assert Path(found[2]).is_dir()
    assert f"checkpoint {Path(found[2]) / 'checkpoints' / 'best.ckpt'}" in out, "it says where the checkpoint is"
    return found[1]


def folder(run_id: str) -> Path:
    return Path("mlruns/local") / run_id


def files(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def small_test(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    return ("--explain.encoders", "false", "--explain.details", "1", "--explain.cases", "1")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_every_file_of_a_run_is_there_without_mlflow(
    bustseg: Bustseg, phantoms: Path, small_test: tuple[str, ...], trained_files: set[str]
) -> None:
    first = fit(bustseg, phantoms, False)
    assert not Path("mlruns/mlflow.db").exists(), "nobody asked for MLflow"
    code, out, err = bustseg("test", "--ckpt_path", "latest", *small_test)
    assert code == 0, err
    assert f"run {first}" in out, "the test belongs to the run that was trained"
    assert files(folder(first)) - {"run.json", "metrics.csv"} == trained_files

    record = json.loads((folder(first) / "run.json").read_text())
    assert (record["status"], record["params"]["trainer.max_epochs"]) == ("FINISHED", "1")
    assert {"val/loss", "train/loss", "test/dice_lesion"} <= set(record["metrics"])
    assert {"data_digest", "versions", "best.epoch"} <= set(record["tags"])
    rows = list(csv.DictReader((folder(first) / "metrics.csv").open()))
    losses = [row for row in rows if row["metric"] == "val/loss"]
    assert [(row["step"], float(row["value"])) for row in losses] == [("0", record["metrics"]["val/loss"])]

    # the next run overwrites nothing, and the two are compared
    before = digest(folder(first) / "checkpoints" / "best.ckpt")
    second = fit(bustseg, phantoms, False, "--seed_everything", 1)
    assert digest(folder(first) / "checkpoints" / "best.ckpt") == before
    assert bustseg("test", "--ckpt_path", second, *small_test)[0] == 0
    code, out, err = bustseg("compare", first, second)
    assert code == 0, err
    assert "dice" in out.lower()
    assert not Path("checkpoints").exists()
    assert not list(Path("mlruns/spool").iterdir())

    # one more epoch of the same run
    code, _, err = bustseg("fit", "--ckpt_path", first, "--trainer.max_epochs", 2)
    assert code == 0, err
    rows = list(csv.DictReader((folder(first) / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["metric"] == "val/loss"] == ["0", "1"]


@pytest.fixture
def trained_files(bustseg: Bustseg, phantoms: Path, small_test: tuple[str, ...], tmp_path: Path) -> set[str]:
    """Names of the files that a tested run leaves in MLflow's store."""
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "with").mkdir()
        patch.chdir(tmp_path / "with")
        options = ("--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1)
        # pictures over epochs are for MLflow's own charts
        only_mlflow = ("--tracking.log_model", "false", "--tracking.pictures", "false")
        assert bustseg("fit", *options, *only_mlflow)[0] == 0
        assert bustseg("test", "--ckpt_path", "latest", *small_test)[0] == 0
        (artifacts,) = Path("mlruns/artifacts").glob("*/artifacts")
        return files(artifacts)


@pytest.mark.slow
def test_several_loggers_at_once_get_the_metrics_and_what_they_can_show(
    bustseg: Bustseg, phantoms: Path, small_test: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = fit(bustseg, phantoms, [TENSORBOARD, CSV, WANDB])
    rows = [row for path in Path("csv").rglob("metrics.csv") for row in csv.DictReader(path.open())]
    assert any(row.get("val/loss") for row in rows)
    assert list(Path("csv").rglob("hparams.yaml")), "the configuration is there too"
    assert {"config.yaml", "split.csv", "checkpoints/best.ckpt"} <= files(folder(run_id))
    assert [path for path in Path("wb").rglob("*") if path.suffix == ".wandb"]

    code, _, err = bustseg(
        "test", "--ckpt_path", run_id, "--trainer.logger", json.dumps([TENSORBOARD, CSV]), *small_test
    )
    assert code == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: dict[str, set[str]] = {"scalars": set(), "images": set(), "tensors": set()}
    for events in {path.parent for path in Path("tb").rglob("events.out.tfevents.*")}:
        accumulator = EventAccumulator(str(events), size_guidance={"images": 1})
        accumulator.Reload()
        for kind in tags:
            tags[kind] |= set(accumulator.Tags()[kind])
    assert {"val/loss", "test/dice_lesion"} <= tags["scalars"]
    assert {"panels/test.png", "curves/roc.png"} <= tags["images"]
    assert any(name.startswith("tables/test.csv") for name in tags["tensors"])


def test_a_sweep_and_a_cross_validation_say_that_they_need_mlflow(bustseg: Bustseg, phantoms: Path) -> None:
    code, _, err = bustseg(
        *("cv", "--config", TINY, "--data.root", phantoms, "--data.split", "kfold", "--trainer.logger", "false")
    )
    assert code == 2
    assert "stores its folds in MLflow: do not set trainer.logger" in err


def test_a_run_that_is_not_there_is_said_so(bustseg: Bustseg) -> None:
    code, _, err = bustseg("compare", "0" * 32, "1" * 32)
    assert code == 2
    assert f"no run {'0' * 32}" in err
