"""What all data-set layouts share: :class:`Sample`, :class:`Problem`, :class:`Source`, and the decoding of files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bustseg import bounds
from bustseg.data.files import PassedOver
from bustseg.data.images import count_pages, read_native, to_grey
from bustseg.data.mask_files import HALF, MaskFile, read_mask
from bustseg.errors import DataError
from bustseg.progress import tell_once

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("benign", "malignant", "normal", "unknown")
"""Classes in the order of their integer codes in a batch."""


@dataclass(frozen=True)
class Sample:
    """One ultrasound image with its masks and metadata.

    Attributes:
        id: name that is unique in its source, and that split files use (BUSI: ``benign (1)``)
        image: path of the image
        masks: paths of its mask files; several are OR-ed, none means an empty mask
        label: one of :data:`LABELS`
        group: samples of one patient (or of one set of duplicates) share it; None when unknown
        source: name of the data set
        frame: position of the image in a file that holds several
        box: image region within the file's picture as (top, left, height, width); None for all of it
        spacing: size of a pixel in mm as (row, column); None when unknown
        lesion_above: level of a mask's pixels above which they belong to the lesion, in the file's own levels; half of
            white by default
        private: whether file names may identify the patient, so that only ``id`` may be shown
        columns: further values from the source's table, by lower-case column name (BUS-BRA: ``device``)
    """

    id: str
    image: Path
    masks: tuple[Path, ...]
    label: str
    group: str | None = None
    source: str = "busi"
    frame: int = 0
    box: tuple[int, int, int, int] | None = None
    spacing: tuple[float, float] | None = None
    lesion_above: int = HALF
    private: bool = False
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)

    def shown(self, path: Path) -> str:
        """The name of a file of the sample for messages and reports."""
        return f"of {self.id}" if self.private else str(path)

    def public(self, path: Path) -> Path:
        """The path of a file of the sample for lists of problems."""
        return Path(self.id) if self.private else path

    def read_native(self) -> np.ndarray:
        """Image as ``uint8``, (H, W) or for colour (H, W, 3); errors as in :func:`read_native`."""
        with self._anonymous_errors():
            return self._cut(read_native(self.image, self.frame))

    def read_image(self) -> np.ndarray:
        """Image as grey ``uint8`` of shape (H, W)."""
        return to_grey(self.read_native())

    def read_mask_file(self, path: Path) -> MaskFile:
        """One of the masks, drawn on the whole picture or only on its ``box``.

        Raises:
            DataError: the file is missing, truncated or not an image
        """
        with self._anonymous_errors():
            mask = read_mask(path, self.lesion_above)
        return mask if self.box is None or mask.lesion.shape == self.box[2:] else mask.cut(self.box)

    def read_mask(self, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Union of the masks as ``bool`` of ``shape`` (H, W); without ``shape``, of the masks' own shape.

        Raises:
            DataError: a mask and the image differ in size, or the mask's levels are not plausible
        """
        if shape is None and not self.masks:
            image = self.read_image()
            shape = (image.shape[0], image.shape[1])
        union = None if shape is None else np.zeros(shape, dtype=bool)
        for path in self.masks:
            mask = self.read_mask_file(path)
            if mask.fault:
                raise DataError(f"mask {self.shown(path)} {mask.fault}")
            if union is None:
                union = np.zeros(mask.lesion.shape, dtype=bool)
            if mask.lesion.shape != union.shape:
                raise DataError(self.wrong_size(path, mask.lesion.shape, union.shape))
            union |= mask.lesion
        assert union is not None
        return union

    def wrong_size(self, path: Path, mask: tuple[int, ...], image: tuple[int, ...]) -> str:
        """Message for a mask whose shape (H, W) is not the image's."""
        return (
            f"mask {self.shown(path)} is {mask[1]}x{mask[0]} but its image is {image[1]}x{image[0]}: "
            "repair or remove this pair"
        )

    @contextmanager
    def _anonymous_errors(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            if self.private:
                raise DataError(f"a file of {self.id} cannot be read (missing, corrupt or truncated)") from None
            raise

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        if self.box is None:
            return picture
        top, left, height, width = self.box
        return picture[top : top + height, left : left + width]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file of a data set.

    Attributes:
        kind: short name for counting problems, such as ``image without mask``
        path: the file
        message: what is wrong and what to do, in one line
        image: id of the sample that it concerns, if any
        wrong: whether the data must not be trained on; otherwise it is only a note
    """

    kind: str
    path: Path
    message: str
    image: str | None = None
    wrong: bool = True


def passed_over(passed: PassedOver, root: Path) -> list[Problem]:
    """One note about what a search in a data folder has skipped; empty for nothing."""
    message = f"{passed.told()} in {root}"
    return [Problem("skipped", root, message, wrong=False)] if passed.total() else []


class Source(ABC):
    """A data-set layout. A subclass reads one layout; its ``init_args`` in YAML are its options."""

    name: str = "source"

    def default_root(self) -> Path | None:
        """Folder to use when none is given, if the source has a default."""
        return None

    def prepare(self, root: Path) -> None:
        """Make the data available under ``root`` (once per machine). The default only checks that the folder exists.

        Raises:
            DataError: ``root`` is not a folder
        """
        if not root.is_dir():
            raise DataError(
                f"no data folder at {root}: set --data.root or BUSI_ROOT (`bustseg data phantom DEST` makes one)"
            )

    @abstractmethod
    def scan(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        """List the samples under ``root`` in natural order of ids, and the files that do not fit, without decoding.

        Raises:
            DataError: the folder does not hold this layout at all
        """

    def survey(self, root: Path) -> tuple[list[Sample], list[Problem]]:
        """:meth:`scan`, plus checks that apply to every layout: one id per image, and one image per id.

        Splits, caches and tables refer to images by id; two images with one id could be in train and test at once.

        Raises:
            DataError: as :meth:`scan`
        """
        samples, problems = self.scan(root)
        return samples, [*problems, *_shared_ids(samples), *_shared_files(samples), *_unread_pages(samples)]

    def read(self, root: Path) -> list[Sample]:
        """List the samples under ``root``, in natural order of their ids, without decoding any image.

        Images that a source leaves out on purpose are reported once on standard error.

        Raises:
            DataError: the folder does not hold this layout, a file in it does not fit, or two images share an id
        """
        samples, problems = self.survey(root)
        for problem in problems:
            if problem.wrong:
                raise DataError(problem.message)
        if problems:
            rest = f" (and {len(problems) - 1} more: `bustseg data check` lists all)" if len(problems) > 1 else ""
            tell_once(f"{self.name}: {problems[0].message}{rest}")
        return samples


def _shared_ids(samples: Sequence[Sample]) -> list[Problem]:
    first: dict[str, Sample] = {}
    problems = []
    for sample in samples:
        other = first.setdefault(sample.id, sample)
        if other is not sample:
            both = f"{other.shown(other.image)} and {sample.shown(sample.image)}"
            message = (
                f"{both} have the same id, {sample.id!r}, which must be unique in splits and tables: rename one of them"
            )
            problems.append(Problem("two images of one id", sample.public(sample.image), message, sample.id))
    return problems


def _shared_files(samples: Sequence[Sample]) -> list[Problem]:
    first: dict[tuple[str, int], Sample] = {}
    problems = []
    for sample in samples:
        other = first.setdefault((os.path.realpath(sample.image), sample.frame), sample)
        if other.id != sample.id:
            message = (
                f"{other.id!r} and {sample.id!r} are the same file, {sample.shown(sample.image)}, which could be in "
                "train and test at once: name its folder once, or remove the link"
            )
            problems.append(Problem("one file as two images", sample.public(sample.image), message, sample.id))
    owners: dict[Path, str] = {}
    for sample in samples:
        for mask in sample.masks:
            if (owner := owners.setdefault(mask, sample.id)) != sample.id:
                message = (
                    f"{owner!r} and {sample.id!r} have the same mask, {sample.shown(mask)}: rename one of the images"
                )
                problems.append(Problem("one mask of two images", sample.public(mask), message, sample.id))
    return problems


def _unread_pages(samples: Sequence[Sample]) -> list[Problem]:
    read = Counter(sample.image for sample in samples)
    problems = []
    for path, number in read.items():
        try:
            pages = count_pages(path)
        except DataError:  # reading it will report the error
            continue
        if pages > number:
            message = f"{path} holds {pages} images, of which {number} is read: save each as a separate file"
            problems.append(Problem("left out: further pages", path, message, path.stem, wrong=False))
    return problems


def values_by_name(names: Iterable[str], values: Iterable[str], table: Path, private: bool = False) -> dict[str, str]:
    """Value of each name from two columns of a table, which may repeat a row but not contradict itself.

    Args:
        table: the table's file, for messages
        private: whether names may identify the patient, so that messages give row numbers instead

    Raises:
        DataError: a name has two values
    """
    found: dict[str, str] = {}
    for line, (name, value) in enumerate(zip(names, values, strict=True), 2):
        if found.setdefault(name, value) != value:
            shown = "the image" if private else repr(name)
            raise DataError(
                f"line {line} of {table} gives {value!r} for {shown}, but an earlier line gives {found[name]!r}: keep "
                "one"
            )
    return found


def further_columns(table: pd.DataFrame, names: Iterable[str], known: Iterable[str]) -> dict[str, dict[str, str]]:
    """Further non-empty values of a table, by name and column.

    Args:
        names: name of each row
        known: columns that the source reads itself
    """
    further = [column for column in table.columns if column and column not in set(known)]
    rows = (dict(zip(further, map(str.strip, row), strict=True)) for row in table[further].itertuples(index=False))
    return {
        name: {column: value for column, value in row.items() if value} for name, row in zip(names, rows, strict=True)
    }


def read_table(csv: Path, what: str) -> pd.DataFrame:
    """CSV file (commas, semicolons or tabs) or first sheet of an .xlsx file as text, with lower-case column names.

    Raises:
        DataError: the file cannot be read; ``what`` names it in the message
    """
    import pandas as pd

    try:
        bounds.check_table(csv)
        if csv.suffix.lower() == ".xlsx":
            frame = pd.read_excel(csv, dtype=str, keep_default_na=False)
            frame.columns = pd.Index([str(column).strip().lower() for column in frame.columns])
            return frame
        with csv.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        frame = pd.read_csv(csv, dtype=str, sep=separator, encoding="utf-8-sig", keep_default_na=False)
    except ImportError as error:
        raise DataError(f"reading {csv} needs openpyxl: pip install openpyxl, or save the table as CSV") from error
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise DataError(f"cannot read {what} {csv} as CSV: {' '.join(str(error).split())}") from error
    frame.columns = pd.Index([str(column).strip().lower() for column in frame.columns])
    return frame
