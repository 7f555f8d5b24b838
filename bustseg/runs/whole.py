"""Files that appear under their name when they are whole, and what a killed process leaves of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The file to write in place of ``path``; it takes its place at the end, or goes if that is not reached."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of ``path`` once it is whole, so that a reader never sees half of it."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file


def remove_unfinished(folder: Path, pid: int | None = None) -> None:
    """Remove what a process that was killed has not finished in a folder and in those below it.

    Args:
        folder: need not be there
        pid: the process; any when not given
    """
    for path in folder.rglob(f".*.{'*' if pid is None else pid}.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()
