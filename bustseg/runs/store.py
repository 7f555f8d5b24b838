"""The MLflow store in use: its address, whether it can be used, and the location of its files on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlparse

from bustseg.errors import TrackingError, disk_is_full
from bustseg.progress import error_console
from bustseg.redact import HIDDEN, redact

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUNS_DIR = Path("mlruns")
"""Folder of the local store: ``mlflow.db``, ``artifacts/``, and entries that wait for a server."""

REQUEST_SECONDS = 10
"""Timeout of a request to a server. A server that hangs costs this time once, see :mod:`bustseg.runs.sender`."""

# By default MLflow retries a request for minutes. Here retries come from the spool instead, so each request is made
# only once. setdefault keeps a user's choice.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
# MLflow prints a run's address with its password; bustseg prints its own line, see RunLogger.where
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("PGCONNECT_TIMEOUT", str(REQUEST_SECONDS))  # read by every client of PostgreSQL

for _noisy in (
    "alembic",
    "mlflow.tracking._tracking_service",
    "mlflow.utils.databricks_utils",
    "lightning.pytorch.loggers.mlflow",
):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# it logs the full traceback of every error, which is reported in one line here
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Store:
    """An MLflow store.

    Attributes:
        uri: its tracking URI, with credentials if it has any
    """

    uri: str

    @property
    def shown(self) -> str:
        """The URI without credentials, for printing and storing."""
        return redact(self.uri)

    @property
    def database(self) -> Path | None:
        """The database file of a local store."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @property
    def folder(self) -> Path:
        """Folder for the store's data on this machine: next to its database, else ``mlruns`` in the working folder."""
        return (RUNS_DIR if self.database is None else self.database.parent).resolve()

    @property
    def artifact_location(self) -> str | None:
        """Location of the files of new experiments; None where the server decides.

        It is absolute, since the UI may be started from another folder, and is updated when the store has moved.
        """
        scheme = urlparse(self.uri).scheme
        served = scheme in ("http", "https") or of_databricks(self.uri)
        return None if served else (self.folder / "artifacts").as_uri()

    def client(self) -> MlflowClient:
        """MLflow's client of this store.

        Raises:
            TrackingError: the store cannot be used
        """
        from mlflow.tracking import MlflowClient

        with explained(self):
            return MlflowClient(self.uri)

    def artifact_folder(self, run: Run) -> Path | None:
        """Folder of a run's files, or None when it is not on this machine.

        The database of a moved store still has the old location, so the folder next to the database is tried first.
        """
        recorded = local_path(run.info.artifact_uri)
        if recorded is None or self.database is None:
            return recorded
        beside = self.folder / "artifacts" / run.info.run_id / "artifacts"
        return beside if beside.is_dir() else recorded


def tracking_uri(uri: str | None = None) -> str:
    """The store in use: ``uri``, else ``MLFLOW_TRACKING_URI``, else the local ``sqlite:///mlruns/mlflow.db``.

    The path of a SQLite store is made absolute, since MLflow caches connections by name across changes of the working
    folder.
    """
    own = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and own and HIDDEN in uri and redact(own) == uri:
        uri = own  # stored without its credentials, which are in the environment
    uri = uri or own or f"sqlite:///{RUNS_DIR / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def of_databricks(uri: str) -> bool:
    """Whether a store is one of Databricks'."""
    return uri in ("databricks", "databricks-uc", "uc") or urlparse(uri).scheme in ("databricks", "databricks-uc", "uc")


@contextmanager
def connected(path: Path, write: bool) -> Iterator[sqlite3.Connection]:
    """A connection to a database file without MLflow, closed at the end.

    Readers also open it for writing where permitted: what a killed process has left in SQLite's journal must be rolled
    back before anything can be read.
    """
    may_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    mode = "rw" if write or may_write else "ro"
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=5, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def explained(store: Store) -> Iterator[None]:
    """Turn any error of a store into one line that says what to do.

    Raises:
        TrackingError: instead of any other exception
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # drivers, plugins and MLflow itself raise types of their own
        raise TrackingError(_explanation(store, error)) from error


def _explanation(store: Store, error: Exception) -> str:
    text, shown = str(error), store.shown
    if found := re.search(r"found version (\w+), but expected (\w+)", text):
        if _is_known_revision(found[1]):
            return (
                f"the database {shown} belongs to an older MLflow: make a copy of it, then run `mlflow db upgrade "
                f"{shown}`"
            )
        return f"the database {shown} belongs to a newer MLflow: pip install --upgrade mlflow, or name another store"
    if "Can't locate revision" in text:
        return f"the database {shown} belongs to a newer MLflow: pip install --upgrade mlflow, or name another store"
    if isinstance(error, PermissionError) or "readonly database" in text or "Read-only file system" in text:
        return (
            f"the MLflow store {shown} is read-only: make its folder and its database writable, or name another with "
            "MLFLOW_TRACKING_URI or --tracking.uri"
        )
    if disk_is_full(error):
        return f"the disk is full: free some space for the MLflow store {shown}"
    if "database is locked" in text:
        return f"the MLflow store {shown} is locked by another process: wait for it, or stop it, and repeat the command"
    if "file is not a database" in text or "malformed" in text:
        return f"{shown} is not an MLflow database, or it is damaged: restore it from a copy, or name another store"
    if of_databricks(store.uri) and "credential" in text:
        return (
            "no login for Databricks: set DATABRICKS_HOST and DATABRICKS_TOKEN, run `databricks auth login`, or name "
            "another profile as databricks://PROFILE"
        )
    if urlparse(store.uri).scheme in ("http", "https"):
        return _server_explanation(shown, error)
    return f"cannot use the MLflow store {shown}: {one_line(error)}"


def _server_explanation(shown: str, error: Exception) -> str:
    text, code = str(error), _http_status(error)
    if code in (401, 403):
        return (
            f"the MLflow server at {shown} refuses this login ({code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return (
            f"the certificate of the MLflow server at {shown} cannot be verified: name its authority's certificate "
            "with MLFLOW_TRACKING_SERVER_CERT_PATH, or trust it with MLFLOW_TRACKING_INSECURE_TLS=true"
        )
    if code == 404 or "not in a valid JSON format" in text:
        return (
            f"the server at {shown} is not an MLflow server: does its address lack a path, as in https://host/mlflow, "
            "or a port?"
        )
    reason = one_line(error)
    if "timed out" in text or "timeout" in text.lower():
        reason = f"no answer within {os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT']} s"
    elif "Connection refused" in text:
        reason = "connection refused"
    elif "Name or service not known" in text or "Failed to resolve" in text or "name resolution" in text:
        reason = "unknown host"
    return (
        f"no MLflow server answers at {shown} ({reason}): start it, or unset MLFLOW_TRACKING_URI to use the local store"
    )


def _http_status(error: BaseException) -> int | None:
    """HTTP status of an MLflow exception; MLflow has it only in the text when the response was not JSON."""
    if found := re.search(r"failed with error code (\d{3})", str(error)):
        return int(found[1])
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if status is not None else None


def _is_known_revision(revision: str) -> bool:
    """Whether this MLflow's migrations include a revision of the schema, so that it can be upgraded."""
    import mlflow
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    try:
        return scripts.get_revision(revision) is not None
    except CommandError:
        return False


def one_line(error: BaseException) -> str:
    """First line of an error's message, without the additions of database drivers and without credentials."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return redact(re.sub(r"^\([\w.]+\)\s*", "", text.strip()))


def local_path(uri: str) -> Path | None:
    """Folder behind an artifact URI, or None when it is not on this machine."""
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(uri) if parsed.scheme == "" else None


# ------------------------------------------------------------------------------------------------------- moved stores


def mend_moved(database: Path) -> bool:
    """Update the locations of files in a local store that was moved or copied; returns whether it had to.

    MLflow writes absolute paths into its database, so a moved project would neither find its files nor store new ones
    in its own folder. Only locations named ``artifacts`` are considered, since bustseg lays out its stores this way;
    files that were placed elsewhere on purpose stay there.
    """
    here = database.parent / "artifacts"
    changed = False
    with connected(database, write=True) as connection:
        for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
            there = local_path(location or "")
            if there is None or not there.is_absolute() or there.name != "artifacts" or _same(there, here):
                continue
            runs = connection.execute(
                "SELECT run_uuid, artifact_uri FROM runs WHERE artifact_uri LIKE ? || '/%'", (location,)
            ).fetchall()
            copied = (there.parent / database.name).is_file()
            if copied or not there.is_dir() or any((here / run_id).is_dir() for run_id, _ in runs):
                _move(connection, location, here, {run_id for run_id, _ in runs if _left(run_id, there, here, copied)})
                changed = True
    if changed:
        error_console.print(f"the store has moved: its files are now expected in {here}", highlight=False)
    return changed


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        if one.samefile(other):
            return True
        return one.parent.samefile(other.parent)
    return one == other


def _left(run_id: str, there: Path, here: Path, copied: bool) -> bool:
    """Whether a run's files have stayed at the old location, from which they are then read."""
    return not copied and (there / run_id).is_dir() and not (here / run_id).is_dir()


def _move(connection: sqlite3.Connection, location: str, here: Path, left: set[str]) -> None:
    """Replace the location at the beginning of every column with the path of files."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    connection.execute("BEGIN IMMEDIATE")
    for table, column in columns:
        known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} if table in tables else set()
        if column not in known:
            continue
        kept = f" AND run_uuid NOT IN ({', '.join('?' for _ in left)})" if table == "runs" and left else ""
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1) "
            f"WHERE ({column} = ? OR substr({column}, 1, length(?) + 1) = ? || '/'){kept}",
            (here.as_uri(), *[location] * 4, *(sorted(left) if kept else ())),
        )
    connection.execute("COMMIT")
