"""Errors that a user can mend: the command line prints their message as one line and exits with code 2."""

from __future__ import annotations

import errno
from collections.abc import Iterator


class UserError(Exception):
    """Input that cannot be used. The message says what is wrong and what to do, in one line."""


class UnknownKeyError(UserError):
    """A config key that nothing takes.

    Args:
        message: one line for the user
        key: the key, dotted; an argument of a class with the ``init_args`` before it
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[type[UnknownKeyError], tuple[str, str]]:
        # an exception is pickled by its message alone, and comes so from another process
        return type(self), (str(self), self.key)


class DataError(UserError):
    """A data folder, image, mask or split that training on it would be wrong."""


class WeightsError(UserError):
    """Pretrained weights that cannot be had."""


class TrainingError(UserError):
    """A training that cannot go on, such as one whose loss is no number."""


class TrackingError(UserError):
    """An MLflow store that cannot be used."""


class SweepError(UserError):
    """A sweep whose file, study or storage cannot be used."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file size that is used up."""


LONGEST_LINE = 1200
"""Letters of an error's message that are shown."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came from, and so on; each once, since libraries chain errors in circles, too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that there is no room left."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        if "disk is full" in str(cause) or "No space left on device" in str(cause):  # sqlite, and what wraps an OSError
            return True
    return False


def brief(error: BaseException) -> str:
    """The beginning of an error's message, in one line of at most 300 letters."""
    return " ".join(str(error).split())[:300]


def in_one_line(error: BaseException) -> tuple[str, int]:
    """What the command line says of an error, in one line whatever names it quotes, and its exit code."""
    words, code = _words(error)
    # a file's name may hold line breaks, and bytes that are no text
    line = " ".join(words.encode(errors="replace").decode().split())
    if len(line) > LONGEST_LINE:  # of a file that has a name or a field without end; the remedy stands last
        line = f"{line[: LONGEST_LINE // 2]} [...] {line[-LONGEST_LINE // 3 :]}"
    return line, code


def _words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user", 130
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}): take smaller images or batches, or fewer at once", 2
    if disk_is_full(error):
        return "the disk is full: free some space; finished epochs are kept in the run's last.ckpt", 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename!s:.200}", 2
    text = f"{type(error).__name__}: {error}"
    return text if isinstance(error, OSError) else f"{text} (run again with --debug for the traceback)", 1
