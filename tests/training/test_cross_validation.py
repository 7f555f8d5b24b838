"""`bustseg cv` as a user calls it: folds, their parent run, mean and spread, resuming."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run

from bustseg.experiment import Experiment
from bustseg.runs.tracker import tracking_uri
from bustseg.training import cross_validation, nested_runs
from bustseg.training.cross_validation import mean_and_spread
from tests.conftest import TINY
from tests.data import layouts

Bustseg = Callable[..., tuple[int, str, str]]


def runs() -> tuple[list[Run], dict[int, Run]]:
    """Parents, and the folds' runs by fold."""
    client = mlflow.MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    folds = {int(run.data.tags["cv.fold"]): run for run in found if "cv.fold" in run.data.tags}
    return [run for run in found if "cv.key" in run.data.tags], folds


def cv(bustseg: Bustseg, phantoms: Path, *options: object) -> tuple[int, str, str]:
    return bustseg("cv", "--config", TINY, "--data.root", phantoms, "--trainer.max_epochs", 1, *options)


def test_mean_and_spread_by_hand() -> None:
    table = mean_and_spread({0: {"a": 1.0, "b": 0.5}, 1: {"a": 3.0, "b": float("nan")}})
    assert table["a"] == (2.0, pytest.approx(2**0.5))
    assert table["b"] == (0.5, 0.0)


@pytest.mark.slow
def test_folds_hang_under_one_run_and_an_interrupted_one_resumes(
    bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--data.split", "kfold", "--data.kfold_of", "paper", "--folds", 3)
    verbs: list[str] = []
    run_fit, run_test = nested_runs.run_fit, nested_runs.run_test

    def stops_in_the_third_fit(*args: Any, **kwargs: Any) -> object:
        verbs.append("fit")
        if verbs.count("fit") == 3:
            raise KeyboardInterrupt
        return run_fit(*args, **kwargs)

    monkeypatch.setattr(nested_runs, "run_fit", stops_in_the_third_fit)
    monkeypatch.setattr(nested_runs, "run_test", lambda *args: verbs.append("test") or run_test(*args))
    code, out, _ = cv(bustseg, phantoms, *options)
    assert code == 130
    assert "2 of 3 folds are done" in out
    ((parent,), folds) = runs()
    assert parent.info.status == "KILLED"
    assert set(folds) == {0, 1}

    # as if the first fold's fit had been stopped as well
    mlflow.MlflowClient(tracking_uri()).set_terminated(folds[0].info.run_id, "KILLED")
    verbs.clear()
    monkeypatch.setattr(nested_runs, "run_fit", lambda *args, **own: verbs.append("fit") or run_fit(*args, **own))
    code, out, err = cv(bustseg, phantoms, *options, "--resume")
    assert code == 0, err
    assert verbs == ["fit", "test", "fit", "test"], "finished folds are skipped"
    assert folds[0].info.run_id == runs()[1][0].info.run_id, "an interrupted fit goes on in its run"
    ((parent,), folds) = runs()
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in folds.values()} == {parent.info.run_id}
    assert {run.info.status for run in folds.values()} == {"FINISHED"}
    assert len({run.data.tags["split_digest"] for run in folds.values()}) == 3
    assert sum(int(run.data.tags["images_test"]) for run in folds.values()) == 30, "each image is tested once"
    for name in ("test/dice_lesion", "test/auc_pixel", "test/loss"):
        values = [folds[fold].data.metrics[name] for fold in range(3)]
        assert parent.data.metrics[f"{name}_mean"] == pytest.approx(statistics.mean(values))
        assert parent.data.metrics[f"{name}_std"] == pytest.approx(statistics.stdev(values))
    assert f"{parent.data.metrics['test/dice_lesion_mean']:.4f}" in out
    table = pd.read_csv(Path("mlruns/artifacts") / parent.info.run_id / "artifacts" / "folds.csv")
    assert table["fold"].tolist() == [0, 1, 2]

    # another configuration is another cross-validation
    monkeypatch.setattr(cross_validation, "fit_and_test", lambda *args: ("id", {"test/dice_lesion": 0.5}))
    code, out, err = cv(bustseg, phantoms, *options, "--resume", "--data.batch_size", 4)
    assert code == 0, err
    assert "starting a new one" in out
    assert len(runs()[0]) == 2


def test_folds_of_a_csv_and_of_a_scheme(bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Experiment] = []
    monkeypatch.setattr(
        cross_validation,
        "fit_and_test",
        lambda one, tags, known: calls.append(one) or ("id", {"test/dice_lesion": 0.5}),
    )
    names = [path.stem for path in sorted(phantoms.glob("*/*).png"))]
    Path("folds.csv").write_text("image,fold\n" + "\n".join(f"{name},{i % 4 + 1}" for i, name in enumerate(names)))
    assert cv(bustseg, phantoms, "--data.split", "folds.csv")[0] == 0
    assert [one["data.fold"] for one in calls] == [1, 2, 3, 4]
    calls.clear()
    assert cv(bustseg, phantoms, "--data.split", "lesion", "--folds", 2)[0] == 0
    assert len(calls) == 2
    data = calls[0]["data"]
    assert {key: data[key] for key in ("split", "kfold_of", "fold", "folds")} == {
        "split": "kfold",
        "kfold_of": "lesion",
        "fold": 0,
        "folds": 2,
    }


@pytest.mark.slow
def test_each_source_is_left_out_once(bustseg: Bustseg, tmp_path: Path) -> None:
    parts = [
        {"source": {"class_path": name}, "root": str(make(tmp_path / name))}
        for name, make in (("BUSBRA", layouts.busbra), ("BUSUCLM", lambda root: layouts.busuclm(root, 4)))
    ]
    source = json.dumps({"class_path": "Combined", "init_args": {"parts": parts}})
    options = ("--config", TINY, "--data.source", source, "--trainer.max_epochs", 1)
    code, out, err = bustseg("cv", *options, "--by", "source")
    assert code == 0, err
    _, folds = runs()
    tags = [folds[fold].data.tags for fold in range(2)]
    assert [(run["cv.left_out"], run["images_test"]) for run in tags] == [("bus-bra", "12"), ("bus-uclm", "12")]
    assert "bus-bra" in out, "the table's columns are called after the sources"
    ((parent,), _) = runs()
    table = pd.read_csv(Path("mlruns/artifacts") / parent.info.run_id / "artifacts" / "folds.csv")
    assert table["name"].tolist() == ["bus-bra", "bus-uclm"]


BAD = {
    "folds of sources": (["--by", "label", "--folds", "3"], "cannot be combined with --folds"),
    "no such column": (["--by", "device"], "no image has a column 'device'"),
    "too few": (["--folds", "1"], "--folds is 1"),
    "checkpoint": (["--ckpt_path", "x"], "takes no --ckpt_path"),
    "no folds": (["--data.split", "plain.csv"], "has no folds"),
    "test only": (["--data.split", "test_all"], "has no training images"),
    "no tracking": (["--trainer.logger", "false"], "stores its folds in MLflow"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case: str, bustseg: Bustseg, phantoms: Path) -> None:
    names = [path.stem for path in sorted(phantoms.glob("*/*).png"))]
    Path("plain.csv").write_text("image,subset\n" + "\n".join(f"{name},train" for name in names))
    args, message = BAD[case]
    code, _, err = cv(bustseg, phantoms, *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert runs() == ([], {})


def test_help_has_an_example(bustseg: Bustseg) -> None:
    code, out, _ = bustseg("cv", "--help")
    assert code == 0
    assert "example: bustseg cv --config" in out
