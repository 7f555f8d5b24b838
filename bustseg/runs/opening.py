"""Opens the MLflow store in use and checks it before anything is computed."""

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
"""Databases that MLflow uses without an MLflow server; SQLite's is a local file."""

_opened: set[str] = set()


def was_opened(uri: str) -> bool:
    """Whether this process could write to the store before, so that a failure now is only temporary."""
    return uri in _opened


def open_store(uri: str, write: bool = False, send: bool = True) -> Store:
    """Check that a store can be used, and create a local one if it does not exist.

    Args:
        uri: from :func:`tracking_uri`
        write: whether runs will be written, so that a read-only store is refused
        send: whether to send first what earlier commands could not send to it

    Raises:
        TrackingError: no server answers, it refuses the login, the database belongs to another MLflow version, cannot
            be written or is locked, or MLflow does not know the scheme
    """
    store = Store(uri)
    scheme = urlparse(uri).scheme
    if HIDDEN in uri:
        raise TrackingError(
            f"{uri} was stored without its password or token: set MLFLOW_TRACKING_URI to the complete address, or give "
            "it with --tracking.uri"
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
        with contextlib.suppress(OSError):  # a read-only folder
            settle(store)
    return store


def _connect_once(uri: str) -> None:
    """Raise the driver's error at once if a database does not answer: MLflow would try for a hundred seconds."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    engine.connect().close()


def _open_database(store: Store, path: Path, write: bool) -> None:
    if path.is_file() and path.stat().st_size:
        _check_database(path, write)
        store.client()  # compares the schema's version with MLflow's
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
    """Raise SQLite's error now and not in the middle of a run, if a database cannot be read or written."""
    with connected(path, write) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if write:
            if not os.access(path.parent, os.W_OK):  # SQLite writes its journal there
                raise sqlite3.OperationalError("attempt to write a readonly database")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
