"""The one search for image files: which files of a folder are images, in which order, and what is passed over."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Suffixes of pictures in lower case; DICOM files are known by :func:`bustseg.data.dicom.is_dicom`."""

DOCUMENTS = (".csv", ".tsv", ".xlsx", ".txt", ".md", ".json", ".yaml", ".xml", ".pdf")
"""Suffixes of tables and texts, which belong beside the images of a data set."""

MASK_STEM = re.compile(r"^(?P<image>.+)_mask(_\d+)?$", re.IGNORECASE)
"""Name of a mask file without its suffix; ``image`` is that of its image, which lies beside it."""

HIDDEN, NO_IMAGE, FOLDER, BROKEN = "hidden", "no image", "sub-folder", "broken link"
"""Kinds of what a search passes over: files of the system's own (``._*``, ``.DS_Store``, ``__MACOSX``) are hidden."""

_SYSTEMS_OWN = ("__macosx", "thumbs.db", "desktop.ini")


class PassedOver:
    """How many files and folders a search has not taken, by kind. Says no names, which may name patients."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def add(self, kind: str, number: int = 1) -> None:
        """Count ``number`` more of a kind."""
        if number:
            self.kinds[kind] += number

    def total(self) -> int:
        """All of them."""
        return self.kinds.total()

    def told(self) -> str:
        """Such as ``3 files or folders passed over: 2 hidden, 1 no image``; empty for none."""
        if not self.total():
            return ""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kinds.items()))
        return f"{self.total()} file{'s' * (self.total() > 1)} or folder{'s' * (self.total() > 1)} passed over: {kinds}"


def natural_key(text: str) -> list[object]:
    """Sort key that puts ``benign (2)`` before ``benign (10)``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", text)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or the system's own, such as macOS's ``._scan.png`` beside ``scan.png``."""
    return name.startswith(".") or name.casefold() in _SYSTEMS_OWN


@dataclass
class Listing:
    """What a folder holds, each in natural order.

    Attributes:
        folder: the folder
        files: its files; links are followed
        folders: its folders, those that are links last, so that a folder is met under its own path first
        readable: False when it may not be listed
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    readable: bool = True


def list_folder(folder: Path, passed: PassedOver | None = None, hidden: bool = False) -> Listing:
    """Files and folders in a folder, without what is hidden, unless asked for.

    Args:
        passed: counts what is passed over
        hidden: take hidden files too
    """
    passed = passed if passed is not None else PassedOver()
    found: list[tuple[str, str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name) and not hidden:
                    passed.add(HIDDEN)
                elif entry.is_dir():
                    found.append((entry.name, "linked folder" if entry.is_symlink() else "folder"))
                elif entry.is_file():
                    found.append((entry.name, "file"))
                else:
                    passed.add(BROKEN if entry.is_symlink() else NO_IMAGE)
    except OSError:
        return Listing(folder, readable=False)
    found.sort(key=lambda one: (natural_key(one[0]), one[0]))
    paths = {kind: [folder / name for name, of in found if of == kind] for kind in ("file", "folder", "linked folder")}
    return Listing(folder, paths["file"], paths["folder"] + paths["linked folder"])


def walk(
    folder: Path,
    passed: PassedOver | None = None,
    recursive: bool = True,
    leave_out: Callable[[Path], bool] = lambda folder: False,
) -> Iterator[Listing]:
    """A folder and those in it, each listed only when its turn comes, and once: links are followed, loops are not.

    Args:
        passed: counts what is passed over
        recursive: look into folders of folders
        leave_out: folders that are not looked into
    """
    passed = passed if passed is not None else PassedOver()
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        try:
            status = current.stat()
        except OSError:
            passed.add(BROKEN)
            continue
        if (status.st_dev, status.st_ino) in seen or leave_out(current):
            continue
        seen.add((status.st_dev, status.st_ino))
        listing = list_folder(current, passed)
        if not recursive:
            passed.add(FOLDER, len(listing.folders))
        yield listing
        if recursive:
            stack += reversed(listing.folders)


def images_in(folder: Path, passed: PassedOver | None = None) -> list[Path]:
    """Pictures in a folder, not in its sub-folders, in natural order and by their suffix in any case.

    Args:
        passed: counts what is passed over
    """
    passed = passed if passed is not None else PassedOver()
    listing = next(walk(folder, passed, recursive=False), Listing(folder))
    found = [path for path in listing.files if path.suffix.lower() in IMAGE_SUFFIXES]
    documents = sum(path.suffix.lower() in DOCUMENTS for path in listing.files)
    passed.add(NO_IMAGE, len(listing.files) - len(found) - documents)
    return found
