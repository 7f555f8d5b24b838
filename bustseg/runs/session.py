"""One process's part of a run: its journal, its owner, and how much has been sent."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bustseg.runs.entries import METRICS, STATUS
from bustseg.runs.journal import Entry, Journal, Reader, parse_line
from bustseg.runs.owner import is_dead, this_process
from bustseg.whole import unfinished, whole

_SESSION, _HOLD, _COMMIT, _WITHHOLD, _CLOSED = "session", "hold", "commit", "withhold", "closed"
_CONTROL = (_SESSION, _HOLD, _COMMIT, _WITHHOLD, _CLOSED)
"""Kinds of entries that control the others."""

VERSION = 1
"""Version of the format. Sessions of later versions are ignored."""

POSITION = "journal"
"""Key of the position in the state of a checkpoint's callback."""

Position = dict[str, Any]
"""A place in a run's journals: ``session`` (its name) and ``seq``. A checkpoint stores its position."""


class Session:
    """A journal with its reader, in ``spool/RUN_ID/`` of a store's folder.

    Entries are released at once unless the session *holds*: then metrics wait until they are committed, since an epoch
    whose checkpoint was not written is repeated when the run is continued, and its metrics would appear twice.

    Create one with :meth:`begin` or :meth:`load`.
    """

    def __init__(self, path: Path, header: dict[str, Any], journal: Journal | None = None) -> None:
        self.path = path
        self.header = header
        self.closed = False
        self.resumable = False
        """Whether the held entries can be computed again from a checkpoint."""
        self.committed = -1
        """Number of the last entry that was committed while the session held."""
        self._journal = journal
        self._reader = Reader(path)
        self._mutex = threading.RLock()
        self._own_lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        self._seen = -1
        self._holding = False
        self._waiting: deque[Entry] = deque()
        self._ready: deque[Entry] = deque()
        self._withheld: list[tuple[int, int, bool]] = []
        self.kept: list[Entry] = []
        """Metrics that were withheld at the end, for the process that continues the run."""
        self.statuses: list[str] = []
        self.last_time = 0
        self._sent = self._read_sent()

    @classmethod
    def begin(cls, spool: Path, **header: Any) -> Session:
        """Start a new session in a run's spool.

        Args:
            spool: folder of the run's sessions, created if it does not exist
            header: plain types that another process needs to send the entries later
        """
        spool.mkdir(parents=True, exist_ok=True)
        header = {"version": VERSION, "owner": this_process(), **header}
        try:
            path = spool / f"{time.time_ns():019d}-{os.getpid()}.jsonl"
            journal = Journal(path)
        except FileNotFoundError:  # another process has just removed the empty folder
            journal = Journal(path)
        session = cls(path, header, journal)
        with contextlib.suppress(OSError):  # file systems without locks
            session._own_lock.acquire(timeout=0)
        session.append(_SESSION, header, sync=True)
        return session

    @classmethod
    def load(cls, path: Path) -> Session | None:
        """The session of a journal; None if it has a later version or was cut off at its beginning."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            entry = parse_line(file.readline())
            if entry is not None and entry.kind == _SESSION and entry.data.get("version") == VERSION:
                return cls(path, entry.data)
        return None

    @property
    def name(self) -> str:
        """Its name among the run's sessions; names sort by time."""
        return self.path.stem

    @property
    def is_dead(self) -> bool:
        """Whether the process that started it has certainly ended."""
        lock = FileLock(self.path.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return is_dead(self.header["owner"], locked=True)
        lock.release()
        return is_dead(self.header["owner"], locked=False)

    # ---------------------------------------------------------------------------------------------------------- writing

    def append(self, kind: str, data: dict[str, Any], sync: bool = False, time_ms: int | None = None) -> Entry:
        """Write an entry, see :meth:`bustseg.runs.journal.Journal.append`."""
        with self._mutex:
            if self._journal is None:
                self._journal = Journal(self.path)
            return self._journal.append(kind, data, sync, time_ms)

    def hold(self, resumable: bool) -> None:
        """Hold metrics back from now on until they are committed.

        Args:
            resumable: whether a checkpoint allows another process to compute the held entries again
        """
        self.append(_HOLD, {"resumable": resumable})
        self.take()

    def commit(self, up_to: int | None = None) -> None:
        """Release the held entries: all, or those up to this number."""
        with self._mutex:
            self.take()
            self.append(_COMMIT, {"to": self._seen if up_to is None else up_to}, sync=True)
            self.take()

    def close(self, status: str | None = None, time_ms: int | None = None, complete: bool = True) -> None:
        """End the session.

        Args:
            status: final status of the run; None to leave it unchanged
            time_ms: when it ended; now if not given
            complete: whether the held entries are complete. If not, they are kept for a process that can compute them
                again from a checkpoint; those of a stopped test, which is repeated entirely, are dropped; and if there
                is no checkpoint yet, they are released, since nothing will repeat them.
        """
        with self._mutex:
            self.take()
            if self._holding and self._waiting:
                if complete or (self.resumable and self.committed < 0):
                    self.commit()
                else:
                    span = {"from": self._waiting[0].seq, "to": self._waiting[-1].seq}
                    self.append(_WITHHOLD, {**span, "keep": self.resumable})
            if status is not None:
                self.append(STATUS, {"status": status}, time_ms=time_ms)
            self.append(_CLOSED, {}, sync=True)
            self.take()

    @property
    def position(self) -> Position:
        """The journal's current position."""
        with self._mutex:
            self.take()
            return {"session": self.name, "seq": self._seen}

    @property
    def unwritten(self) -> int:
        """Number of entries that could not be written to disk."""
        return 0 if self._journal is None else len(self._journal.unwritten)

    # ---------------------------------------------------------------------------------------------------------- reading

    def take(self) -> list[Entry]:
        """Entries that may be sent but have not been, in order."""
        with self._mutex:
            for entry in self._reader:
                self._note(entry)
            if self._journal is not None:
                for entry in self._journal.unwritten:
                    self._note(entry)
            limit = self.committed if self._holding else self._seen
            while self._waiting and self._waiting[0].seq <= limit:
                entry = self._waiting.popleft()
                if entry.kind == METRICS and (keep := self._is_withheld(entry.seq)) is not None:
                    self.kept += [entry] if keep else []
                elif entry.seq > self._sent:
                    self._ready.append(entry)
            return list(self._ready)

    def _is_withheld(self, seq: int) -> bool | None:
        """Whether a withheld entry is kept or dropped; None for a released one."""
        return next((keep for start, end, keep in self._withheld if start <= seq <= end), None)

    def _note(self, entry: Entry) -> None:
        if entry.seq <= self._seen:
            return
        self._seen, self.last_time = entry.seq, entry.time
        if entry.kind == _HOLD:
            self._holding, self.resumable = True, bool(entry.data["resumable"])
        elif entry.kind == _COMMIT:
            self.committed = max(self.committed, int(entry.data["to"]))
        elif entry.kind == _WITHHOLD:
            self._withheld.append((int(entry.data["from"]), int(entry.data["to"]), bool(entry.data["keep"])))
            self._holding = False
        elif entry.kind == _CLOSED:
            self.closed, self._holding = True, False
        elif entry.kind == _SESSION:
            return
        else:
            if entry.kind == STATUS:
                self.statuses.append(str(entry.data["status"]))
            self._waiting.append(entry)

    def acknowledge(self, seq: int) -> None:
        """Record that everything up to this entry was sent. If the record is lost, it is sent again: harmless."""
        with self._mutex:
            self._sent = max(self._sent, seq)
            while self._ready and self._ready[0].seq <= seq:
                self._ready.popleft()
        with contextlib.suppress(OSError), whole(self.path.with_suffix(".sent")) as temporary:
            temporary.write_text(str(self._sent))

    def _read_sent(self) -> int:
        try:
            return int(self.path.with_suffix(".sent").read_text())
        except (OSError, ValueError):
            return -1

    @property
    def waiting(self) -> int:
        """Number of entries that could be sent but have not been."""
        return len(self.take())

    def held(self) -> Iterable[Entry]:
        """Metrics that have not been committed, in order."""
        with self._mutex:
            self.take()
            return [*self.kept, *(entry for entry in self._waiting if entry.kind == METRICS)]

    # --------------------------------------------------------------------------------------------------------- clearing

    def release(self) -> None:
        """Release files and locks; the journal is kept."""
        with self._mutex:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        self._own_lock.release()

    def remove(self) -> None:
        """Delete a session that is no longer needed, and with the last one the spool's folder."""
        self.release()
        others = [self.path.with_suffix(suffix) for suffix in (".sent", ".lock", ".reserve")]
        others += unfinished(self.path.with_suffix(".sent"))
        for path in (*others, self.path):  # the journal last, since the other files belong to it
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def tidy(self) -> bool:
        """Remove the session if it is closed, completely sent, and nothing was withheld; returns whether it did."""
        if not self.closed or self.waiting or self.kept or self.unwritten:
            return False
        self.remove()
        return True


def sessions_of(spool: Path) -> list[Session]:
    """The sessions of a run, oldest first."""
    found = (Session.load(path) for path in sorted(spool.glob("*.jsonl")))
    return [session for session in found if session is not None]
