"""A journal holds what was written whatever ends the writer, and whatever the disk has room for."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from bustseg.runs import journal
from bustseg.runs.journal import Entry, Journal, Reader


def entries(path: Path) -> list[Entry]:
    return list(Reader(path))


def test_entries_come_back_in_order_with_their_numbers_and_times(tmp_path: Path) -> None:
    written = Journal(tmp_path / "a.jsonl")
    first = written.append("metrics", {"values": {"loss": 0.5, "nothing": math.nan, "all": math.inf}, "step": 1})
    second = written.append("tags", {"name": "Gewebe µ\n"}, time_ms=17)
    written.close()
    assert [entry.seq for entry in entries(written.path)] == [0, 1]
    assert entries(written.path)[1] == second == Entry(1, "tags", 17, {"name": "Gewebe µ\n"})
    values = entries(written.path)[0].data["values"]
    assert values["all"] == math.inf
    assert math.isnan(values["nothing"])
    assert abs(first.time / 1000 - os.stat(written.path).st_mtime) < 60


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_was_cut_off_is_passed_over_and_replaced(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    before = Journal(path)
    before.append("metrics", {"step": 0})
    before.append("metrics", {"step": 1})
    before.close()
    path.write_bytes(path.read_bytes()[:-cut])
    after = Journal(path)
    after.append("metrics", {"step": 2})
    after.close()
    assert [(entry.seq, entry.data["step"]) for entry in entries(path)] == [(0, 0), (1, 2)]


def test_damage_in_the_middle_costs_its_own_line_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    written = Journal(path)
    for step in range(3):
        written.append("metrics", {"step": step})
    written.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00" * 10 + b"\n" + lines[2])
    assert [entry.data["step"] for entry in entries(path)] == [0, 2]


def test_a_reader_follows_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    reader = Reader(path)
    assert list(reader) == []
    written = Journal(path)
    written.append("a", {})
    assert [entry.kind for entry in reader] == ["a"]
    written.append("b", {})
    assert [entry.kind for entry in reader] == ["b"]
    written.close()


class Disk:
    """A disk with ``room`` bytes left, to which the reserve belongs."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = room
        write, unlink = os.pwrite, Path.unlink

        def limited_write(file: int, content: bytes, offset: int) -> int:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            part = content[: self.room]
            self.room -= len(part)
            return write(file, part, offset)

        def freeing_unlink(path: Path, missing_ok: bool = False) -> None:
            size = path.stat().st_size if path.exists() else 0
            unlink(path, missing_ok)
            self.room += size

        monkeypatch.setattr(os, "pwrite", limited_write)
        monkeypatch.setattr(Path, "unlink", freeing_unlink)


def test_what_does_not_fit_is_written_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RESERVE_BYTES", 0)
    path = tmp_path / "a.jsonl"
    written = Journal(path)
    disk = Disk(100, monkeypatch)
    for step in range(5):
        written.append("metrics", {"step": step}, sync=True)
    assert len(written.unwritten) == 4
    assert [entry.data["step"] for entry in entries(path)] == [0], "no half lines"
    disk.room = 10_000
    written.append("metrics", {"step": 5})
    written.close()
    assert [entry.data["step"] for entry in entries(path)] == [0, 1, 2, 3, 4, 5]


def test_the_reserve_takes_what_a_full_disk_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    written = Journal(path)
    assert path.with_suffix(".reserve").stat().st_size == journal.RESERVE_BYTES
    Disk(0, monkeypatch)
    for step in range(1000):
        written.append("metrics", {"step": step})
    written.close()
    assert len(entries(path)) == 1000
    assert not path.with_suffix(".reserve").exists()
