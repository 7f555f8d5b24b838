"""Sending happens in the background, and a store that does not answer is left alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bustseg.runs.entries import METRICS
from bustseg.runs.journal import Entry
from bustseg.runs.sender import Breaker, Sender
from bustseg.runs.session import Session
from bustseg.runs.sinks import Acknowledge, RunGone, Unreachable


class FakeSink:
    """Takes entries, or fails as it is told."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.calls = 0
        self.error: Exception | None = None
        self.seconds = 0.0
        self.lose_answer = False

    def send(self, entries: Sequence[Entry], acknowledge: Acknowledge) -> None:
        self.calls += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.got += [entry.data["step"] for entry in entries]
        if self.lose_answer:
            self.lose_answer = False
            raise Unreachable("the answer was lost")
        acknowledge(entries[-1].seq)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.session = Session.begin(folder, run_id="r", store="s", files="f", ends_run=True)
        self.sink, self.breaker = FakeSink(), Breaker(first=60, longest=600)
        self.told: list[str | None] = []
        self.gone: list[str] = []
        self.sender = Sender([self.session], self.sink, self.breaker, self.told.append, self.gone.append)
        self.sender.start()

    def measure(self, step: int) -> None:
        self.session.append(METRICS, {"values": {}, "step": step})
        self.sender.wake()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path / "r")
    yield made
    made.sender.stop()


def test_what_is_written_arrives_in_order(setup: Setup) -> None:
    for step in range(100):
        setup.measure(step)
    assert setup.sender.flush()
    assert setup.sink.got == list(range(100))


def test_a_slow_store_does_not_hold_up_who_writes(setup: Setup) -> None:
    setup.sink.seconds = 0.5
    start = time.perf_counter()
    for step in range(20):
        setup.measure(step)
    assert time.perf_counter() - start < 0.25
    assert setup.sender.flush()
    assert setup.sink.got == list(range(20))
    assert setup.sink.calls < 6, "what came meanwhile goes in one request"


def test_a_store_that_does_not_answer_costs_one_request_then_silence(setup: Setup) -> None:
    setup.sink.error = Unreachable("no answer in time")
    setup.sink.seconds = 1.1  # longer than a refused connection takes
    for step in range(5):
        setup.measure(step)
        time.sleep(0.3)
    start = time.perf_counter()
    assert not setup.sender.flush()
    assert time.perf_counter() - start < 0.5, "the end does not wait for it either"
    assert setup.sink.calls == 1
    assert setup.told == ["no answer in time"], "and is said once"
    assert setup.session.waiting == 5


def test_after_the_silence_it_is_asked_again_by_itself(setup: Setup) -> None:
    setup.breaker._pause = 0.3
    setup.sink.error = Unreachable("gone")
    setup.measure(0)
    time.sleep(0.1)
    setup.sink.error = None
    time.sleep(1.0)
    assert setup.sink.got == [0]
    assert setup.told == ["gone", None]


def test_a_refused_connection_is_tried_once_more_at_the_end(setup: Setup) -> None:
    setup.sink.error = Unreachable("connection refused")
    setup.measure(0)
    assert not setup.sender.flush()
    setup.sink.error = None  # the server was started again meanwhile
    assert setup.sender.flush()
    assert setup.sink.got == [0]


def test_what_arrived_though_its_answer_was_lost_comes_again(setup: Setup) -> None:
    setup.sink.lose_answer = True
    setup.measure(0)
    assert setup.sender.flush() or setup.sender.flush()
    assert setup.sink.got == [0, 0], "sinks take it once: see test_sinks.py"


def test_a_run_that_was_deleted_ends_the_sending(setup: Setup) -> None:
    setup.sink.error = RunGone("Run with id=r not found")
    setup.measure(0)
    assert setup.sender.flush()
    setup.measure(1)
    assert setup.sender.flush()
    assert setup.sink.calls == 1
    assert setup.gone == ["Run with id=r not found"]


def test_an_error_that_nobody_foresaw_does_not_end_the_thread(setup: Setup) -> None:
    setup.sink.error = KeyError("surprise")
    setup.measure(0)
    assert not setup.sender.flush()
    setup.sink.error = None
    assert setup.sender.flush()
    assert setup.sink.got == [0]


def test_pauses_double_up_to_the_longest() -> None:
    breaker = Breaker(first=1, longest=3)
    pauses = []
    for _ in range(4):
        breaker.failed("gone", 0)
        pauses.append(round(breaker.remaining))
    assert pauses == [1, 2, 3, 3]
    breaker.succeeded()
    assert breaker.remaining == 0


def test_the_thread_ends_when_it_is_told(tmp_path: Path) -> None:
    before = threading.active_count()
    Setup(tmp_path / "r").sender.stop()
    assert threading.active_count() == before
