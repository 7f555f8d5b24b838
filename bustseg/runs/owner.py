"""Records of the owning process, with which other processes can check whether it is still alive."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import psutil

Owner = dict[str, Any]
"""A process as plain types: ``machine``, ``host``, ``boot``, ``pid``, ``started``."""


def boot() -> str:
    """Identity of this boot of the machine's kernel, the same in all its containers; empty where unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def machine() -> str:
    """Identity of the system to which process ids belong: host, boot and process namespace."""
    parts = [socket.gethostname()]
    if start := boot():  # systems without /proc have only the host's name
        parts.append(start)
        with contextlib.suppress(OSError):
            parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process(pid: int) -> dict[str, Any] | None:
    """A process as ``pid`` and ``started`` (ids are reused), or None when there is none."""
    try:
        found = psutil.Process(pid)
        if found.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return {"pid": pid, "started": found.create_time()}
    except psutil.Error:
        return None


def alive(recorded: Owner) -> bool:
    """Whether a recorded process of this machine still runs."""
    now = process(recorded["pid"])
    # the clock may have been set since; ids are not reused within seconds
    return now is not None and abs(now["started"] - recorded["started"]) < 10


def this_process() -> Owner:
    """The record of this process."""
    return {"machine": machine(), "host": socket.gethostname(), "boot": boot(), **(process(os.getpid()) or {})}


def is_dead(recorded: Owner, locked: bool) -> bool:
    """Whether a process has certainly ended.

    Args:
        recorded: its record from :func:`this_process`
        locked: whether a file lock that it held throughout is still held

    A process of this machine is looked up. A process in another container has separate ids, but shares the kernel and
    its locks. A process from before this host's last boot has ended. For other hosts nothing is known.
    """
    if recorded["machine"] == machine():
        return not alive(recorded)
    if recorded["boot"] and recorded["boot"] == boot():
        return not locked
    return recorded["host"] == socket.gethostname()
