"""Files that appear under their name only when complete, and removal of what a killed process leaves of them."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bustseg.bounds import check_regular


@contextmanager
def whole(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary file to write instead of ``path``, which it replaces at the end; after an exception it is removed.

    Args:
        path: the file, in an existing folder
        sync: whether file and name are on disk before this returns, so that they survive a power failure

    Raises:
        OSError: the disk does not take it
        DataError: a device or pipe of that name, whose place the file would take
    """
    check_regular(path)
    temporary = path.with_name(f"{_beginning(path)}{os.getpid()}.tmp")
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
    """A text file that replaces ``path`` once it is complete, so that a reader never sees a part of it."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file


def write_whole(path: Path, content: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file so that it is either complete or absent; its folder is created if it does not exist.

    Args:
        path: file
        content: its content
        sync: as for :func:`whole`

    Raises:
        OSError: it cannot be written
    """
    with whole(path, sync=sync) as temporary:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)


def unfinished(path: Path) -> list[Path]:
    """The unfinished files of any process that were to replace ``path``."""
    return list(path.parent.glob(f"{glob.escape(_beginning(path))}*.tmp"))


def remove_unfinished(folder: Path, pid: int | None = None) -> None:
    """Remove the unfinished files of a killed process in a folder and its sub-folders.

    Args:
        folder: the folder, which need not exist
        pid: the process; any when not given
    """
    for path in folder.rglob(".*.tmp"):
        writer = path.name.split(".")[-2]
        if writer.isdecimal() and pid in (None, int(writer)):
            with contextlib.suppress(OSError):
                path.unlink()


def _beginning(path: Path) -> str:
    # a name may have 255 bytes, however many characters these are
    return f".{os.fsdecode(os.fsencode(path.name)[-200:])}."


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
