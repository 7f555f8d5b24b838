"""The MLflow logger: nothing is lost when the store goes away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from bustseg.errors import TrackingError
from bustseg.runs.sender import breaker_of
from bustseg.runs.tracker import Tracker, flatten, open_store, tracking_uri


def values(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [
        (point.step, point.value) for point in mlflow.MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)
    ]


def test_the_store_is_local_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri() == f"sqlite:///{Path('mlruns/mlflow.db').resolve()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"
    assert tracking_uri("sqlite:///other.db") == f"sqlite:///{Path('other.db').resolve()}"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "no MLflow server answers at http://127.0.0.1:9"),
        ("file:///tmp/mlruns", "no longer writes file stores"),
        ("postgresql+psycopg://nobody@127.0.0.1:9/none", "cannot use the MLflow store .*refused"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_in_one_line(uri: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match=message) as error:
        open_store(uri)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30, "MLflow alone tries a database for a hundred seconds"


def test_a_run_lists_its_scores_and_losses_first_and_what_it_cost_last() -> None:
    tracker = Tracker(experiment="order")
    names = ["train/images_per_second", "val/auc_pixel", "val/loss", "val/precision_paper", "val/dice_lesion"]
    tracker.log_metrics(dict.fromkeys([*names, "train/epoch_seconds"], 0.5) | {"epoch": 0})
    tracker.log_metrics({"train/loss": 0.5, "epoch": 0})
    listed = list(mlflow.MlflowClient(tracker.uri).get_run(str(tracker.run_id)).data.metrics)
    assert listed[:2] == ["val/dice_lesion", "val/loss"]
    assert listed[2:4] == ["val/auc_pixel", "val/precision_paper"]
    assert set(listed[4:6]) == {"train/images_per_second", "train/epoch_seconds"}


def test_metrics_outlive_a_store_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(experiment="away")
    tracker.log_metrics({"loss": 3.0, "epoch": 0})
    send = type(tracker.experiment).log_batch

    def dead(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("connection refused")

    monkeypatch.setattr(type(tracker.experiment), "log_batch", dead)
    tracker.log_metrics({"loss": 2.0, "epoch": 1})
    monkeypatch.setattr(type(tracker.experiment), "log_batch", send)
    tracker.log_metrics({"loss": 1.0, "epoch": 2})
    assert values(tracker, "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_what_could_not_be_sent_is_sent_once_by_the_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(experiment="gone")
    tracker.log_metrics({"loss": 3.0, "epoch": 0})

    def dead(*args: Any, **kwargs: Any) -> None:
        raise MlflowException("API request to x failed with exception: connection refused")

    with monkeypatch.context() as away:
        for name in ("log_batch", "set_terminated"):
            away.setattr(type(tracker.experiment), name, dead)
        tracker.log_metrics({"loss": 2.0, "epoch": 1})
        tracker.set_tags({"kind": "test"})
        tracker.finalize()
        said = capsys.readouterr().err
        assert said.count("cannot be reached") == 1
        assert "3 entries of run" in said
    assert values(tracker, "loss") == [(0, 3.0)]
    monkeypatch.setattr(breaker_of(tracker.uri), "reason", None)  # the next command is another process
    open_store(tracker.uri)
    assert "sent 3 waiting entries" in capsys.readouterr().err
    open_store(tracker.uri)
    assert values(tracker, "loss") == [(0, 3.0), (1, 2.0)]
    run = mlflow.MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["kind"]) == ("FINISHED", "test")
    assert not list(Path("mlruns/spool").iterdir())


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it() -> None:
    tracker = Tracker(experiment="again")
    number = tracker.experiment.get_run(tracker.run_id).info.experiment_id
    tracker.finalize()
    tracker.experiment.delete_experiment(number)
    with pytest.raises(TrackingError, match=f"in MLflow's trash: restore it with .*--experiment-id {number}`") as error:
        _ = Tracker(experiment="again").run
    assert "\n" not in str(error.value)


def test_credentials_are_no_parameters() -> None:
    tracker = Tracker(experiment="secret")
    tracker.log_config({"tracking": {"uri": "http://me:secret@host"}}, {})
    assert mlflow.MlflowClient(tracker.uri).get_run(tracker.run_id).data.params == {
        "tracking.uri": "http://me:***@host"
    }


def test_a_continued_run_keeps_its_first_parameters_and_tags_what_changed() -> None:
    first = Tracker(experiment="again")
    first.log_config({"trainer": {"max_epochs": 2}, "model": {"lr": 0.1}}, {})
    again = Tracker(experiment="again", run_id=first.run_id)
    again.log_config({"trainer": {"max_epochs": 5}, "model": {"lr": 0.1}}, {})
    run = mlflow.MlflowClient(first.uri).get_run(first.run_id)
    assert run.data.params == {"trainer.max_epochs": "2", "model.lr": "0.1"}
    assert run.data.tags["continued.trainer.max_epochs"] == "5"
    assert "continued.model.lr" not in run.data.tags


def test_a_run_that_got_nothing_but_files_ends_too() -> None:
    tracker = Tracker(experiment="files")
    client = mlflow.MlflowClient(tracker.uri)
    Path("note.txt").write_text("x")
    tracker.log_file(Path("note.txt"))
    assert list(Path("mlruns/spool").glob(f"{tracker.run_id}/*.jsonl")), (
        "whoever comes after a kill can tell whose it is"
    )
    tracker.finalize()
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    again = Tracker(experiment="files", run_id=tracker.run_id)
    again.reopen()
    again.finalize()
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert not list(Path("mlruns/spool").iterdir())


def test_flatten_names_nested_values() -> None:
    config = {"a": {"b": 1, "c": [1, 2], "d": [{"e": None}]}, "f": {}}
    assert flatten(config) == [("a.b", 1), ("a.c", [1, 2]), ("a.d.0.e", None), ("f", {})]


def test_artifacts_lie_beside_the_database() -> None:
    tracker = Tracker(experiment="files")
    Path("note.txt").write_text("x")
    tracker.log_file(Path("note.txt"), "notes")
    assert tracker.artifact_dir is not None
    assert (tracker.artifact_dir / "notes" / "note.txt").read_text() == "x"
    assert Path("mlruns/artifacts").resolve() in tracker.artifact_dir.parents
