"""Uploaded bytes as images: their type comes from their content, never from a name, and limits are checked first.

A client's file name is only shown to the client: files are stored under random names in a folder of this process, which
only this user can read and which is removed when the process ends.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from bustseg.bounds import LimitError
from bustseg.data import dicom
from bustseg.data.clips import Clip
from bustseg.data.images import image_size, to_grey
from bustseg.data.inputs import Inputs, Item
from bustseg.deploy.output import png
from bustseg.errors import DataError
from bustseg.serve.settings import Settings

_MARKS = (
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"II*\x00", ".tif"),
    (0, b"MM\x00*", ".tif"),
    (0, b"BM", ".bmp"),
    (128, b"DICM", ".dcm"),
    (4, b"ftyp", ".mp4"),
    (8, b"AVI ", ".avi"),
    (0, b"\x1aE\xdf\xa3", ".mkv"),
)
_CLIPS = (".mp4", ".avi", ".mkv")
KNOWN = "PNG, JPEG, TIFF, BMP, DICOM, mp4, avi, mkv or webm"
ID = r"^[0-9a-f]{32}$"
"""Pattern of an upload's id."""


class TooLarge(LimitError):
    """An image or file that exceeds a limit of the server."""


def kind(head: bytes) -> str | None:
    """Suffix for a file, from its first 144 bytes; None if it is not an image."""
    return next((suffix for start, mark, suffix in _MARKS if head[start : start + len(mark)] == mark), None)


def items_of(path: Path, settings: Settings) -> list[Item]:
    """Images of an uploaded file, at most ``settings.max_frames``, not decoded yet.

    A clip's frames are decoded once and stored next to it as PNG files, for quick access to any of them.

    Args:
        path: a file whose name ends with its :func:`kind`

    Raises:
        TooLarge: too many images, or too many pixels in one
        DataError: the file cannot be read
    """
    if path.suffix in _CLIPS:
        return list(_clip_items(path, settings))
    if path.suffix == ".dcm":
        if dicom.is_deflated(path):
            raise DataError("deflated DICOM files cannot be uploaded, since a small one can expand to any size")
    else:
        _check_pages(path, settings)
    inputs = Inputs([str(path)], path.parent / "none")
    items = list(islice(inputs, settings.max_frames + 1))
    if not items:
        raise DataError(f"the file is not an ultrasound image ({', '.join(inputs.not_ultrasound)})")
    if len(items) > settings.max_frames:
        raise _too_many(settings)
    first = items[0]
    if first.error:
        raise DataError(first.error.partition(" (file ")[0])
    _check_pixels(first.header.shape if first.header else image_size(path), settings)
    if first.header is not None:
        dicom.check_codestreams(path)
    return items


def _check_pages(path: Path, settings: Settings) -> None:
    """Refuse a TIFF with too many pages without counting all of them."""
    if path.suffix != ".tif":
        return
    try:
        with Image.open(path, formats=["TIFF"]) as file:
            file.seek(settings.max_frames)
    except EOFError:
        return
    except Exception:  # Pillow's readers raise many kinds of error; reading the image will report it
        return
    raise _too_many(settings)


def _too_many(settings: Settings) -> TooLarge:
    return TooLarge(f"the file holds more than {settings.max_frames} images")


def _check_pixels(shape: tuple[int, int], settings: Settings) -> None:
    if shape[0] * shape[1] > settings.max_pixels:
        raise TooLarge(f"an image of {shape[1]} x {shape[0]} has more than {settings.max_pixels} pixels")


def _clip_items(path: Path, settings: Settings) -> Iterator[Item]:
    clip = Clip.open(path)
    _check_pixels(clip.shape, settings)
    for number, frame in enumerate(clip):
        if number == settings.max_frames:
            raise _too_many(settings)
        file = path.with_name(f"{path.stem}_{number:06d}.png")
        # ultrasound is grey except for flow, which the networks do not use
        file.write_bytes(png(to_grey(frame)))
        yield Item(path.name, file.stem, file)


def read_item(item: Item, settings: Settings) -> np.ndarray:
    """The whole picture of an image from :func:`items_of`; errors do not name the server's file.

    Raises:
        TooLarge: too many pixels
        DataError: it cannot be read
    """
    try:
        picture = item.read()
    except DataError as error:
        told = str(error).replace(f"{item.path} ", "the file ").replace(str(item.path), "the file")
        raise (TooLarge if isinstance(error, LimitError) else DataError)(told) from None
    except MemoryError:
        raise TooLarge("the image does not fit into memory") from None
    except Exception as error:  # an internal error of a decoder
        raise DataError(f"the file cannot be read ({type(error).__name__})") from None
    _check_pixels((picture.shape[0], picture.shape[1]), settings)
    return picture


@dataclass
class Upload:
    """A file that is open on the page.

    Attributes:
        id: its random name
        name: the client's name for it
        folder: its folder
        path: the file itself
        items: its images
        size: bytes on disk
        used: time of the last use
    """

    id: str
    name: str
    folder: Path
    path: Path
    items: list[Item]
    size: int
    used: float = field(default_factory=time.monotonic)


class Uploads:
    """Files of clients, kept on disk for a while; the least recently used are removed first when space is needed.

    Args:
        settings: limits
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="bustseg-serve-"))
        self._known: dict[str, Upload] = {}
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, content: BinaryIO) -> Iterator[tuple[Path, list[Item]]]:
        """The images of a file while the context lasts.

        Raises:
            TooLarge: it exceeds a limit
            DataError: not an image, or one that cannot be read
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield self._write(content, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, content: BinaryIO, folder: Path) -> tuple[Path, list[Item]]:
        content.seek(0)
        head = content.read(144)
        suffix = kind(head)
        if suffix is None:
            raise DataError(f"the file is not an image: give {KNOWN}" if head else "the file is empty")
        path = folder / f"upload{suffix}"
        with path.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(content, file)
        try:
            return path, items_of(path, self.settings)
        except DataError as error:
            text = str(error).replace(f"{path} ", "the file ").replace(str(path), "the file")
            raise type(error)(text) from None

    def keep(self, content: BinaryIO, name: str) -> Upload:
        """Store a file; errors as in :meth:`opened`."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            path, items = self._write(content, folder)
            read_item(items[0], self.settings)  # refuse an unreadable file now and not when it is shown
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        size = sum(file.stat().st_size for file in folder.iterdir())
        upload = Upload(secrets.token_hex(16), name, folder, path, items, size)
        with self._lock:
            self._known[upload.id] = upload
        self.tidy()
        return upload

    def get(self, id: str) -> Upload | None:
        """The upload with an id; None if it no longer exists."""
        with self._lock:
            upload = self._known.get(id)
            if upload is not None:
                upload.used = time.monotonic()
        return upload

    def drop(self, id: str) -> bool:
        """Remove an upload; returns whether there was one."""
        with self._lock:
            upload = self._known.pop(id, None)
        if upload is not None:
            shutil.rmtree(upload.folder, ignore_errors=True)
        return upload is not None

    def tidy(self) -> None:
        """Remove uploads that were not used for long, and the oldest if all together are too large."""
        now = time.monotonic()
        with self._lock:
            by_age = sorted(self._known.values(), key=lambda upload: upload.used)
        total = sum(upload.size for upload in by_age)
        for upload in by_age:
            if now - upload.used > self.settings.keep_seconds or (
                total > self.settings.keep_bytes and upload is not by_age[-1]
            ):
                total -= upload.size
                self.drop(upload.id)

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
