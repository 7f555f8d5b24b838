"""Sends a run's entries in the background, and pauses when a store does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bustseg.runs.entries import LOCAL
from bustseg.runs.session import Session
from bustseg.runs.sinks import RunGone, Sink, Unreachable

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 300.0
"""First and longest pause in seconds after a store did not answer."""

CHEAP = 1.0
"""Seconds; a request that failed faster, such as a refused connection, may be retried once at a run's end."""


class Breaker:
    """Circuit breaker: remembers for the process that a store does not answer, so that only one request waits for it.

    Args:
        first, longest: pauses in seconds; each failure doubles the next
    """

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self.first, self.longest = first, longest
        self.reason: str | None = None
        """Why the store could not be reached; None while it answers."""
        self._pause = first
        self._until = 0.0
        self._cost = 0.0
        self._mutex = threading.Lock()

    @property
    def remaining(self) -> float:
        """Seconds until the store may be tried again."""
        return max(0.0, self._until - time.monotonic()) if self.reason is not None else 0.0

    @property
    def cheap(self) -> bool:
        """Whether a retry would take almost no time."""
        return self.reason is None or self._cost < CHEAP

    def failed(self, reason: str, cost: float) -> bool:
        """Record a failure that took ``cost`` seconds; returns whether it is the first in a row."""
        with self._mutex:
            first = self.reason is None
            self.reason, self._cost = reason, cost
            self._until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, self.longest)
            return first

    def succeeded(self) -> bool:
        """Record that the store answered; returns whether it had not before."""
        with self._mutex:
            was_away = self.reason is not None
            self.reason, self._pause = None, self.first
            return was_away


_breakers: dict[str, Breaker] = {}


def breaker_of(uri: str) -> Breaker:
    """The breaker of a store, one for all runs of this process."""
    # a local database is unavailable only while another process locks it
    pauses = (2.0, 60.0) if uri.startswith(("sqlite:", LOCAL)) else (FIRST_PAUSE, LONGEST_PAUSE)
    return _breakers.setdefault(uri, Breaker(*pauses))


def send_all(
    sessions: Sequence[Session], sink: Sink, breaker: Breaker, on_change: Callable[[str | None], None] | None = None
) -> bool:
    """Send the pending entries of a run's sessions, oldest first; returns whether nothing is left.

    Args:
        sessions: of one run
        sink: receiver of the entries
        breaker: breaker of the sink's store
        on_change: called with the reason when the store stops answering, and with None when it answers again

    Raises:
        RunGone: the run no longer exists in the store
    """
    for session in sessions:
        while entries := session.take():
            start = time.monotonic()
            try:
                sink.send(entries, session.acknowledge)
            except Unreachable as error:
                if breaker.failed(str(error), time.monotonic() - start) and on_change is not None:
                    on_change(str(error))
                return False
            if breaker.succeeded() and on_change is not None:
                on_change(None)
    return True


class Sender(threading.Thread):
    """The thread that sends one run's sessions.

    Args:
        sessions: of one run, oldest first, the last of them this process's own
        sink: receiver of the entries
        breaker: breaker of the sink's store
        on_change: as for :func:`send_all`
        on_gone: called with the reason if the run was deleted from the store
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        sink: Sink,
        breaker: Breaker,
        on_change: Callable[[str | None], None],
        on_gone: Callable[[str], None],
    ) -> None:
        super().__init__(name="bustseg-sender", daemon=True)
        self._sessions, self._sink, self._breaker = list(sessions), sink, breaker
        self._on_change, self._on_gone = on_change, on_gone
        self._condition = threading.Condition()
        self._asked = self._done = 0
        self._stopping = self._urgent = False
        self.gone = False

    def wake(self) -> None:
        """Notify the thread that there is something to send."""
        with self._condition:
            self._asked += 1
            self._condition.notify_all()

    def flush(self) -> bool:
        """Wait until everything is sent or the store does not answer; returns whether everything is sent.

        A store that is known not to answer is tried again only if that takes almost no time.
        """
        with self._condition:
            self._asked += 1
            ticket = self._asked
            self._urgent = self._breaker.cheap
            self._condition.notify_all()
            while self._done < ticket and self.is_alive():
                self._condition.wait(0.1)
        return self.gone or not any(session.waiting for session in self._sessions)

    def stop(self) -> None:
        """End the thread after the current request."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self.join()

    def run(self) -> None:
        """Send whenever there is something to send and no pause is in effect."""
        while True:
            with self._condition:
                while self._asked == self._done and not self._stopping:
                    # while the store is unreachable, try again when the pause is over
                    paused = self._breaker.remaining
                    if not self._condition.wait(paused or None) and paused:
                        break
                if self._stopping:
                    return
                ticket, urgent = self._asked, self._urgent
                self._urgent = False
            # checked again, since the request in progress when a caller began to wait may have failed after a long
            # timeout
            if not self.gone and ((urgent and self._breaker.cheap) or not self._breaker.remaining):
                self._send()
            with self._condition:
                self._done = ticket
                self._condition.notify_all()

    def _send(self) -> None:
        try:
            send_all(self._sessions, self._sink, self._breaker, self._on_change)
        except RunGone as error:
            self.gone = True
            self._on_gone(str(error))
        except Exception as error:  # the thread must survive any error of a store's driver
            if self._breaker.failed(f"{type(error).__name__}: {error}", 0.0):
                self._on_change(str(error))
