"""From what a user names (files, folders, globs) to images, one after the other and without listing them all first.

DICOM files and what they hold are called by a pseudonym: neither their names nor their folders' appear anywhere.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from bustseg.bounds import LimitError, check_regular
from bustseg.data import dicom
from bustseg.data.files import IMAGE_SUFFIXES, MASK_STEM, natural_key
from bustseg.data.images import count_pages, read_native
from bustseg.errors import DataError, UserError

TABLE = "predictions.csv"
"""Table that marks a folder of predictions, whose masks and overlays are no input."""

TABLE_START = "image,frame,mask,"
"""What the table begins with."""

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Item:
    """One image to predict.

    Attributes:
        image: what tables call its file: the absolute path, or a pseudonym for DICOM
        name: path of its output files, relative and without suffix, as it is wished; see :class:`Names`
        path: the file
        frame: position in a file of several images; None in a file of one
        frames: images in the file
        header: of a DICOM file
        error: why the file cannot be read, when that is known already
    """

    image: str
    name: str
    path: Path
    frame: int | None = None
    frames: int = 1
    header: dicom.Header | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """File and frame as they stand in a table."""
        return self.image, "" if self.frame is None else str(self.frame)

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Part of the picture that is the image, as (top, left, height, width); None for all of it."""
        return self.header.box if self.header else None

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Size of a pixel in mm as (row, column), where it is known."""
        return self.header.spacing if self.header else None

    @property
    def may_be_shown(self) -> bool:
        """Whether a picture of it can hold no burned-in name: cut to the scanned region, or declared free of text."""
        return self.header is None or self.header.box is not None or self.header.burned_in is False

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The part of :meth:`read` that is the image."""
        if self.box is None:
            return picture
        top, left, height, width = self.box
        return picture[top : top + height, left : left + width]

    def read(self) -> np.ndarray:
        """The whole picture as ``uint8``, (H, W) or for colour (H, W, 3).

        Raises:
            DataError: it cannot be read
        """
        if self.error:
            raise DataError(self.error)
        if self.header is not None:
            return dicom.read_frame(self.path, self.frame or 0)
        return read_native(self.path, self.frame or 0)


class Names:
    """Names of output files, each given to one image only; upper and lower case count as the same.

    Remembers about 150 bytes for each image.
    """

    def __init__(self) -> None:
        self._owner: dict[int, int] = {}

    def take(self, name: str, owner: tuple[str, str]) -> str:
        """``name`` if it is free or ``owner``'s already, else with the first number that is."""
        numbered, number = name, 1
        while self._owner.setdefault(hash(numbered.casefold()), hash(owner)) != hash(owner):
            number += 1
            numbered = f"{name}-{number}"
        return numbered


class Inputs:
    """Images of files, folders and globs.

    Args:
        given: what the user named
        out: folder of the output, which is never read
        recursive: look into folders of folders

    Attributes:
        passed_over: files so far that are masks beside their image (BUSI), or no image
        not_ultrasound: how many DICOM files so far were passed over because they are of another kind, by kind

    Raises:
        UserError: one of them does not exist or holds no image
    """

    def __init__(self, given: Sequence[str], out: Path, recursive: bool = True) -> None:
        self.out, self.recursive = out.resolve(), recursive
        self.passed_over = 0
        self._given = [self._locate(text) for text in given]
        if not self._given:
            raise UserError("no input: name image files, folders or quoted globs")
        for text, (base, parts) in zip(given, self._given, strict=True):
            if base.resolve() == self.out and not base.is_file():
                raise UserError(f"{text} is the folder of the output too: name another with --out")
            if next(self._files(base, parts), None) is None:
                known = " ".join(suffix.removeprefix(".") for suffix in (*IMAGE_SUFFIXES, *dicom.SUFFIXES))
                raise UserError(f"{text} holds or matches no image ({known})")
        self.passed_over = 0
        self.not_ultrasound: Counter[str] = Counter()
        self._dicom: dict[str, list[Path]] = {}
        # names stay apart because they are relative to what all inputs have in common
        folders = [base if parts or base.is_dir() else base.parent for base, parts in self._given]
        self._root = Path(os.path.commonpath(folders))

    @staticmethod
    def _locate(text: str) -> tuple[Path, tuple[str, ...]]:
        """A glob's fixed folder and its other parts; no parts for a file or folder."""
        path = Path(os.path.abspath(Path(text).expanduser()))
        check_regular(path)
        if path.exists():
            return path, ()
        parts = path.parts
        wild = next((index for index, part in enumerate(parts) if _WILD.search(part)), None)
        if wild is None:
            raise UserError(f"no image or folder at {text}")
        base = Path(*parts[:wild])
        if not base.is_dir():
            raise UserError(f"{text} matches nothing: there is no folder {base}")
        return base, parts[wild:]

    def paths(self) -> Iterator[Path]:
        """Image files, each folder's in natural order; what could not be listed comes as the folder's path."""
        for base, parts in self._given:
            yield from self._files(base, parts)

    def _files(self, base: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        if not parts:
            yield from self._walk(base) if base.is_dir() else self._wanted([base], explicit=True)
            return
        head, *rest = parts
        remaining = tuple(rest)
        try:
            entries = self._listed(base, hidden=head.startswith("."))
        except OSError:
            yield base
            return
        if head == "**":
            yield from self._files(base, remaining)
            for entry in entries:
                if entry.is_dir() and not entry.is_symlink():
                    yield from self._files(entry, parts)
            return
        for entry in entries:
            if fnmatchcase(entry.name, head):
                if not remaining and entry.is_file():
                    yield from self._wanted([entry])
                elif entry.is_dir():
                    yield from self._files(entry, remaining)

    def _walk(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
        real = folder.resolve()
        if real in above or real == self.out or _is_output(folder):
            return
        try:
            entries = self._listed(folder)
        except OSError:
            yield folder
            return
        yield from self._wanted(entry for entry in entries if entry.is_file())
        if self.recursive:
            for entry in entries:
                if entry.is_dir():
                    yield from self._walk(entry, (*above, real))

    @staticmethod
    def _listed(folder: Path, hidden: bool = False) -> list[Path]:
        names = (entry.name for entry in os.scandir(folder) if hidden or not entry.name.startswith("."))
        return [folder / name for name in sorted(names, key=lambda name: (natural_key(name), name))]

    def _wanted(self, files: Iterable[Path], explicit: bool = False) -> Iterator[Path]:
        for file in files:
            suffix = file.suffix.lower()
            mask = MASK_STEM.match(file.stem) if suffix in IMAGE_SUFFIXES else None
            if mask is not None and file.with_name(mask["image"] + file.suffix).is_file():
                self.passed_over += 1
            elif explicit or suffix in IMAGE_SUFFIXES or _is_dicom(file):
                yield file
            else:
                self.passed_over += 1

    def __iter__(self) -> Iterator[Item]:
        for number, path in enumerate(self.paths(), 1):
            yield from self._items(path, number)

    def _items(self, path: Path, number: int) -> Iterator[Item]:
        """Images of one file; a file that cannot be opened is one image with an error."""
        if path.is_dir():
            yield Item(str(path), path.name, path, error=f"the folder {path} cannot be listed: its images are left out")
            return
        if _is_dicom(path):
            yield from self._dicom_items(path, number)
            return
        inner = path.relative_to(self._root)
        name = (inner.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else inner).as_posix()
        try:
            frames = count_pages(path)
        except LimitError as error:
            yield Item(str(path), name, path, error=str(error))
            return
        except DataError:  # reading it will tell
            frames = 1
        for frame in range(frames):
            if frames == 1:
                yield Item(str(path), name, path)
            else:
                yield Item(str(path), _frame_name(name, frame, frames), path, frame, frames)

    def _dicom_items(self, path: Path, number: int) -> Iterator[Item]:
        try:
            header = dicom.read_header(path)
        except dicom.NotUltrasound as other:
            self.not_ultrasound[other.kind] += 1
            return
        except DataError as error:
            image = f"dicom {dicom.pseudonym(str(path))}"
            # only the order tells which file it is: a name could name the patient
            yield Item(image, image, path, error=f"{error} (file {number} of the input, in natural order)")
            return
        image = self._dicom_name(header.file, path)
        for frame in range(header.frames):
            if header.frames == 1:
                yield Item(image, image, path, header=header)
            else:
                yield Item(image, _frame_name(image, frame, header.frames), path, frame, header.frames, header)

    def _dicom_name(self, identifier: str, path: Path) -> str:
        """What a file is called: by its identifier, with a number where careless anonymisers gave it to others too."""
        others = self._dicom.setdefault(identifier, [])
        # a copy of a file is that file again
        number = next((n for n, other in enumerate(others) if _same_content(path, other)), len(others))
        if number == len(others):
            others.append(path)
        return f"dicom {identifier}" if not number else f"dicom {identifier}-{number + 1}"

    def told(self) -> str:
        """What was passed over because it is no ultrasound, in words; empty for nothing."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.not_ultrasound.items()))
        count = self.not_ultrasound.total()
        return f"{count} DICOM file{'s' * (count > 1)} passed over, being no ultrasound image: {kinds}" if count else ""


def _is_output(folder: Path) -> bool:
    try:
        with (folder / TABLE).open(errors="replace") as file:
            return file.readline().startswith(TABLE_START)
    except OSError:
        return False


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name: pictures by their suffix are not, others are looked into."""
    return path.suffix.lower() not in IMAGE_SUFFIXES and (dicom.is_dicom(path) or dicom.has_mark(path))


def _same_content(one: Path, other: Path) -> bool:
    try:
        return one == other or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def all_frames(item: Item) -> list[tuple[str, tuple[str, str]]]:
    """Wished name and key of each frame of an item's DICOM file."""
    if item.frames == 1:
        return [(item.image, item.key)]
    return [(_frame_name(item.image, k, item.frames), (item.image, str(k))) for k in range(item.frames)]


def _frame_name(name: str, frame: int, frames: int) -> str:
    return f"{name}_frame{frame:0{len(str(frames - 1))}d}"
