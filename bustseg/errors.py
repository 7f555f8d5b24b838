"""Errors that a user can fix: the command line prints their message as one line and exits with code 2."""

from __future__ import annotations

import errno
from collections.abc import Iterator


class UserError(Exception):
    """Input that cannot be used. The message says what is wrong and what to do, in one line."""


class UnknownKeyError(UserError):
    """A config key that does not exist.

    Args:
        message: one line for the user
        key: the dotted key; for an argument of a class, with ``init_args`` in it
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[type[UnknownKeyError], tuple[str, str]]:
        # an exception that comes from another process is pickled, by default with its message alone
        return type(self), (str(self), self.key)


class DataError(UserError):
    """A data folder, image, mask or split that must not be trained on."""


class WeightsError(UserError):
    """Pretrained weights that cannot be obtained."""


class TrainingError(UserError):
    """A training that cannot continue, such as one whose loss is NaN."""


class TrackingError(UserError):
    """An MLflow store that cannot be used."""


class SweepError(UserError):
    """A sweep whose file, study or storage cannot be used."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file size that is used up."""


LONGEST_LINE = 1200
"""Most characters of an error's message that are shown."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause's cause, and so on; each once, since some libraries chain errors in circles."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes says that the disk is full."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            return True
        # SQLite, and errors that wrap an OSError
        if "disk is full" in str(cause) or "No space left on device" in str(cause):
            return True
    return False


def brief(error: BaseException) -> str:
    """The beginning of an error's message, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def in_one_line(error: BaseException) -> tuple[str, int]:
    """The command line's message for an error, always one line, and the exit code."""
    words, code = _words(error)
    # a file's name may contain line breaks, and bytes that are not valid text
    line = " ".join(words.encode(errors="replace").decode().split())
    if len(line) > LONGEST_LINE:  # such as an endless file name or field; the remedy comes last
        line = f"{line[: LONGEST_LINE // 2]} [...] {line[-LONGEST_LINE // 3 :]}"
    return line, code


def _words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user", 130
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}): use smaller images or batches, or fewer at once", 2
    if disk_is_full(error):
        return "the disk is full: free some space; finished epochs are kept in the run's last.ckpt", 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename!s:.200}", 2
    text = f"{type(error).__name__}: {error}"
    return text if isinstance(error, OSError) else f"{text} (run again with --debug for the traceback)", 1
