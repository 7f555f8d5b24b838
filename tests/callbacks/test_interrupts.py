"""A stop that Python has dropped is not lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from bustseg.callbacks import Interrupts


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Forgetful:
    """Asks for a stop while it is destroyed, where Python ignores exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("error")  # the dropped one is not reported either
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start", "on_test_batch_start"])
def test_a_stop_in_a_destructor_is_raised_with_the_next_batch(hook: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        getattr(interrupts, hook)(None, None, None, 0)
        Forgetful()
        with pytest.raises(KeyboardInterrupt):
            getattr(interrupts, hook)(None, None, None, 0)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_elsewhere_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.on_train_batch_start()
    finally:
        signal.signal(signal.SIGINT, before)
