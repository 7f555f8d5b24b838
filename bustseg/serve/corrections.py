"""Accepted, corrected and rejected masks, in a folder that training can read directly.

::

    corrections/
      images/NAME.png, masks/NAME.png   read by `Folders`: the newest mask of each image
      labels.csv                        image, label, patient, annotator, verdict, model and time
      history/NAME/0001_before.png      the network's and the annotator's mask of every save
      history/NAME/0001_after.png
      corrections.jsonl                 a record of every save, in order

``NAME`` is a digest of the image's pixels: an image that is corrected again keeps its name, whatever its file name, and
file names of clients are not stored.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from filelock import FileLock

from bustseg import __version__
from bustseg.data.images import read_grey
from bustseg.deploy.output import png
from bustseg.disclaimer import NOTICE
from bustseg.errors import DataError, UserError
from bustseg.whole import write_whole

LABELS_FILE = "labels.csv"
LOG = "corrections.jsonl"
COLUMNS = ("image", "label", "patient", "verdict", "who", "when", "model", "threshold", "changed_px")
REJECTED = "rejected"


def image_name(image: np.ndarray) -> str:
    """Name of an image, grey ``uint8`` (H, W): 16 hex digits of its pixels' digest."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def plain_text(text: str) -> str:
    """Text in one line, without characters that are not drawn, or that turn the direction of what follows."""
    kept = "".join(" " if one.isspace() else one for one in text if one.isspace() or not category(one).startswith("C"))
    return " ".join(kept.split())


def no_formula(text: str) -> str:
    """Text of a table's cell; one that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


class Corrections:
    """A folder of corrections; several processes may write to it.

    Args:
        folder: created if it does not exist

    Raises:
        UserError: it cannot be written
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: dict[str, dict[str, Any]] = {}
        self._read = 0
        self._own = threading.Lock()
        try:
            for name in ("images", "masks", "history"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".corrections.lock")
            with self._lock:
                self._repair()
        except OSError as error:
            raise UserError(f"cannot save corrections in {folder}: {error.strerror}") from error

    def _repair(self) -> None:
        """Remove incomplete saves after a crash: an image without its mask, or a mask without its image."""
        images, masks = ({path.name for path in (self.folder / name).glob("*.png")} for name in ("images", "masks"))
        for name in images ^ masks:
            for part in ("images", "masks"):
                (self.folder / part / name).unlink(missing_ok=True)

    def _refresh(self) -> None:
        """Read what any process has appended to the log; an incomplete last line is left for later."""
        try:
            with (self.folder / LOG).open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    try:
                        record = json.loads(line)
                        self._last[record["image"]] = record
                    except (ValueError, KeyError, TypeError):
                        continue
        except FileNotFoundError:
            return

    def last(self, image: str) -> dict[str, Any] | None:
        """The newest record of an image; None if it has none."""
        with self._own:
            self._refresh()
            return self._last.get(image)

    def mask(self, record: Mapping[str, Any]) -> np.ndarray:
        """The annotator's mask of a record, ``uint8`` of 0 and 1 (H, W)."""
        return (read_grey(self.folder / record["after"]) > 127).astype(np.uint8)

    def save(
        self,
        image: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        verdict: str,
        model: Mapping[str, str],
        threshold: float,
        who: str = "",
        label: str = "unknown",
        patient: str = "",
    ) -> dict[str, Any]:
        """Save an annotator's verdict and mask of an image; they are on disk when this returns.

        Args:
            image: grey ``uint8`` (H, W)
            before: the network's mask, 0 and 1 (H, W)
            after: the annotator's mask
            verdict: accepted, corrected or rejected; a rejected image is not trained on
            model: name and digest
            threshold: threshold of the network's mask
            who: the annotator, as free text; control and formatting characters are removed
            label: class of the image; an image without a lesion is normal
            patient: key that images of one patient share; empty if unknown

        Returns:
            the record

        Raises:
            DataError: a mask does not fit the image
        """
        if not image.shape == before.shape == after.shape:
            raise DataError(
                f"the mask is {after.shape[1]}x{after.shape[0]}, the image {image.shape[1]}x{image.shape[0]}"
            )
        name = image_name(image)
        if label == "unknown" and not after.any():
            label = "normal"
        with self._own, self._lock:
            self._refresh()
            files = self._keep_masks(name, before, after)
            record = {
                "image": name,
                "verdict": verdict,
                "who": plain_text(who),
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "label": label,
                "patient": patient,
                "model": dict(model),
                "threshold": threshold,
                "changed_px": int((before != after).sum()),
                **files,
                "version": __version__,
                "notice": NOTICE,
            }
            if verdict == REJECTED:
                for part in ("images", "masks"):
                    (self.folder / part / f"{name}.png").unlink(missing_ok=True)
            else:
                write_whole(self.folder / "masks" / f"{name}.png", png(after * np.uint8(255)))
                write_whole(self.folder / "images" / f"{name}.png", png(image))
            self._write_labels(record)
            self._append(record)
            self._refresh()
        return record

    def _keep_masks(self, name: str, before: np.ndarray, after: np.ndarray) -> dict[str, str]:
        """Write both masks into the image's history; returns their names in the folder."""
        number = 1 + len(list((self.folder / "history" / name).glob("*_after.png")))
        files = {}
        for key, mask in (("before", before), ("after", after)):
            files[key] = f"history/{name}/{number:04d}_{key}.png"
            write_whole(self.folder / files[key], png(mask * np.uint8(255)))
        return files

    def _append(self, record: dict[str, Any]) -> None:
        """Append a record to the log, and sync it to disk."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self._mend_log()
        with (self.folder / LOG).open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _mend_log(self) -> None:
        """Terminate an incomplete line after a crash, so that the next record starts on a new line."""
        path = self.folder / LOG
        if path.is_file() and path.stat().st_size > self._read:
            with path.open("ab") as file:
                file.write(b"\n")
            self._refresh()

    def _write_labels(self, record: Mapping[str, Any]) -> None:
        path, rows = self.folder / LABELS_FILE, {}
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = {row["image"]: row for row in csv.DictReader(file)}
        rows.pop(record["image"], None)
        if record["verdict"] != REJECTED:
            model = record["model"]["digest"][:12]
            rows[record["image"]] = {**record, "who": no_formula(record["who"]), "model": model}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_whole(path, text.getvalue().encode())
