"""What a session holds, passes on, keeps and drops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from bustseg.runs.entries import METRICS, STATUS, TAGS
from bustseg.runs.journal import Entry
from bustseg.runs.owner import this_process
from bustseg.runs.session import Session, sessions_of


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.begin(tmp_path / "spool" / "r", run_id="r", store="s", files="f", ends_run=True)


def measure(session: Session, *steps: int) -> None:
    for step in steps:
        session.append(METRICS, {"values": {"loss": 1.0}, "step": step})


def steps(entries: Iterable[Entry]) -> list[int]:
    return [entry.data["step"] for entry in entries if entry.kind == METRICS]


def reload(session: Session) -> Session:
    """The session as another process finds it."""
    session.release()
    (found,) = sessions_of(session.path.parent)
    return found


def test_everything_is_passed_on_at_once_unless_the_session_holds(session: Session) -> None:
    measure(session, 0)
    assert steps(session.take()) == [0]
    session.hold(resumable=True)
    measure(session, 1)
    assert steps(session.take()) == [0]
    session.commit()
    assert steps(session.take()) == [0, 1]


def test_what_was_acknowledged_is_not_passed_on_again(session: Session) -> None:
    measure(session, 0, 1)
    session.acknowledge(session.take()[0].seq)
    assert steps(session.take()) == [1]
    assert steps(reload(session).take()) == [1]


@pytest.mark.parametrize(
    ("resumable", "committed", "complete", "passed_on", "kept"),
    [
        (True, True, True, [0, 1], []),  # a fit that came to its end
        (True, True, False, [0], [1]),  # one that was stopped: whoever continues it computes epoch 1 again
        (True, False, False, [0, 1], []),  # stopped before its first checkpoint: nobody will
        (False, False, True, [0, 1], []),  # a test
        (False, False, False, [], []),  # a test that was stopped is repeated as a whole
    ],
)
def test_what_becomes_of_held_metrics_at_the_end(
    session: Session, resumable: bool, committed: bool, complete: bool, passed_on: list[int], kept: list[int]
) -> None:
    session.hold(resumable)
    measure(session, 0)
    if committed:
        session.commit()
    measure(session, 1)
    session.append(TAGS, {"a": "b"})
    session.close("KILLED", complete=complete)
    for found in (session, reload(session)):
        assert steps(found.take()) == passed_on
        assert [entry.kind for entry in found.take()][-2:] == [TAGS, STATUS], "only metrics are held back for good"
        assert steps(found.held()) == kept


def test_what_was_kept_is_still_there_after_the_rest_was_sent(session: Session) -> None:
    session.hold(resumable=True)
    session.commit()
    measure(session, 0)
    session.close("KILLED", complete=False)
    session.acknowledge(session.take()[-1].seq)
    assert not session.tidy()
    assert steps(reload(session).held()) == [0]


def test_a_session_is_removed_when_nothing_of_it_is_needed(session: Session) -> None:
    measure(session, 0)
    session.close("FINISHED")
    assert not session.tidy(), "it was not sent"
    session.acknowledge(session.take()[-1].seq)
    assert session.tidy()
    assert not session.path.parent.exists()


def test_the_death_of_the_process_is_seen_also_when_its_id_is_used_again(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        measure(Session.begin(tmp_path / "r", run_id="r", store="s", files="f", ends_run=True), 0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (found,) = sessions_of(tmp_path / "r")
    assert found.is_dead
    assert steps(found.take()) == [0]
    found.header["owner"] |= {"pid": os.getpid(), "started": found.header["owner"]["started"] - 100}
    assert found.is_dead, "this process began at another time"
    found.header["owner"] = this_process()
    assert not found.is_dead


def test_processes_of_other_hosts_are_not_taken_for_dead(session: Session) -> None:
    found = reload(session)
    elsewhere = {"machine": "other", "host": "other", "boot": "other", "pid": 1, "started": 0.0}
    found.header["owner"] = elsewhere
    assert not found.is_dead
    found.header["owner"] = {**this_process(), "machine": "a container of this host"}
    assert found.is_dead, "it shares the kernel, and holds no lock"
    found.header["owner"] = {**this_process(), "machine": "this host before it was started anew", "boot": "earlier"}
    assert found.is_dead


def test_a_session_of_a_later_version_is_left_alone(session: Session) -> None:
    session.release()
    text = session.path.read_text().replace('"version":1', '"version":2')
    session.path.write_text(text)
    assert sessions_of(session.path.parent) == []
