"""A run as callbacks see it: a folder, and entries that are first written to a journal and sent from there."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bustseg.progress import error_console
from bustseg.redact import redact
from bustseg.runs.entries import DATASETS, FILE, METRICS, MODEL, MODEL_FILE, MODEL_METRICS, PARAMS, STATUS, TAGS
from bustseg.runs.record import Record, same_value
from bustseg.runs.sender import Sender, breaker_of
from bustseg.runs.session import Position, Session, sessions_of
from bustseg.runs.sinks import Sink
from bustseg.whole import whole, write_whole

Shown = Callable[[Path, str], None]
"""Called for every file that is added to a run, with the file and its name within the run."""

_open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


class Run:
    """A run that this process writes.

    Everything is first written to a journal, and a separate thread sends it to the sink, so that no call waits for a
    store. Files are stored in the run's folder.

    Args:
        record: the run's record
        files: its folder of files on this machine
        home: folder of the store, which holds ``spool/``
        store: the store's URI without credentials; ``local`` for a run that is in no store
        sink: receiver of its entries
        uri: the store's URI
        upload: whether files must be sent; false if the store's files are those in ``files``
        ends_run: whether the run ends when this process dies; false for a test of a finished run, and for processes
            that share a run
    """

    def __init__(
        self,
        record: Record,
        files: Path,
        home: Path,
        store: str,
        sink: Sink,
        uri: str,
        upload: bool,
        ends_run: bool = True,
    ) -> None:
        self.record = record
        self.files = files
        self.store = store
        self.upload = upload
        self.ends_run = ends_run
        self.listeners: list[Shown] = []
        self.write_through = uri.startswith("sqlite:")
        """Whether writers wait until a local store has the entry, so that it can be read at once; not in a training."""
        self.blocked = 0.0
        """Seconds that writers have waited for disks and locks."""
        self._home = home
        self._sink = sink
        self._uri = uri
        self._session: Session | None = None
        self._earlier: list[Session] = []
        self._sender: Sender | None = None
        self._logged: tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]] = ({}, {})
        self._held = False
        self.resumable = False
        """Whether a checkpoint allows another process to continue the run."""

    @property
    def run_id(self) -> str:
        """32 hexadecimal digits."""
        return self.record.run_id

    @property
    def spool(self) -> Path:
        """Folder of its sessions."""
        return self._home / "spool" / self.run_id

    # ---------------------------------------------------------------------------------------------------------- writing

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Write metrics. A value that this process has already written for the same step is not repeated."""
        clean = {_metric_name(name): float(value) for name, value in values.items() if not isinstance(value, str)}
        if self._held:
            older, newer = self._logged
            clean = {
                name: value
                for name, value in clean.items()
                if not any(same_value(known.get((name, step)), value) for known in (older, newer))
            }
            newer |= {(name, step): value for name, value in clean.items()}
        if clean:
            self._append(METRICS, {"values": clean, "step": int(step)})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Write parameters. Existing ones are kept; a different value becomes a tag ``continued.NAME``."""
        texts = {name: redact(str(value))[:5900] for name, value in params.items()}
        known = self.record.params
        changed = {f"continued.{name}": text for name, text in texts.items() if known.get(name, text) != text}
        if new := {name: text for name, text in texts.items() if name not in known}:
            self._append(PARAMS, new)
        self.set_tags(changed)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, skipping those that are None."""
        if texts := {name: redact(str(value)) for name, value in tags.items() if value is not None}:
            self._append(TAGS, texts)

    def log_datasets(self, datasets: Sequence[tuple[Mapping[str, str], str]]) -> None:
        """Record the data that the run used: fields of an MLflow data set, and its context (``training``, ...)."""
        if datasets:
            self._append(DATASETS, {"datasets": [[dict(dataset), context] for dataset, context in datasets]})

    def add_file(self, path: Path, folder: str = "", show: bool = True) -> Path:
        """Copy a file into a folder of the run, unless it is already there; returns its path.

        Args:
            path: the file
            folder: folder within the run
            show: whether to show it in the run's other loggers

        Raises:
            OSError: it cannot be written
        """
        target = self.files / folder / path.name
        if path.resolve() != target.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole(target) as temporary:
                shutil.copyfile(path, temporary)
        name = target.relative_to(self.files).as_posix()
        if self.upload:
            self._append(FILE, {"path": name, "folder": folder})
        for shown in self.listeners if show else ():
            shown(target, name)
        return target

    def add_files(self, source: Path, folder: str) -> None:
        """Copy the files in ``source`` into a folder of the run."""
        for path in sorted(source.iterdir()):
            if path.is_file():
                self.add_file(path, folder)

    def add_text(self, text: str, name: str) -> None:
        """Write a text into the run as the file ``name``, which may include folders."""
        target = self.files / name
        write_whole(target, redact(text).encode())
        self.add_file(target, "" if target.parent == self.files else str(target.parent.relative_to(self.files)))

    def log_model(self, checkpoint: Path, epoch: int) -> None:
        """Record a checkpoint of the run as a model with its validation scores, if the store supports models."""
        self._append(MODEL, {"checkpoint": str(checkpoint.relative_to(self.files)), "epoch": epoch})

    def add_model_file(self, path: Path) -> None:
        """Store a file of the run with its model, if it has one."""
        self._append(MODEL_FILE, {"path": str(path.relative_to(self.files))})

    def show_with_model(self, prefix: str) -> None:
        """Attach the metrics with this prefix to the run's model, if it has one."""
        self._append(MODEL_METRICS, {"prefix": prefix})

    def set_status(self, status: str) -> None:
        """Set the run's status, in MLflow's terms."""
        self._append(STATUS, {"status": status})

    def begin(self) -> None:
        """Record the run's owner, so that the next command can end the run if this process is killed."""
        self._open()

    def _append(self, kind: str, data: dict[str, Any], time_ms: int | None = None) -> None:
        start = time.perf_counter()
        session = self._open()
        self.record.apply(session.append(kind, data, time_ms=time_ms))
        if self._sender is not None:
            self._sender.wake()
            if self.write_through:
                self._sender.flush()
        self.blocked += time.perf_counter() - start

    def _open(self) -> Session:
        """The session of this process, started with its first entry."""
        if self._session is None:
            self._earlier = [session for session in sessions_of(self.spool) if _is_closed(session)]
            self._session = Session.begin(
                self.spool,
                run_id=self.run_id,
                store=self.store,
                files=os.path.relpath(self.files, self._home),
                ends_run=self.ends_run,
                experiment=self.record.experiment,
            )
            self._sender = Sender(
                [*self._earlier, self._session], self._sink, breaker_of(self._uri), self._tell, self._gone
            )
            self._sender.start()
            _open_runs.add(self)
        return self._session

    # --------------------------------------------------------------------------------------------- what may be repeated

    def hold(self, resumable: bool) -> None:
        """Hold metrics back until :meth:`commit`, see :class:`bustseg.runs.session.Session`."""
        self._open().hold(resumable)
        self._held, self.resumable = True, resumable

    def commit(self) -> None:
        """Release the held metrics, once their checkpoint is written."""
        start = time.perf_counter()
        if self._session is not None and self._held:
            self._session.commit()
            self._logged = (self._logged[1], {})
            if self._sender is not None:
                self._sender.wake()
        self.blocked += time.perf_counter() - start

    @property
    def position(self) -> Position:
        """The journal's position, to be stored in a checkpoint."""
        return self._open().position

    def go_on_from(self, position: Position | None) -> None:
        """Resolve what an earlier process held when it was stopped, since this one continues from a checkpoint.

        Entries up to the checkpoint's position belong to finished epochs and are released now. Later ones are dropped,
        since their epochs are computed again.
        """
        session = self._open()
        for earlier in self._earlier:
            if position is not None and earlier.name == position["session"]:
                for entry in earlier.held():
                    if entry.seq <= position["seq"]:
                        self.record.apply(session.append(entry.kind, entry.data, time_ms=entry.time))
            earlier.kept.clear()
        self.commit()

    # ----------------------------------------------------------------------------------------------------------- ending

    def flush(self) -> bool:
        """Wait until everything is sent or the store does not answer; returns whether everything is sent."""
        return self._sender is None or self._sender.flush()

    def close(self, status: str | None = None, complete: bool = True) -> None:
        """End this process's part of the run, after which it may be written again.

        Args:
            status: final status of the run; None to leave it unchanged
            complete: see :meth:`bustseg.runs.session.Session.close`
        """
        if self._session is None and status is not None and self.record.status == "RUNNING":
            self._open()  # a run that got only files also ends
        session, sender = self._session, self._sender
        if session is None or sender is None:
            return
        session.close(status, complete=complete)
        if status is not None:
            self.record.status, self.record.end_time = status, session.last_time
        sender.wake()
        all_sent = sender.flush()
        sender.stop()
        self._session = self._sender = None
        self._held = False
        if self.upload:  # for commands that need the run while its store is unreachable
            with contextlib.suppress(OSError):
                self.record.save(self.files)
        _open_runs.discard(self)
        for one in [*self._earlier, session]:
            if sender.gone or not one.tidy():
                one.release()
        if not all_sent:
            self._say_unsent(session)

    def _tell(self, reason: str | None) -> None:
        if reason is None:
            error_console.print(f"the store {self.store} answers again", highlight=False)
        else:
            error_console.print(
                f"[yellow]warning:[/] the store {self.store} cannot be reached ({reason}): measurements are kept in "
                f"{self.spool} and sent later",
                highlight=False,
            )

    def _gone(self, reason: str) -> None:
        error_console.print(
            f"[yellow]warning:[/] run {self.run_id} is no longer in {self.store} ({reason}): what is measured stays "
            f"in {self.spool}",
            highlight=False,
        )

    def _say_unsent(self, session: Session) -> None:
        lost = f" ({session.unwritten} did not fit on the disk)" if session.unwritten else ""
        error_console.print(
            f"[yellow]warning:[/] {session.waiting} entries of run {self.run_id} wait in {self.spool}{lost}: the next "
            "command or `bustseg sync` sends them",
            highlight=False,
        )


def _is_closed(session: Session) -> bool:
    session.take()
    return session.closed


def _metric_name(name: str) -> str:
    """The name without characters that MLflow does not allow."""
    return re.sub(r"[^\w/. -]+", "", name, flags=re.ASCII)


@atexit.register
def _close_open_runs() -> None:
    """Send what a prematurely ended command has left; the next command decides about its runs."""
    for run in list(_open_runs):
        run.flush()
