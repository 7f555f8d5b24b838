"""Runs that are being made: a note on the disk, so that a process killed meanwhile leaves none that seems to go on.

A store chooses a run's id, so that a process can write down whose a run is only once it is there. Until then a note
holds the tag that the run is made with.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bustseg.runs.owner import is_dead, this_process
from bustseg.runs.store import Store

MAKING_TAG = "bustseg.making"
"""Tag of a run with the name of the note that its process kept while it was made."""

_ENDING = ".making"
_WRITTEN_WITHIN = 60.0
"""Seconds after which a note that is not whole never will be."""


@contextmanager
def noted(store: Store) -> Iterator[str]:
    """Keep a note while a run is made in a store; yields the value of :data:`MAKING_TAG` to make it with.

    The note goes when the run is there and has a session of its own, or could not be made.
    """
    name = uuid.uuid4().hex
    note = store.folder / "spool" / f"{name}{_ENDING}"
    with contextlib.suppress(OSError):  # a disk that takes no note has a run's session refused as well, and says so
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"owner": this_process(), "store": store.shown}), encoding="utf-8")
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def end_half_made(store: Store) -> list[str]:
    """Mark runs as KILLED whose process was killed while it made them; returns their ids.

    Notes of processes that live, or of which nothing is known, stay, as do those of another store, or of one that does
    not answer: the next command tries again.
    """
    notes = sorted((store.folder / "spool").glob(f"*{_ENDING}"))
    if not notes:  # as nearly always, and MLflow takes long to import
        return []
    from mlflow.exceptions import MlflowException

    ended: list[str] = []
    with contextlib.suppress(MlflowException, OSError):
        for note in notes:
            content = _read(note)
            if content is None or content["store"] != store.shown or not is_dead(content["owner"], locked=True):
                continue
            client = store.client()
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            for run in client.search_runs(experiments, f"tags.`{MAKING_TAG}` = '{note.stem}'"):
                if run.info.status == "RUNNING" and not (store.folder / "spool" / run.info.run_id).is_dir():
                    client.set_terminated(run.info.run_id, "KILLED", run.info.start_time)
                    ended.append(run.info.run_id)
            note.unlink(missing_ok=True)
    return ended


def _read(note: Path) -> dict[str, Any] | None:
    """What a note holds; None for one that is being written, or was cut off, which came before its run."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return {"owner": dict(content["owner"]), "store": str(content["store"])}
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            if time.time() - note.stat().st_mtime > _WRITTEN_WITHIN:
                note.unlink()
        return None
