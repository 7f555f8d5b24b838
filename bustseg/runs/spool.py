"""Settle what earlier commands left in a store's spool: end the runs of dead processes, and send unsent entries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bustseg.progress import error_console
from bustseg.runs.entries import LOCAL
from bustseg.runs.making import end_half_made
from bustseg.runs.sender import Breaker, breaker_of, send_all
from bustseg.runs.session import POSITION, Position, Session, sessions_of
from bustseg.runs.sinks import MlflowSink, RecordSink, RunGone, Sink
from bustseg.runs.store import Store
from bustseg.whole import remove_unfinished

LAST = Path("checkpoints") / "last.ckpt"


@dataclass
class Settled:
    """The result of :func:`settle`.

    Attributes:
        sent: number of sent entries by run
        left: number of entries that could not be sent, by run
        ended: runs of dead processes that were ended
        elsewhere: other stores, without credentials, to which runs in this spool belong
        held: number of metrics of interrupted epochs by run, kept for the process that continues the run
        gone: runs that no longer exist in their store
    """

    sent: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)
    held: dict[str, int] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


def settle(store: Store, quiet: bool = False) -> Settled:
    """Settle the spool of a store; every command does so before it uses the store, and `bustseg sync` does only that.

    Runs of living processes, and of processes on other hosts, whose state is unknown, are left alone.

    Args:
        store: the store in use
        quiet: do not report what was done
    """
    done = Settled()
    spool = store.folder / "spool"
    if not spool.is_dir():
        return done

    def sink_of(header: dict[str, Any]) -> Sink | None:
        files = store.folder / header["files"]
        if header["store"] == LOCAL:
            return RecordSink(files)
        if header["store"] != store.shown:
            done.elsewhere.add(header["store"])
            return None
        return MlflowSink(store, header["run_id"], files)

    if not breaker_of(store.uri).remaining:
        done.ended += end_half_made(store)
    for folder in sorted(path for path in spool.iterdir() if path.is_dir()):
        with contextlib.suppress(Timeout, OSError), FileLock(folder / "settle.lock", timeout=0, thread_local=False):
            _settle_run(folder, store, sink_of, done)
        with contextlib.suppress(OSError):  # only an empty folder is removed
            (folder / "settle.lock").unlink(missing_ok=True)
            folder.rmdir()
    if not quiet:
        _say(done)
    return done


def _settle_run(folder: Path, store: Store, sink_of: Callable[[dict[str, Any]], Sink | None], done: Settled) -> None:
    sessions = sessions_of(folder)
    if not sessions:
        return
    for session in sessions:
        session.take()
    if any(not session.closed and not session.is_dead for session in sessions):
        return
    run_id, header = sessions[-1].header["run_id"], sessions[-1].header
    sink = sink_of(header)
    if sink is None:
        return
    breaker = breaker_of(store.uri if header["store"] != LOCAL else f"{LOCAL}:{header['files']}")
    for session in sessions:
        if not session.closed and _end(session, store.folder / session.header["files"]):
            done.ended.append(run_id)
    before = sum(session.waiting for session in sessions)
    left = before
    if before and not breaker.remaining:
        left = _send(sessions, sink, breaker, run_id, done)
    if before > left:
        done.sent[run_id] = before - left
    if left:
        done.left[run_id] = left
    if held := sum(len(session.kept) for session in sessions):
        done.held[run_id] = held
    for session in sessions:
        if not session.tidy():
            session.release()


def _send(sessions: list[Session], sink: Sink, breaker: Breaker, run_id: str, done: Settled) -> int:
    try:
        send_all(sessions, sink, breaker)
    except RunGone:
        done.gone.append(run_id)
        folder = sessions[0].path.parent
        kept = folder.parent.parent / "refused" / folder.name
        for session in sessions:
            session.release()
        kept.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            folder.rename(kept)
        return 0
    return sum(session.waiting for session in sessions)


def _end(session: Session, files: Path) -> bool:
    """Close the session of a dead process; returns whether the run ended with it."""
    remove_unfinished(files, session.header["owner"].get("pid"))
    held = list(session.held())
    position = _checkpoint_position(files / LAST) if held and session.resumable else None
    if position is not None and position["session"] == session.name and position["seq"] > session.committed:
        session.commit(int(position["seq"]))  # killed between writing the checkpoint and recording it
    ends = bool(session.header["ends_run"]) and (not session.statuses or session.statuses[-1] == "RUNNING")
    session.close("KILLED" if ends else None, time_ms=session.last_time, complete=False)
    return ends


def _checkpoint_position(path: Path) -> Position | None:
    """The position at which a checkpoint was written; None if it cannot be read or has none."""
    if not path.is_file():
        return None
    import torch  # imported here, since it takes a second and is needed only after an interrupted fit

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states = content["callbacks"].values()
    except Exception:  # an unreadable checkpoint cannot be continued either
        return None
    return next((state[POSITION] for state in states if isinstance(state, dict) and POSITION in state), None)


def _say(done: Settled) -> None:
    for run_id in done.ended:
        error_console.print(f"run {run_id} was left behind by a process that has ended: marked KILLED", highlight=False)
    for run_id, entries in done.sent.items():
        if run_id not in done.ended:
            error_console.print(f"sent {entries} waiting entries of run {run_id}", highlight=False)
    for run_id in done.gone:
        error_console.print(
            f"[yellow]warning:[/] run {run_id} is no longer in its store: its unsent entries stay in refused/{run_id}",
            highlight=False,
        )
