"""The search for image files: which files of a folder are images, in which order, and which are skipped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Suffixes of pictures in lower case; DICOM files are recognised by :func:`bustseg.data.dicom.is_dicom`."""

DOCUMENTS = (".csv", ".tsv", ".xlsx", ".txt", ".md", ".json", ".yaml", ".xml", ".pdf")
"""Suffixes of tables and texts, which are expected next to the images of a data set."""

MASK_STEM = re.compile(r"^(?P<image>.+)_mask(_\d+)?$", re.IGNORECASE)
"""Name of a mask file without its suffix; ``image`` is the name of its image in the same folder."""

HIDDEN, NO_IMAGE, FOLDER, BROKEN = "hidden", "no image", "sub-folder", "broken link"
"""Kinds of skipped entries; system files (``._*``, ``.DS_Store``, ``__MACOSX``) count as hidden."""

_SYSTEMS_OWN = ("__macosx", "thumbs.db", "desktop.ini")


class PassedOver:
    """Number of files and folders that a search has skipped, by kind. Without names, since these may name patients."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def add(self, kind: str, number: int = 1) -> None:
        """Count ``number`` more of a kind."""
        if number:
            self.kinds[kind] += number

    def total(self) -> int:
        """Number of all of them."""
        return self.kinds.total()

    def told(self) -> str:
        """A summary such as ``3 files or folders skipped: 2 hidden, 1 no image``; empty for none."""
        if not self.total():
            return ""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kinds.items()))
        return f"{self.total()} file{'s' * (self.total() > 1)} or folder{'s' * (self.total() > 1)} skipped: {kinds}"


def natural_key(text: str) -> list[object]:
    """Sort key that puts ``benign (2)`` before ``benign (10)``."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", text)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or a system file, such as macOS's ``._scan.png`` next to ``scan.png``."""
    return name.startswith(".") or name.casefold() in _SYSTEMS_OWN


@dataclass
class Listing:
    """The content of a folder, in natural order.

    Attributes:
        folder: the folder
        files: its files; links are followed
        folders: its folders, links last, so that a folder is found under its own path first
        readable: False when it cannot be listed
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    readable: bool = True


def list_folder(folder: Path, passed: PassedOver | None = None, hidden: bool = False) -> Listing:
    """Files and folders in a folder; hidden ones only on request.

    Args:
        passed: counts what is skipped
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
    """A folder and those below it, each listed lazily and only once: links are followed, loops are not.

    Args:
        passed: counts what is skipped
        recursive: look into folders of folders
        leave_out: folders that are not searched
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
    """Pictures in a folder without its sub-folders, in natural order, recognised by suffix in upper or lower case.

    Args:
        passed: counts what is skipped
    """
    passed = passed if passed is not None else PassedOver()
    listing = next(walk(folder, passed, recursive=False), Listing(folder))
    found = [path for path in listing.files if path.suffix.lower() in IMAGE_SUFFIXES]
    documents = sum(path.suffix.lower() in DOCUMENTS for path in listing.files)
    passed.add(NO_IMAGE, len(listing.files) - len(found) - documents)
    return found
