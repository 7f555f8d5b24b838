"""Images from the files, folders and globs that a user gives, one after the other and without listing them all first.

DICOM files and their images are named by a pseudonym: neither their names nor those of their folders appear anywhere.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from bustseg.bounds import LimitError, check_regular
from bustseg.data import dicom
from bustseg.data.clips import CLIP_SUFFIXES
from bustseg.data.files import IMAGE_SUFFIXES, MASK_STEM, NO_IMAGE, PassedOver, images_in, list_folder, walk
from bustseg.data.images import count_pages, read_native
from bustseg.data.sources import LABELS, Sample
from bustseg.errors import DataError, UserError

TABLE, EXPLAINED = "predictions.csv", "explain.csv"
OUTPUTS = {TABLE: "image,frame,mask,", EXPLAINED: "name,image,"}
"""Tables that mark a folder as bustseg's output, whose pictures are not input, and the beginning of each."""

MASK, AGAIN, VIDEO = "mask beside its image", "reached again by a link", "video (name it to have it predicted)"
"""Kinds of files that are skipped."""

_FRAME = re.compile(r"_frame\d+$")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Item:
    """One image to predict.

    Attributes:
        image: name of its file in tables: the absolute path, or a pseudonym for DICOM
        name: wanted path of its output files, relative and without suffix; see :class:`Names`
        path: the file
        frame: position in a file of several images; None in a file of one
        frames: images in the file
        header: header of a DICOM file
        error: why the file cannot be read, if this is already known
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
        """File and frame as written in a table."""
        return self.image, "" if self.frame is None else str(self.frame)

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Image region within the picture as (top, left, height, width); None for all of it."""
        return self.header.box if self.header else None

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Size of a pixel in mm as (row, column); None when unknown."""
        return self.header.spacing if self.header else None

    @property
    def may_be_shown(self) -> bool:
        """Whether its picture is free of burned-in names: cut to the scanned region, or declared free of text."""
        return self.header is None or self.header.box is not None or self.header.burned_in is False

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The image region of a picture from :meth:`read`."""
        if self.box is None:
            return picture
        top, left, height, width = self.box
        return picture[top : top + height, left : left + width]

    def check(self) -> None:
        """Raise the error that is known before the picture is decoded, if there is one.

        Raises:
            DataError: the file cannot be read
        """
        if self.error:
            raise DataError(self.error)

    def read(self) -> np.ndarray:
        """The whole picture as ``uint8``, (H, W) or for colour (H, W, 3).

        Raises:
            DataError: it cannot be read
        """
        self.check()
        if self.header is not None:
            return dicom.read_frame(self.path, self.frame or 0)
        return read_native(self.path, self.frame or 0)


class Names:
    """Names of output files, each used for one image only; upper and lower case count as the same.

    Uses about 150 bytes of memory per image.
    """

    def __init__(self) -> None:
        self._owner: dict[int, int] = {}

    def take(self, name: str, owner: tuple[str, str]) -> str:
        """``name`` if it is free or already ``owner``'s, else with the first number for which this holds."""
        numbered, number = name, 1
        while self._owner.setdefault(hash(numbered.casefold()), hash(owner)) != hash(owner):
            number += 1
            numbered = f"{name}-{number}"
        return numbered


class Inputs:
    """The images of files, folders and globs.

    Args:
        given: the user's files, folders and globs
        out: folder of the output, which is never read; None where nothing is written
        recursive: look into folders of folders

    Attributes:
        passed: what was skipped so far: masks next to their image, hidden files, files that are not images
        not_ultrasound: number of DICOM files that were skipped so far because they are not ultrasound, by kind

    Raises:
        UserError: one of them does not exist or holds no image
    """

    def __init__(self, given: Sequence[str], out: Path | None = None, recursive: bool = True) -> None:
        self.out, self.recursive = None if out is None else out.resolve(), recursive
        self.passed = PassedOver()
        self._given = [self._locate(text) for text in given]
        if not self._given:
            raise UserError("no input: name image files, folders or quoted globs")
        for text, (base, parts) in zip(given, self._given, strict=True):
            if base.resolve() == self.out and not base.is_file():
                raise UserError(f"{text} is also the output folder: name another with --out")
            if next(self._files(base, parts, passed := PassedOver()), None) is None:
                known = " ".join(suffix.removeprefix(".") for suffix in (*IMAGE_SUFFIXES, *dicom.SUFFIXES))
                over = f"; {passed.told()}" if passed.total() else ""
                raise UserError(f"{text} holds or matches no image ({known}){over}")
        self.not_ultrasound: Counter[str] = Counter()
        self._dicom: dict[str, list[Path]] = {}
        # names are relative to the common folder of all inputs, so that they stay distinct
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

    def paths(self, passed: PassedOver | None = None) -> Iterator[Path]:
        """Image files, in natural order within each folder; a folder that cannot be listed is given as its path.

        Args:
            passed: counts what is skipped
        """
        passed = passed if passed is not None else PassedOver()
        for base, parts in self._given:
            # each file of a folder counts once, even if links lead to the folder by several paths
            seen: set[int] = set()
            folder, identity = Path(), (0, 0)
            for path in self._files(base, parts, passed):
                if path.parent != folder:  # files come folder by folder
                    folder, identity = path.parent, _identity(path.parent)
                entry = hash((identity, path.name))
                if entry in seen:
                    passed.add(AGAIN)
                else:
                    seen.add(entry)
                    yield path

    def _files(self, base: Path, parts: tuple[str, ...], passed: PassedOver) -> Iterator[Path]:
        if not parts:
            if base.is_dir():
                for listing in walk(base, passed, self.recursive, self._is_output):
                    yield from self._wanted(listing.files, passed) if listing.readable else [listing.folder]
            else:
                yield from self._wanted([base], passed, explicit=True)
            return
        head, *rest = parts
        remaining = tuple(rest)
        if head == "**":
            if not remaining:
                yield from self._files(base, (), passed)
                return
            # files that do not match a pattern were not requested, so they do not count as skipped
            for listing in walk(base, leave_out=self._is_output):
                yield from self._files(listing.folder, remaining, passed)
            return
        listing = list_folder(base, hidden=head.startswith("."))
        if not listing.readable:
            yield base
        for file in listing.files if not remaining else ():
            if fnmatchcase(file.name, head):
                yield from self._wanted([file], passed)
        for folder in listing.folders:
            if fnmatchcase(folder.name, head) and not self._is_output(folder):
                yield from self._files(folder, remaining, passed)

    def _is_output(self, folder: Path) -> bool:
        """Whether a folder is the output folder, or holds an earlier output."""
        if self.out is not None and folder.resolve() == self.out:
            return True
        for table, start in OUTPUTS.items():
            with suppress(OSError), (folder / table).open(errors="replace") as file:
                if file.readline().startswith(start):
                    return True
        return False

    @staticmethod
    def _wanted(files: Iterable[Path], passed: PassedOver, explicit: bool = False) -> Iterator[Path]:
        for file in files:
            if is_mask_of_another(file):
                passed.add(MASK)
            elif explicit or file.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(file):
                yield file
            else:
                passed.add(VIDEO if file.suffix.lower() in CLIP_SUFFIXES else NO_IMAGE)

    def __iter__(self) -> Iterator[Item]:
        for number, path in enumerate(self.paths(self.passed), 1):
            yield from self._items(path, number)

    def _items(self, path: Path, number: int) -> Iterator[Item]:
        """Images of one file; a file that cannot be opened is one image with an error."""
        if path.is_dir():
            yield Item(str(path), path.name, path, error=f"the folder {path} cannot be listed: its images are left out")
            return
        if dicom.is_dicom(path):
            yield from self._dicom_items(path, number)
            return
        inner = path.relative_to(self._root)
        name = (inner.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else inner).as_posix()
        try:
            frames = count_pages(path)
        except LimitError as error:
            yield Item(str(path), name, path, error=str(error))
            return
        except DataError:  # reading it will report the error
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
            # the file is identified by its position only: its name could name the patient
            yield Item(image, image, path, error=f"{error} (file {number} of the input, in natural order)")
            return
        image = self._dicom_name(header.file, path)
        for frame in range(header.frames):
            if header.frames == 1:
                yield Item(image, image, path, header=header)
            else:
                yield Item(image, _frame_name(image, frame, header.frames), path, frame, header.frames, header)

    def _dicom_name(self, identifier: str, path: Path) -> str:
        """A file's name: its identifier, with a number where a careless anonymiser gave it to several files."""
        others = self._dicom.setdefault(identifier, [])
        # a copy of a file counts as the same file
        number = next((n for n, other in enumerate(others) if _same_content(path, other)), len(others))
        if number == len(others):
            others.append(path)
        return f"dicom {identifier}" if not number else f"dicom {identifier}-{number + 1}"

    def told(self) -> str:
        """What was skipped, in words; empty for nothing."""
        return "; ".join(words for words in (self.passed.told(), self._told_of_dicom()) if words)

    def _told_of_dicom(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.not_ultrasound.items()))
        count = self.not_ultrasound.total()
        return f"{count} DICOM file{'s' * (count > 1)} skipped, not ultrasound images: {kinds}" if count else ""


def _identity(folder: Path) -> tuple[int, int]:
    """The identity of a folder, whatever path leads to it."""
    try:
        status = folder.stat()
    except OSError:  # deleted in the meantime, which reading its files will report
        return 0, hash(folder)
    return status.st_dev, status.st_ino


def is_mask_of_another(file: Path) -> bool:
    """Whether a picture is named as the mask of an image in the same folder (``NAME_mask.png``, or of a frame)."""
    named = MASK_STEM.match(file.stem) if file.suffix.lower() in IMAGE_SUFFIXES else None
    if named is None:
        return False
    stems = {named["image"], _FRAME.sub("", named["image"])}
    suffixes = dict.fromkeys((file.suffix, *IMAGE_SUFFIXES, *dicom.SUFFIXES, ""))
    cases = dict.fromkeys(case for suffix in suffixes for case in (suffix, suffix.upper()))
    return any(file.with_name(stem + suffix).is_file() for stem in stems for suffix in cases)


def _same_content(one: Path, other: Path) -> bool:
    try:
        return one == other or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


class LooseSamples:
    """Images outside of a data set as samples: with the masks next to them, and the class given by their folder's name.

    A mask is called ``NAME_mask.png``, ``NAME_mask_1.png``, ... as in BUSI, or ``NAME_frame<k>_mask.png`` (k from 0)
    where a file holds several images. Each folder is listed once.
    """

    def __init__(self) -> None:
        self._masks: dict[Path, dict[str, list[Path]]] = {}

    def __call__(self, item: Item) -> Sample:
        """The sample of an item; its id is the item's name without folders."""
        path = item.path
        stem = path.stem if path.suffix.lower() in (*IMAGE_SUFFIXES, *dicom.SUFFIXES) else path.name
        own = stem if item.frame is None else f"{stem}_frame{item.frame}"
        label = path.parent.name.lower()
        return Sample(
            Path(item.name).name,
            path,
            tuple(self._beside(path.parent).get(own, ())),
            label if label in LABELS else "unknown",
            source="files",
            frame=item.frame or 0,
            box=item.box,
            spacing=item.spacing,
            private=item.header is not None,
        )

    def _beside(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._masks:
            masks: dict[str, list[Path]] = {}
            for file in images_in(folder):
                if named := MASK_STEM.match(file.stem):
                    masks.setdefault(named["image"], []).append(file)
            self._masks[folder] = masks
        return self._masks[folder]


def all_frames(item: Item) -> list[tuple[str, tuple[str, str]]]:
    """Wanted name and key of each frame of an item's DICOM file."""
    if item.frames == 1:
        return [(item.image, item.key)]
    return [(_frame_name(item.image, k, item.frames), (item.image, str(k))) for k in range(item.frames)]


def _frame_name(name: str, frame: int, frames: int) -> str:
    return f"{name}_frame{frame:0{len(str(frames - 1))}d}"
