"""What a store takes once, refuses, or cannot take now."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from bustseg.runs.entries import DATASETS, FILE, METRICS, PARAMS, SERVER_ID, STATUS, TAGS
from bustseg.runs.journal import Entry
from bustseg.runs.opening import open_store
from bustseg.runs.record import Record
from bustseg.runs.sinks import PARENT_TAG, MlflowSink, RecordSink, RunGone, Unreachable, begin_away, is_refusal
from bustseg.runs.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}", write=True)


@pytest.fixture(scope="module")
def client(store: Store) -> MlflowClient:
    return store.client()


@pytest.fixture
def run_id(client: MlflowClient) -> str:
    return client.create_run("0").info.run_id


def make(*entries: tuple[str, dict[str, Any]]) -> list[Entry]:
    return [Entry(seq, kind, 1_700_000_000_000 + seq, data) for seq, (kind, data) in enumerate(entries)]


def everything(files: Path) -> list[Entry]:
    (files / "tables").mkdir()
    (files / "tables" / "test.csv").write_text("a,b\n")
    dataset = {"name": "busi-train", "digest": "d", "source_type": "local", "source": "{}", "profile": "{}"}
    return make(
        (PARAMS, {f"p{n}": str(n) for n in range(150)}),
        (TAGS, {"a": "1"}),
        (METRICS, {"values": {"loss": 0.5, "nothing": math.nan, "all": math.inf}, "step": 0}),
        (METRICS, {"values": {"loss": 0.25}, "step": 1}),
        (TAGS, {"a": "2"}),
        (DATASETS, {"datasets": [[dataset, "training"]]}),
        (FILE, {"path": "tables/test.csv", "folder": "tables"}),
        (STATUS, {"status": "KILLED"}),
    )


def test_a_store_has_everything_once_however_often_it_was_sent(
    store: Store, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    sink, entries, done = MlflowSink(store, run_id, tmp_path), everything(tmp_path), []
    sink.send(entries, done.append)
    assert done[-1] == entries[-1].seq
    sink.send(entries, done.append)
    sink.send(entries[2:4], done.append)
    run = client.get_run(run_id)
    assert len(run.data.params) == 150
    assert run.data.tags["a"] == "2"
    points = {name: client.get_metric_history(run_id, name) for name in ("loss", "nothing", "all")}
    assert [(point.step, point.value) for point in points["loss"]] == [(0, 0.5), (1, 0.25)]
    assert {name: len(found) for name, found in points.items()} == {"loss": 2, "nothing": 1, "all": 1}
    assert len(run.inputs.dataset_inputs) == 1
    assert [file.path for file in client.list_artifacts(run_id, "tables")] == ["tables/test.csv"]
    assert (run.info.status, run.info.end_time) == ("KILLED", entries[-1].time)


def test_what_is_refused_does_not_hold_up_the_rest(
    store: Store, client: MlflowClient, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.log_param(run_id, "p", "1")
    entries = make(
        (PARAMS, {"q": "1", "p": "another value", "r": "1"}),
        (METRICS, {"values": {"loss": 1.0}, "step": 0}),
        (FILE, {"path": "was/deleted.png", "folder": ""}),
        (TAGS, {"t": "1"}),
    )
    done: list[int] = []
    MlflowSink(store, run_id, tmp_path).send(entries, done.append)
    run = client.get_run(run_id)
    assert run.data.params == {"p": "1", "q": "1", "r": "1"}
    assert run.data.metrics == {"loss": 1.0}
    assert run.data.tags["t"] == "1"
    assert done[-1] == 3
    said = capsys.readouterr().err
    assert "does not accept the params p" in said
    assert "file was/deleted.png" in said


def failing(client: MlflowClient, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(type(client), "log_batch", fail)


def connection_error() -> Exception:
    return MlflowException("API request to http://u:p@h/api failed with exception Connection refused")


def proxy_error() -> Exception:
    text = "API request to endpoint /api/2.0/mlflow/runs/log-batch failed with error code 404 != 200."
    return MlflowException(text, error_code=3)


def login_error() -> Exception:
    return RestException({"error_code": "PERMISSION_DENIED", "message": "no"})


def locked_error() -> Exception:
    return MlflowException("(sqlite3.OperationalError) database is locked", error_code=1)


@pytest.mark.parametrize("error", [connection_error, proxy_error, login_error, locked_error, OSError])
def test_what_may_be_mended_is_tried_again(
    store: Store,
    client: MlflowClient,
    run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Exception],
) -> None:
    failing(client, error(), monkeypatch)
    with pytest.raises(Unreachable) as raised:
        MlflowSink(store, run_id, tmp_path).send(make((TAGS, {"a": "b"})), lambda seq: None)
    assert ":p@" not in str(raised.value)


@pytest.mark.parametrize("forever", [False, True])
def test_a_deleted_run_is_not_asked_for_again(
    store: Store, client: MlflowClient, run_id: str, tmp_path: Path, forever: bool
) -> None:
    if forever:
        run_id = "0" * 32
    else:
        client.delete_run(run_id)
    with pytest.raises(RunGone):
        MlflowSink(store, run_id, tmp_path).send(make((TAGS, {"a": "b"})), lambda seq: None)


def test_a_file_that_is_too_large_for_a_proxy_is_refused_for_good() -> None:
    assert is_refusal(MlflowException("API request to endpoint failed with error code 413 != 200"))


def test_a_record_in_files_has_everything_once(tmp_path: Path) -> None:
    Record("r" * 32, "tiny", start_time=1).save(tmp_path)
    entries = everything(tmp_path)
    RecordSink(tmp_path).send(entries, lambda seq: None)
    RecordSink(tmp_path).send(entries, lambda seq: None)
    record = Record.read(tmp_path)
    assert record is not None
    assert [(step, value) for step, value, _ in record.history["loss"]] == [(0, 0.5), (1, 0.25)]
    assert math.isnan(record.metrics["nothing"])
    assert (record.tags, len(record.params), len(record.datasets)) == ({"a": "2"}, 150, 1)
    run = record.to_run(tmp_path)
    assert (run.info.status, run.data.metrics["loss"]) == ("KILLED", 0.25)
    assert run.inputs.dataset_inputs[0].dataset.name == "busi-train"


def test_a_record_comes_from_a_store_and_goes_back_unchanged(
    store: Store, client: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    MlflowSink(store, run_id, tmp_path).send(everything(tmp_path), lambda seq: None)
    there = client.get_run(run_id)
    here = Record.from_run(there).to_run()
    assert (here.data.params, here.data.tags) == (there.data.params, there.data.tags)
    assert here.data.metrics["loss"] == there.data.metrics["loss"]
    assert here.info.run_name == there.info.run_name
    assert [i.dataset.to_dictionary() for i in here.inputs.dataset_inputs] == [
        i.dataset.to_dictionary() for i in there.inputs.dataset_inputs
    ]


def test_a_run_that_began_while_the_store_was_away_is_made_there_once(
    store: Store, client: MlflowClient, tmp_path: Path
) -> None:
    parent, child = tmp_path / ("a" * 32), tmp_path / ("b" * 32)
    begin_away(Record(parent.name, "away", start_time=5, tags={"mlflow.runName": "parent"}), parent)
    begin_away(Record(child.name, "away", start_time=7, tags={PARENT_TAG: parent.name}), child)
    loss = make((METRICS, {"values": {"loss": 1.0}, "step": 0}))
    MlflowSink(store, child.name, child).send(loss, lambda seq: None)
    (child / SERVER_ID).unlink()  # a process that was killed before it could note the id
    MlflowSink(store, child.name, child).send(loss, lambda seq: None)
    MlflowSink(store, parent.name, parent).send(make((STATUS, {"status": "FINISHED"})), lambda seq: None)
    experiment = client.get_experiment_by_name("away")
    runs = {run.info.start_time: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [5, 7]
    assert runs[7].data.tags[PARENT_TAG] == runs[5].info.run_id
    assert (runs[7].data.metrics, runs[5].info.status) == ({"loss": 1.0}, "FINISHED")
