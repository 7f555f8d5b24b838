"""An append-only journal: a run's measurements are on disk before anything else is done with them.

It has one line of JSON per entry, numbered consecutively. A killed process leaves at most one incomplete line, at the
end, which readers skip and the next writer removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bustseg.errors import disk_is_full

RESERVE_BYTES = 256 * 1024
"""Disk space that an open journal reserves, so that measurements can be written even if others fill the disk."""


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        seq: its number, counted from 0
        kind: its kind, such as ``metrics``
        time: milliseconds since 1970 when it was written; sinks use it as the timestamp, however late they get the
            entry
        data: plain types
    """

    seq: int
    kind: str
    time: int
    data: dict[str, Any]

    def to_line(self) -> bytes:
        """The entry as one line of JSON, including the newline."""
        values = {"seq": self.seq, "kind": self.kind, "time": self.time, "data": self.data}
        return json.dumps(values, separators=(",", ":"), default=str).encode() + b"\n"


def parse_line(line: bytes) -> Entry | None:
    """The entry of one line, or None when the line is incomplete."""
    try:
        values = json.loads(line)
        return Entry(int(values["seq"]), str(values["kind"]), int(values["time"]), dict(values["data"]))
    except (ValueError, KeyError, TypeError):
        return None


class Reader:
    """Reads a journal incrementally, also while another process or thread writes it.

    Args:
        path: the journal's file
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Bytes of the complete entries that were read."""

    def __iter__(self) -> Iterator[Entry]:
        """The complete entries since the last iteration."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                if (entry := parse_line(line)) is not None:
                    yield entry


class Journal:
    """Writes a journal. Entries that cannot be written stay in memory, and are written before any later ones.

    Args:
        path: its file, which may already exist
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten: list[Entry] = []
        """Entries that could not be written yet, oldest first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        reader = Reader(path)
        self._next = max((entry.seq for entry in reader), default=-1) + 1
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = reader.offset
        os.ftruncate(self._file, self._end)
        self._reserve = path.with_suffix(".reserve")
        self._take_reserve()

    def append(self, kind: str, data: dict[str, Any], sync: bool = False, time_ms: int | None = None) -> Entry:
        """Write an entry; with ``sync`` it survives a power failure, otherwise only the end of this process.

        Args:
            kind: see :class:`Entry`
            data: plain types
            sync: wait until the disk has everything up to this entry
            time_ms: its time; now if not given
        """
        entry = Entry(self._next, kind, time.time_ns() // 1_000_000 if time_ms is None else time_ms, data)
        self._next += 1
        self.unwritten.append(entry)
        self.write_out()
        if sync and not self.unwritten:
            with contextlib.suppress(OSError):  # a failure of the disk to sync is no reason to end a training
                os.fsync(self._file)
        return entry

    def write_out(self) -> bool:
        """Try again to write what could not be written; returns whether nothing is left."""
        while self.unwritten:
            line = self.unwritten[0].to_line()
            try:
                self._write(line)
            except OSError as error:
                if disk_is_full(error) and self._release_reserve():
                    continue
                return False
            self.unwritten.pop(0)
        return True

    def _write(self, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError:
            os.ftruncate(self._file, self._end)  # no incomplete lines in the middle
            raise
        self._end += len(line)

    def _take_reserve(self) -> None:
        try:
            file = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, RESERVE_BYTES)
            else:
                os.write(file, bytes(RESERVE_BYTES))
        except OSError:
            self._release_reserve()
        finally:
            os.close(file)

    def _release_reserve(self) -> bool:
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Write as much of the rest as possible, and release the file and the reserve."""
        self._release_reserve()
        self.write_out()
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)
