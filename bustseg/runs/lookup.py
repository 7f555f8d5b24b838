"""Runs by their id, in the MLflow store in use or in folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bustseg.errors import TrackingError, UserError
from bustseg.runs.entries import SERVER_ID
from bustseg.runs.opening import open_store
from bustseg.runs.record import RUN_FILE, Record
from bustseg.runs.store import RUNS_DIR, Store, one_line, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def split_run(text: str) -> tuple[str, str]:
    """The run id in ``RUN_ID`` or ``runs:/RUN_ID/path``, and the path within the run."""
    run_id, _, inner = text.removeprefix("runs:/").partition("/")
    return run_id, inner


def local_runs() -> Path:
    """Folder of the runs that are in no store."""
    return RUNS_DIR.resolve() / "local"


def local_run(run_id: str) -> Record | None:
    """The record of a run that is in no store; None when there is no such run."""
    return Record.read(local_runs() / run_id) if is_run_id(run_id) else None


def server_id(store: Store, run_id: str) -> str:
    """A run's id in its store, which differs if the run began while the store was unreachable."""
    try:
        return (store.folder / "remote" / run_id / SERVER_ID).read_text().strip()
    except OSError:
        return run_id


def find_run(run_id: str) -> Run:
    """A run by its id.

    Raises:
        UserError: there is no such run, or the store cannot be reached
    """
    from mlflow.exceptions import MlflowException

    if (record := local_run(run_id)) is not None:
        return record.to_run(local_runs() / run_id)
    store = open_store(tracking_uri())
    try:
        return store.client().get_run(server_id(store, run_id))
    except MlflowException as error:
        raise UserError(f"no run {run_id} in {store.shown}: {one_line(error)}") from error


def run_file(run_id: str, inner: str) -> Path:
    """Path of a file of a run: the file itself where it is on this machine, else a downloaded copy.

    A store on a server is tried first, since another machine may have updated the file; if it does not answer, this
    machine's copy is used.

    Raises:
        UserError: no such run, or it has no such file
    """
    if local_run(run_id) is not None:
        path = local_runs() / run_id / inner
        if path.is_file():
            return path
        raise UserError(f"run {run_id} has no {inner}: nothing at {path}")
    kept = Store(tracking_uri()).folder / "remote" / run_id / inner
    try:
        return _file_in_store(run_id, inner)
    except UserError:
        if kept.is_file():
            return kept
        raise


def _file_in_store(run_id: str, inner: str) -> Path:
    import mlflow
    from mlflow.exceptions import MlflowException

    store = open_store(tracking_uri())
    try:
        run = store.client().get_run(server_id(store, run_id))
        folder = store.artifact_folder(run)
        if folder is not None and (folder / inner).is_file():
            return folder / inner
        if folder is not None:
            raise FileNotFoundError(f"nothing at {folder / inner}")
        uri = f"runs:/{run.info.run_id}/{inner}"
        return Path(mlflow.artifacts.download_artifacts(uri, tracking_uri=store.uri))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} has no {inner} in {store.shown}: {one_line(error)}") from error


def latest_run() -> str:
    """Id of the newest run that was trained and did not fail.

    Raises:
        UserError: there is none, or the store cannot be reached
    """
    local = max(_trained_local_runs(), default=None)
    store = Store(tracking_uri())
    if local is not None and store.database is not None and not store.database.is_file():
        return local[1]  # opening the store would create one
    try:
        found = _latest_in(open_store(store.uri))
    except TrackingError:
        if local is None:
            raise
        found = None
    newest = max((one for one in (local, found) if one is not None), default=None)
    if newest is None:
        raise UserError(
            f"no trained run in {store.shown}: train one with `bustseg fit --config configs/quickstart.yaml`"
        )
    return newest[1]


def _latest_in(store: Store) -> tuple[int, str] | None:
    client = store.client()
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        filter_string="metrics.`val/loss` > -1e30 and attributes.status != 'FAILED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return (runs[0].info.start_time, runs[0].info.run_id) if runs else None


def _trained_local_runs() -> Iterator[tuple[int, str]]:
    """Start and id of the runs in no store that were trained and did not fail."""
    for path in local_runs().glob(f"*/{RUN_FILE}"):
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if "val/loss" in values["metrics"] and values["status"] != "FAILED":
                yield int(values["start_time"]), path.parent.name
        except (OSError, ValueError, KeyError):
            continue
