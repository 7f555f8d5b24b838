"""Files that appear under their name once they are whole, and what a killed process leaves of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bustseg.bounds import check_regular


@contextmanager
def whole(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """The file to write in place of ``path``, which it replaces at the end; if an exception ends it, it is removed.

    Args:
        path: file, in a folder that exists
        sync: whether file and name are on the disk before this returns, so that they survive a loss of power

    Raises:
        OSError: the disk does not take it
        DataError: a device or pipe of that name, whose place the file would take
    """
    check_regular(path)
    # a name may have 255 bytes, however many characters these are
    name = os.fsdecode(os.fsencode(path.name)[-200:])
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that replaces ``path`` once it is whole, so that a reader never sees half of it."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file


def write_whole(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file so that it is there whole or not at all; its folder is made when it does not exist.

    Args:
        path: file
        content: of the file
        sync: as for :func:`whole`

    Raises:
        OSError: the disk does not take it
    """
    with whole(path, sync=sync) as temporary:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)


def remove_unfinished(folder: Path, pid: int | None = None) -> None:
    """Remove what a process that was killed has not finished in a folder and in those below it.

    Args:
        folder: need not be there
        pid: the process; any when not given
    """
    for path in folder.rglob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if writer.isdecimal() and pid in (None, int(writer)):
            with contextlib.suppress(OSError):
                path.unlink()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
