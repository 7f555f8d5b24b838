"""Runs that are being created: a note on disk, so that a process killed meanwhile leaves no run that seems to continue.

The store chooses a run's id, so a process can record its owner only after the run exists. Until then a note holds the
tag with which the run is created.
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
"""Tag of a run with the name of the note that its process kept while creating it."""

_ENDING = ".making"
_WRITTEN_WITHIN = 60.0
"""Seconds after which an incomplete note will not be completed."""


@contextmanager
def noted(store: Store) -> Iterator[str]:
    """Keep a note while a run is created in a store; yields the value of :data:`MAKING_TAG` for it.

    The note is removed when the run exists and has a session, or could not be created.
    """
    name = uuid.uuid4().hex
    note = store.folder / "spool" / f"{name}{_ENDING}"
    # if the disk refuses the note, it refuses the run's session as well, which reports it
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"owner": this_process(), "store": store.shown}), encoding="utf-8")
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def end_half_made(store: Store) -> list[str]:
    """Mark runs as KILLED whose process was killed while it created them; returns their ids.

    Notes are kept if their process is alive or its state is unknown, and if their store is another one or does not
    answer: the next command tries again.
    """
    notes = sorted((store.folder / "spool").glob(f"*{_ENDING}"))
    if not notes:  # the usual case; importing MLflow takes long
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
    """Content of a note; None for one that is being written, or that was cut off before its run was created."""
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return {"owner": dict(content["owner"]), "store": str(content["store"])}
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            if time.time() - note.stat().st_mtime > _WRITTEN_WITHIN:
                note.unlink()
        return None
