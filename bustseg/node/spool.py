"""The node's queue on disk: a received image is kept until it is answered, even if a process is killed in between.

::

    spool/
      queue/ID.dcm             received; on disk before its sender gets an answer
      results/ID/*.dcm         its results, not yet accepted by the receiver
      done/ID.json             answered: when, and with what; the image itself is deleted
      failed/ID.dcm, ID.json   could not be read, and why

``ID`` is a digest of the file's SOP instance and content: an image that is sent again has the same id.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bustseg.errors import UserError, disk_is_full
from bustseg.whole import remove_unfinished, write_whole

FOLDERS = ("queue", "results", "done", "failed")


class Full(Exception):
    """The disk or the queue is full."""


class Spool:
    """The folder above, used by one process.

    Args:
        folder: created if it does not exist, accessible only to this user
        limit: most images that may wait

    Raises:
        UserError: it cannot be written, or another node uses it
    """

    def __init__(self, folder: Path, limit: int = 10_000) -> None:
        self.folder, self.limit = folder, limit
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in FOLDERS:
                (folder / name).mkdir(exist_ok=True, mode=0o700)
            self._lock = FileLock(folder / ".node.lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another node uses {folder}: name another --spool") from None
        except OSError as error:
            raise UserError(f"cannot keep a queue in {folder}: {error.strerror}") from error

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    @staticmethod
    def id_of(instance: str, content: bytes) -> str:
        """Name of an image: 16 hex digits of its SOP instance and 16 of its content."""
        return f"{hashlib.sha256(instance.encode()).hexdigest()[:16]}-{hashlib.sha256(content).hexdigest()[:16]}"

    def receive(self, instance: str, content: bytes) -> str:
        """Store an image; it is on disk when this returns. A known image is not stored twice.

        Returns:
            its id

        Raises:
            Full: there is no space
        """
        id = self.id_of(instance, content)
        if self.is_known(id):
            return id
        if self.waiting >= self.limit:
            raise Full
        path = self.folder / "queue" / f"{id}.dcm"
        try:
            write_whole(path, content, sync=True)
        except OSError as error:
            if disk_is_full(error):
                raise Full from None
            raise
        return id

    def is_known(self, id: str) -> bool:
        """Whether an image waits, was answered, or failed."""
        return any(
            (self.folder / folder / f"{id}{suffix}").is_file()
            for folder, suffix in (("queue", ".dcm"), ("done", ".json"), ("failed", ".json"))
        )

    @property
    def waiting(self) -> int:
        """Images that are not answered yet."""
        return len(self.pending())

    def pending(self) -> list[str]:
        """Ids of the images that are not answered yet, oldest first."""
        found = []
        with os.scandir(self.folder / "queue") as entries:
            for entry in entries:
                if entry.name.endswith(".dcm") and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # answered by another thread at this moment
                        found.append((entry.stat().st_mtime_ns, entry.name.removesuffix(".dcm")))
        return [id for _, id in sorted(found)]

    def source(self, id: str) -> Path:
        """File of an image that waits."""
        return self.folder / "queue" / f"{id}.dcm"

    def results(self, id: str) -> list[Path] | None:
        """Result files of an image, None until all of them exist."""
        folder = self.folder / "results" / id
        try:
            return [folder / name for name in json.loads((folder / "whole.json").read_text())["files"]]
        except FileNotFoundError:
            return None

    def keep_results(self, id: str, files: Mapping[str, bytes], said: Mapping[str, Any]) -> list[Path]:
        """Store the results of an image, and facts about them."""
        folder = self.folder / "results" / id
        folder.mkdir(exist_ok=True, mode=0o700)
        for name, content in files.items():
            write_whole(folder / name, content)
        # written last: without it the results are computed again
        write_whole(folder / "whole.json", json.dumps({"files": list(files), "said": dict(said)}).encode())
        return [folder / name for name in files]

    def finish(self, id: str) -> None:
        """Mark an image as done once the receiver has all its results, and delete its pixels."""
        folder = self.folder / "results" / id
        said = json.loads((folder / "whole.json").read_text())["said"]
        record = {**said, "answered": datetime.now(UTC).isoformat(timespec="seconds")}
        write_whole(self.folder / "done" / f"{id}.json", json.dumps(record, indent=1).encode() + b"\n")
        self.source(id).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def fail(self, id: str, reason: str) -> None:
        """Set aside an image that cannot be read."""
        record = {"reason": reason, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        write_whole(self.folder / "failed" / f"{id}.json", json.dumps(record).encode() + b"\n")
        os.replace(self.source(id), self.folder / "failed" / f"{id}.dcm")
        shutil.rmtree(self.folder / "results" / id, ignore_errors=True)

    def tidy(self) -> None:
        """Clean up after a kill: remove images that are done but still in the queue."""
        for id in self.pending():
            if (self.folder / "done" / f"{id}.json").is_file():
                self.source(id).unlink(missing_ok=True)
                shutil.rmtree(self.folder / "results" / id, ignore_errors=True)
        remove_unfinished(self.folder)
