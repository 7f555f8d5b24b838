"""Limits on the memory and time that one input may take. What exceeds them is refused in one line that names the limit.

A file of a few kilobytes may expand to gigabytes: an image of one colour, a compressed archive, a YAML file whose
anchors refer to each other. The limits are far above what ultrasound needs.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bustseg.errors import DataError, UserError

MEGAPIXELS = "BUSTSEG_MAX_MEGAPIXELS"
"""Environment variable that sets the largest image that is decoded, in millions of pixels."""

DEFAULT_MEGAPIXELS = 24.0
"""Three times a 4K screen; an ultrasound image has one or two."""

MAX_SIDE = 65_500
"""Largest side of an image in pixels; JPEG's own limit (OpenCV's PNG writer stops at a million)."""

MAX_FRAMES = 20_000
"""Most images in one file: more than ten minutes of a scan."""

MAX_SCANS = 200
"""Most passes of a progressive JPEG; ten are usual, and each takes as long as decoding the whole image."""

MAX_CHUNKS = 100_000
"""Most chunks of a PNG; an image of 24 million pixels has 3,000 of the usual size, and reading each takes time."""

MAX_DEFLATED_BYTES = 2**29
"""Most bytes of a deflated DICOM file once it is decompressed."""

MAX_DEPTH, MAX_VALUES = 100, 20_000
"""Deepest nesting and most values of a configuration; the largest preset has 300 values, 7 levels deep."""

MAX_CONFIG_BYTES = 2**18
"""Most bytes of a configuration file; the largest preset has three thousand."""

MAX_TABLE_BYTES = 64 * 2**20
"""Most bytes of a table, decompressed: half a million images. In memory it takes twenty times as much."""

MAX_COLUMNS = 2_000
"""Most columns of a table; the widest that bustseg writes has forty. Reading a million takes minutes."""

LARGE = 8_000_000
"""Images with at least this many pixels are decoded one at a time, whatever the number of threads."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_one_at_a_time = threading.RLock()


class LimitError(DataError):
    """Input that would take more memory or time than one file may."""


def max_pixels() -> int:
    """Pixels of the largest image that is decoded: :data:`DEFAULT_MEGAPIXELS`, or what the user allows.

    Raises:
        UserError: :data:`MEGAPIXELS` is not a positive number
    """
    text = os.environ.get(MEGAPIXELS)
    try:
        millions = DEFAULT_MEGAPIXELS if text is None else float(text)
        if 0 < millions < 1e6:
            return int(millions * 1_000_000)
    except ValueError:
        pass
    raise UserError(f"{MEGAPIXELS} is {text!r:.40}: give a number of millions of pixels, such as 100")


def check_port(port: int) -> None:
    """Refuse a number that is not a valid port; 0 lets the system choose one.

    Raises:
        UserError: it is below 0 or above 65535
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}: give a number from 0 to 65535")


def check_pixels(what: str, height: int, width: int, frames: int = 1) -> None:
    """Refuse an image whose header says that it is too large to be decoded.

    Args:
        what: name of the file, for the message
        height, width: in pixels
        frames: images of this size in the file

    Raises:
        LimitError: it has too many pixels, or the file too many images
    """
    limit = max_pixels()
    if height * width > limit:
        raise LimitError(
            f"{what} has {width}x{height} pixels, and at most {limit / 1e6:g} million are decoded: make it smaller, or "
            f"allow more with {MEGAPIXELS}"
        )
    if max(height, width) > MAX_SIDE:
        raise LimitError(f"{what} has {width}x{height} pixels, and at most {MAX_SIDE} on a side are decoded: crop it")
    check_frames(what, frames)


def check_frames(what: str, frames: int) -> None:
    """Refuse a file of more images than any scan has.

    Raises:
        LimitError: it has more than :data:`MAX_FRAMES`
    """
    if frames > MAX_FRAMES:
        raise LimitError(
            f"{what} claims to hold {frames} images, and at most {MAX_FRAMES} are read from one file: split it"
        )


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Let threads work on large images one at a time: eight at once need eight times the memory."""
    if pixels < LARGE:
        yield
        return
    with _one_at_a_time:
        yield


def check_regular(path: Path, what: str = "") -> None:
    """Refuse pipes, devices and sockets, which may never end. A missing file is reported by whatever opens it.

    Args:
        path: the file; links are followed
        what: name for the message; the path itself when not given

    Raises:
        DataError: it exists and is neither a file nor a folder
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise DataError(f"{what or path} is {kind}, not a file: save its content to a file first")


def check_size(path: Path, limit: int, what: str) -> None:
    """Refuse a file of more than ``limit`` bytes, and anything that is not a file.

    Raises:
        LimitError, DataError: it is too large, or not a file
    """
    check_regular(path)
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return
    if size > limit:
        raise LimitError(f"{path} has {size:,} bytes, and {what} at most {limit:,}: is it the right file?")


def check_table(path: Path) -> None:
    """Refuse a CSV or .xlsx file that would take far more memory or time than any table of images.

    Raises:
        LimitError, DataError: it has too many bytes or columns, or is not a file
    """
    check_size(path, MAX_TABLE_BYTES, "a table")
    if path.suffix.lower() == ".xlsx":
        check_archive(path, MAX_TABLE_BYTES, "a table")
        return
    try:
        with path.open("rb") as file:
            columns = 1 + max((line.count(mark) for line in file for mark in (b",", b";", b"\t")), default=0)
    except OSError:
        return  # whoever reads it says what is wrong
    if columns > MAX_COLUMNS:
        raise LimitError(f"{path} has {columns:,} columns, and a table at most {MAX_COLUMNS:,}: is it the right file?")


def check_archive(path: Path, limit: int, what: str) -> None:
    """Refuse a ZIP archive, such as an .xlsx table, that expands to more than ``limit`` bytes.

    Raises:
        LimitError: it expands to more
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # whoever reads it says what is wrong
    if size > limit:
        raise LimitError(f"{path} expands to {size:,} bytes, and {what} to at most {limit:,}: is it the right file?")


def read_yaml(path: Path) -> tuple[str, Any]:
    """Text and content of a YAML file, unless it is far too large to be a configuration.

    Raises:
        LimitError: too large, nested too deeply, or growing when its aliases are written out (``&a [*b, *b, ...]``)
        DataError: it cannot be read, or is not YAML
    """
    check_size(path, MAX_CONFIG_BYTES, "a configuration")
    try:
        text = path.read_text(encoding="utf-8")
        # before it is loaded: deeply nested brackets and merged keys can keep PyYAML busy for hours
        _check_nesting(text, path)
        check_values(yaml.compose(text, Loader=_Loader), path)
        return text, yaml.load(text, Loader=_Loader)  # a safe loader
    except (OSError, yaml.YAMLError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def check_text(text: str) -> None:
    """Refuse an option or a text of a configuration that grows beyond all use when its aliases are written out.

    The parser reads each of them as YAML.

    Raises:
        LimitError: so it does
    """
    if not ("&" in text and "*" in text):  # what has no aliases takes as much as it is long
        return
    option, equals, value = text.partition("=")
    if equals and option.startswith("--"):
        text = value
    origin = f"the text {text[:40]!r}..."
    try:
        _check_nesting(text, origin)
        if isinstance(node := yaml.compose(text, Loader=_Loader), yaml.CollectionNode):
            check_values(node, origin)
    except (yaml.YAMLError, ValueError):  # no YAML, such as a path, or for the parser to refuse
        return


def _check_nesting(text: str, path: str | Path) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise LimitError(f"{path} is nested more than {MAX_DEPTH} levels deep: write it flatter")
        if count > 2 * MAX_VALUES:
            raise LimitError(f"{path} has more than {MAX_VALUES:,} values, and no configuration needs so many")


def check_values(content: Any, origin: str | Path) -> None:
    """Refuse a configuration that becomes far too large when every alias in it is written out.

    Args:
        content: mappings, lists and plain values, or PyYAML's nodes of them, which may be shared or contain themselves
        origin: file that it came from, for the message

    Raises:
        LimitError: it has too many values, or is nested too deeply
    """
    pending = [iter((content,))]
    count = 0
    while pending:
        for value in pending[-1]:
            count += 1
            if isinstance(text := value.value if isinstance(value, yaml.ScalarNode) else value, str):
                check_text(text)
            if (inner := _inner(value)) is not None:
                pending.append(inner)
                break
        else:
            pending.pop()
        if count > MAX_VALUES or len(pending) > MAX_DEPTH:
            raise LimitError(
                f"{origin} has more than {MAX_VALUES:,} values or {MAX_DEPTH} levels when its aliases are written out, "
                "and no configuration needs so many: write fewer"
            )


def _inner(value: Any) -> Iterator[Any] | None:
    """What a value holds; None for a plain one."""
    if isinstance(value, yaml.CollectionNode):
        value = value.value
    if isinstance(value, Mapping):
        return (item for pair in value.items() for item in pair)
    return iter(value) if isinstance(value, list | tuple | set | frozenset) else None


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number in the range of a float; JSON and YAML allow others."""
    return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max


def as_mapping(settings: Any, name: str) -> dict[str, Any]:
    """Settings that are stored with a model under ``name``; empty where they are None.

    Raises:
        UserError: not a mapping from names
    """
    if settings is not None and not (isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)):
        raise UserError(f"the model's {name} is {settings!r:.60}: it must map names to values")
    return dict(settings or {})
