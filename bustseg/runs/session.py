"""One process's part of a run: its journal, who writes it, and how far it has been sent."""

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
from bustseg.whole import whole

_SESSION, _HOLD, _COMMIT, _WITHHOLD, _CLOSED = "session", "hold", "commit", "withhold", "closed"
_CONTROL = (_SESSION, _HOLD, _COMMIT, _WITHHOLD, _CLOSED)
"""Kinds of entries that say what becomes of the others."""

VERSION = 1
"""Of the format. A session of a later version is left to later versions."""

POSITION = "journal"
"""Where a checkpoint's callback keeps its position."""

Position = dict[str, Any]
"""A place in a run's journals: ``session`` (its name) and ``seq``. A checkpoint holds the one it was written at."""


class Session:
    """A journal with its reader, in ``spool/RUN_ID/`` of a store's folder.

    What is written is passed on at once, unless the session *holds*: then metrics wait until they are committed, since
    an epoch whose checkpoint was not written is repeated by whoever continues the run, and would be there twice.

    Make one with :meth:`begin` or :meth:`load`.
    """

    def __init__(self, path: Path, header: dict[str, Any], journal: Journal | None = None) -> None:
        self.path = path
        self.header = header
        self.closed = False
        self.resumable = False
        """Whether what is held can be computed again from a checkpoint"""
        self.committed = -1
        """Number of the last entry that was committed while the session held"""
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
        """Metrics that were withheld at the end, for whoever continues the run"""
        self.statuses: list[str] = []
        self.last_time = 0
        self._sent = self._read_sent()

    @classmethod
    def begin(cls, spool: Path, **header: Any) -> Session:
        """A new session of the run whose spool this is.

        Args:
            spool: folder of the run's sessions, made if it is not there
            header: plain types that another process needs to send what this one could not
        """
        spool.mkdir(parents=True, exist_ok=True)
        header = {"version": VERSION, "owner": this_process(), **header}
        try:
            path = spool / f"{time.time_ns():019d}-{os.getpid()}.jsonl"
            journal = Journal(path)
        except FileNotFoundError:  # another process has just removed the folder, which it found empty
            journal = Journal(path)
        session = cls(path, header, journal)
        with contextlib.suppress(OSError):  # file systems without locks
            session._own_lock.acquire(timeout=0)
        session.append(_SESSION, header, sync=True)
        return session

    @classmethod
    def load(cls, path: Path) -> Session | None:
        """The session of a journal; None when it is of a later version or was cut off at its beginning."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            entry = parse_line(file.readline())
            if entry is not None and entry.kind == _SESSION and entry.data.get("version") == VERSION:
                return cls(path, entry.data)
        return None

    @property
    def name(self) -> str:
        """Its name among the sessions of the run; later sessions have later names."""
        return self.path.stem

    @property
    def is_dead(self) -> bool:
        """Whether the process that began it has ended for certain."""
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
        """Let metrics wait from now on until they are committed.

        Args:
            resumable: whether a checkpoint lets another process compute again what was held
        """
        self.append(_HOLD, {"resumable": resumable})
        self.take()

    def commit(self, up_to: int | None = None) -> None:
        """Pass on what was held: all of it, or entries up to this number."""
        with self._mutex:
            self.take()
            self.append(_COMMIT, {"to": self._seen if up_to is None else up_to}, sync=True)
            self.take()

    def close(self, status: str | None = None, time_ms: int | None = None, complete: bool = True) -> None:
        """End the session.

        Args:
            status: what the run ends with; None when it stays as it is
            time_ms: when it ended; now if not given
            complete: whether what it held is whole. If not, and a checkpoint lets it be computed again, it is kept for
                whoever does; of a test that was stopped, which is repeated as a whole, it is dropped; and where there
                is no checkpoint yet, it is passed on, since nothing will repeat it.
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
        """Where the journal is now."""
        with self._mutex:
            self.take()
            return {"session": self.name, "seq": self._seen}

    @property
    def unwritten(self) -> int:
        """Entries that the disk has not taken."""
        return 0 if self._journal is None else len(self._journal.unwritten)

    # ---------------------------------------------------------------------------------------------------------- reading

    def take(self) -> list[Entry]:
        """What may be sent and has not been, in order."""
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
        """Whether a withheld entry is kept or dropped; None for one that is passed on."""
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
        """Remember that all up to this entry was sent. If the note is lost it is sent again, which is harmless."""
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
        """Number of entries that could be sent now and have not been."""
        return len(self.take())

    def held(self) -> Iterable[Entry]:
        """Metrics that nobody has committed, in order."""
        with self._mutex:
            self.take()
            return [*self.kept, *(entry for entry in self._waiting if entry.kind == METRICS)]

    # --------------------------------------------------------------------------------------------------------- clearing

    def release(self) -> None:
        """Let go of files and locks; the journal stays."""
        with self._mutex:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        self._own_lock.release()

    def remove(self) -> None:
        """Delete a session of which nothing is needed any more, and the spool's folder with the last one."""
        self.release()
        others = [self.path.with_suffix(suffix) for suffix in (".sent", ".lock", ".reserve")]
        others += self.path.parent.glob(f".{self.path.stem}.sent.*.tmp")
        for path in (*others, self.path):  # the journal last, which the others serve
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def tidy(self) -> bool:
        """Remove the session if it is closed, all of it was sent and nothing was withheld; returns whether it did."""
        if not self.closed or self.waiting or self.kept or self.unwritten:
            return False
        self.remove()
        return True


def sessions_of(spool: Path) -> list[Session]:
    """The sessions of a run, oldest first."""
    found = (Session.load(path) for path in sorted(spool.glob("*.jsonl")))
    return [session for session in found if session is not None]
