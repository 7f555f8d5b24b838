"""Runs whose process was killed while it made them: ended by the next command, and only those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bustseg.runs.making import MAKING_TAG, end_half_made, noted
from bustseg.runs.opening import open_store
from bustseg.runs.owner import this_process
from bustseg.runs.store import Store, tracking_uri

GONE = {"pid": 2**22 + 1, "started": 0.0}
"""No process has this id."""


@pytest.fixture
def store() -> Store:
    return open_store(tracking_uri(None), write=True)


def make(store: Store, name: str) -> str:
    client = store.client()
    return client.create_run("0", tags={MAKING_TAG: name}).info.run_id


def leave_note(store: Store, name: str, **owner: object) -> Path:
    note = store.folder / "spool" / f"{name}.making"
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"owner": {**this_process(), **owner}, "store": store.shown}))
    return note


def status(store: Store, run_id: str) -> str:
    return store.client().get_run(run_id).info.status


def test_a_run_whose_process_was_killed_while_it_made_it_is_ended(store: Store) -> None:
    run_id, other = make(store, "a"), make(store, "b")
    note = leave_note(store, "a", **GONE)
    assert end_half_made(store) == [run_id]
    assert (status(store, run_id), status(store, other)) == ("KILLED", "RUNNING")
    assert not note.exists()
    assert end_half_made(store) == []


def test_a_living_process_is_left_to_make_its_run(store: Store) -> None:
    with noted(store) as name:
        run_id = make(store, name)
        assert end_half_made(store) == []
        assert status(store, run_id) == "RUNNING"
        assert list((store.folder / "spool").glob("*.making"))
    assert not list((store.folder / "spool").glob("*.making"))


def test_a_run_with_a_session_is_its_sessions_to_end(store: Store) -> None:
    run_id = make(store, "a")
    note = leave_note(store, "a", **GONE)
    (store.folder / "spool" / run_id).mkdir()
    assert end_half_made(store) == []
    assert status(store, run_id) == "RUNNING"
    assert not note.exists()


def test_a_note_of_another_store_or_without_a_whole_text_stays(store: Store) -> None:
    leave_note(store, "a", **GONE).write_text(json.dumps({"owner": {**this_process(), **GONE}, "store": "other"}))
    (store.folder / "spool" / "b.making").write_text("{")
    assert end_half_made(store) == []
    assert {path.name for path in (store.folder / "spool").iterdir()} == {"a.making", "b.making"}
