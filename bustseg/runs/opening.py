"""Opens the MLflow store in use: whether it can be used is known before anything is computed for it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock

from bustseg.errors import TrackingError
from bustseg.redact import HIDDEN
from bustseg.runs.spool import settle
from bustseg.runs.store import Store, connected, explained, mend_moved, of_databricks

_DATABASES = ("postgresql", "mysql", "mssql")
"""Databases that MLflow reaches without a server of its own; sqlite's is a file here."""

_opened: set[str] = set()


def was_opened(uri: str) -> bool:
    """Whether this process could write to the store before, so that it is away for a while if it cannot now."""
    return uri in _opened


def open_store(uri: str, write: bool = False, send: bool = True) -> Store:
    """Check that a store can be used, and create a local one that is not there yet.

    Args:
        uri: as :func:`tracking_uri` gives it
        write: whether runs are to be written, so that a store which can only be read is refused
        send: whether what earlier commands could not send to it is sent first

    Raises:
        TrackingError: no server answers, it refuses the login, the database is of another MLflow, cannot be written
            or is locked, or MLflow does not know the scheme
    """
    store = Store(uri)
    scheme = urlparse(uri).scheme
    if HIDDEN in uri:
        raise TrackingError(
            f"{uri} was stored without its password or token: set MLFLOW_TRACKING_URI to the whole address, or give it "
            "with --tracking.uri"
        )
    if scheme == "file" or (scheme == "" and not of_databricks(uri)):
        raise TrackingError(f"MLflow no longer writes file stores such as {uri}: use sqlite:///mlruns/mlflow.db")
    with explained(store):
        if store.database is not None:
            _open_database(store, store.database, write)
        else:
            if scheme.partition("+")[0] in _DATABASES:
                _connect_once(uri)
            store.client().search_experiments(max_results=1)
    if write:
        _opened.add(uri)
    if send and (store.folder / "spool").is_dir():
        with contextlib.suppress(OSError):  # a folder that can only be read
            settle(store)
    return store


def _connect_once(uri: str) -> None:
    """Raise the driver's error at once where a database does not answer: MLflow would try for a hundred seconds."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    engine.connect().close()


def _open_database(store: Store, path: Path, write: bool) -> None:
    if path.is_file() and path.stat().st_size:
        _check_database(path, write)
        store.client()  # which compares the schema's version with its own
        if write:
            mend_moved(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    lock.touch()  # where no file can be made, the lock would be waited for without end
    # processes that start together would run the schema's migrations against each other
    with FileLock(lock):
        store.client().search_experiments(max_results=1)


def _check_database(path: Path, write: bool) -> None:
    """Raise sqlite's own error now and not in the middle of a run, when a database cannot be read or written."""
    with connected(path, write) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if write:
            if not os.access(path.parent, os.W_OK):  # where sqlite puts its journal
                raise sqlite3.OperationalError("attempt to write a readonly database")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
