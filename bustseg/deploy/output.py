"""An output folder that survives a kill at any moment: files are complete or absent, and a row follows its files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock, Timeout

from bustseg.data.inputs import TABLE, Names
from bustseg.disclaimer import WORDS
from bustseg.errors import UserError, disk_is_full
from bustseg.whole import remove_unfinished, whole, write_whole

HEAD = "predictions.json"

ORDER = "look_first.csv"
"""The images in the order in which reviewing them gains most, see :func:`worth_of_a_look`."""

GALLERY = "gallery.html"
"""Page of all images, see :mod:`bustseg.reports.gallery`."""

ORDER_COLUMNS = ("rank", "image", "frame", "mask", "expected_worth", "confidence", "look_at_this", "reason", "notice")

COLUMNS = {
    "image": "file; for DICOM a pseudonym",
    "frame": "position in a file of several images, from 0",
    "mask": "file of the mask in this folder",
    "width": "pixels of the input",
    "height": "pixels of the input",
    "area_px": "pixels of the mask",
    "area_mm2": "area of the mask where the file says how large a pixel is",
    "components": "8-connected parts of the mask",
    "largest_component_px": "pixels of the largest of them",
    "presence": "calibrated probability that there is a lesion; empty when the model is not calibrated for it",
    "lesion_probability": "highest probability of a pixel",
    "confidence": "calibrated; empty when the model is not calibrated",
    "threshold": "probability above which a pixel is in the mask",
    "look_at_this": "1 when a person should look at it",
    "reason": "why, separated by semicolons",
    "model": "first 12 digits of the model's digest",
    "milliseconds": "from file to mask; the network's time is shared equally in its batch",
    "error": "why there is no prediction",
    "notice": WORDS,
}
"""Columns of the table and their meaning."""

FOLDERS = {
    "masks": "masks/{}.png",
    "overlays": "overlays/{}.png",
    "probabilities": "probabilities/{}.png",
    "segmentations": "segmentations/{}.dcm",
}
"""Files of one image by kind; ``{}`` is its name (for a segmentation, that of the DICOM file)."""

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_EXTRAS = ("overlays", "probabilities")
_IDENTITY = ("model", "threshold", "postprocess", "calibration", "training_images", "image_size")


def worth_of_a_look(confidence: float) -> float:
    """Expected gain from correcting an image: the Dice that its mask lacks according to its calibrated confidence."""
    return 1 - confidence


def png(image: np.ndarray) -> bytes:
    """PNG of ``uint8`` or ``uint16``, (H, W), or (H, W, 3) in RGB; fast, with light compression."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes()


class Output:
    """The folder of a prediction, opened to continue with its content or to start again.

    Args:
        folder: created if it does not exist
        head: content of ``predictions.json``; existing predictions must have the same model and settings
        overwrite: remove existing predictions

    Attributes:
        done: number of rows that are already there
        looked_at: number of them that a person should look at
        names: names of their files

    Raises:
        UserError: ``folder`` is a file, cannot be written, is in use, or holds predictions with another model or other
            settings
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder, self.head = folder, dict(head)
        self.names = Names()
        self.done = self.looked_at = 0
        self._finished: set[int] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".predictions.lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another process is writing predictions into {folder}") from None
        except OSError as error:
            if disk_is_full(error):
                raise
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
        try:
            if overwrite:
                self._drop()
            self._check()
            self._repair()
            self._write_head()
            self._file = os.open(folder / TABLE, os.O_WRONLY | os.O_APPEND)
        except BaseException:
            self._lock.release()
            raise

    def _check(self) -> None:
        path = self.folder / HEAD
        if not path.is_file():
            if (self.folder / TABLE).exists():
                raise UserError(
                    f"{self.folder} has a {TABLE} without its {HEAD}: name another --out, or give --overwrite to "
                    "remove it"
                )
            return
        try:
            known = json.loads(path.read_text())
            own = json.loads(json.dumps(self.head))
            for name in _IDENTITY:
                if known[name] != own[name]:
                    raise UserError(
                        f"{self.folder} holds predictions with another {name} ({_short(known[name])}, now "
                        f"{_short(own[name])}): name another --out, or give --overwrite to replace them"
                    )
            for name in _EXTRAS:
                if own[name] and not known[name]:
                    raise UserError(
                        f"{self.folder} holds predictions without {name}: name another --out, or give --overwrite to "
                        "replace them"
                    )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read: name another --out, or give --overwrite to replace the predictions"
            ) from error

    def _drop(self) -> None:
        """Remove only the files that the table names: the folder may hold the user's own files."""
        for row in self._rows():
            name = row["mask"].removeprefix("masks/").removesuffix(".png")
            for file in [
                *(self.file(kind, name) for kind in FOLDERS if name),
                self.file("segmentations", row["image"]),
            ]:
                if file.resolve().is_relative_to(self.folder.resolve()):
                    file.unlink(missing_ok=True)
        for name in (TABLE, HEAD, ORDER, GALLERY):
            (self.folder / name).unlink(missing_ok=True)

    def file(self, kind: str, name: str) -> Path:
        """Path of a file of one of the :data:`FOLDERS`, whether or not it was written."""
        return self.folder / FOLDERS[kind].format(name)

    def _rows(self) -> Iterator[dict[str, str]]:
        """Complete rows of the existing table, without a truncated last line."""
        path = self.folder / TABLE
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(line for line in file if line.endswith("\n") and "\0" not in line)
            while True:
                try:
                    values = next(rows)
                except StopIteration:
                    return
                except csv.Error:  # a field longer than any that is written
                    continue
                if len(values) == len(COLUMNS) and values != list(COLUMNS):
                    yield dict(zip(COLUMNS, values, strict=True))

    def _repair(self) -> None:
        """Keep the rows whose mask exists, so that all others are done again; errors may have been fixed too."""
        remove_unfinished(self.folder)
        with whole(self.folder / TABLE) as temporary, temporary.open("wb") as file:
            file.write(_line(list(COLUMNS)))
            for row in self._rows():
                key = (row["image"], row["frame"])
                if row["error"] or hash(key) in self._finished or not _is_whole(self.folder / row["mask"]):
                    continue
                file.write(_line(list(row.values())))
                self._finished.add(hash(key))
                self.names.take(row["mask"].removeprefix("masks/").removesuffix(".png"), key)
                self.done += 1
                self.looked_at += row["look_at_this"] == "1"

    def _write_head(self) -> None:
        content = json.dumps(self.head, indent=1, ensure_ascii=False, default=str).encode(errors="surrogateescape")
        write_whole(self.folder / HEAD, content + b"\n")

    def has(self, key: tuple[str, str]) -> bool:
        """Whether file and frame are done."""
        return hash(key) in self._finished

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; its files must exist. A row that does not fit on the disk leaves nothing behind."""
        told = {"notice": WORDS, **row}
        line = _line([told.get(column, "") for column in COLUMNS])
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def close(self, summary: Mapping[str, Any]) -> None:
        """Finish, and store the overall results under ``summary`` of the head."""
        try:
            self._write_order()
            # imported here, since reading a folder needs no templates
            from bustseg.reports.gallery import gallery_page

            page = gallery_page(self._rows(), self.folder, self.head)
            write_whole(self.folder / GALLERY, page.encode(errors="replace"))
            self.head["summary"] = dict(summary)
            self._write_head()
        finally:
            self.release()

    def _write_order(self) -> None:
        """Write :data:`ORDER` for all rows, unless there are no calibrated confidences."""
        rows = [row for row in self._rows() if row["confidence"]]
        if not rows:
            (self.folder / ORDER).unlink(missing_ok=True)
            return
        # the sort is stable, so equal rows stay in the order of the input
        rows.sort(key=lambda row: (-worth_of_a_look(float(row["confidence"])), row["look_at_this"] != "1"))
        lines = [_line(list(ORDER_COLUMNS))]
        for rank, row in enumerate(rows, 1):
            worth = f"{worth_of_a_look(float(row['confidence'])):.4f}"
            given = {**row, "rank": rank, "expected_worth": worth}
            lines.append(_line([given[column] for column in ORDER_COLUMNS]))
        write_whole(self.folder / ORDER, b"".join(lines))

    def release(self) -> None:
        """Release the folder as it is; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()


def _line(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode(errors="surrogateescape")


def _is_whole(path: Path) -> bool:
    """Whether a PNG is complete: after a crash of the machine a file may be empty."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "digest" in value:
        return f"{value.get('name', '')} {str(value['digest'])[:12]}".strip()
    return str(value)
