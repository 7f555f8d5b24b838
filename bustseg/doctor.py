"""`bustseg doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from bustseg import __version__
from bustseg.errors import UserError
from bustseg.progress import print_entry, several

State = Literal["ok", "missing", "wrong"]

MARKS: dict[State, str] = {"ok": "[green]ok[/]     ", "missing": "[yellow]missing[/]", "wrong": "[bold red]wrong[/]  "}

LOW_DISK_GB = 2.0
"""Free space below which a training may not finish: its checkpoints and a cache take about as much."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked
        state: ``missing`` for what only some commands need, ``wrong`` for what must be fixed
        text: what was found, and what to do about it
    """

    what: str
    state: State
    text: str


DECISIVE = ("amx", "avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "neon", "sve", "bf16", "i8mm")
"""Beginnings of the CPU flags that decide how fast a network runs, on x86 and on ARM."""


def doctor() -> int:
    """Print the results of all checks; returns 1 when something is wrong."""
    wrong = False
    for finding in findings():
        wrong |= finding.state == "wrong"
        print_entry(f"{MARKS[finding.state]}  {finding.what:<10}", finding.text)
    return int(wrong)


def findings() -> Iterator[Finding]:
    """The results of all checks, one after the other."""
    yield Finding(
        "bustseg", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    yield from _compute()
    yield from _data()
    yield _store()
    for name, folder in (("runs", Path("mlruns")), ("cache", _cache())):
        yield _disk(name, folder)
    yield from _extras()


def _compute() -> Iterator[Finding]:
    import torch

    from bustseg.experiment import fast_precision

    capabilities = torch.cpu.get_capabilities()
    flags = [name for name, has in sorted(capabilities.items()) if has is True and name.startswith(DECISIVE)]
    threads = several(torch.get_num_threads(), "thread")
    yield Finding(
        "CPU",
        "ok",
        f"{several(os.cpu_count() or 1, 'core')}, torch {torch.__version__} with {threads}; {' '.join(flags)}",
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gib = properties.total_memory / 2**30
            yield Finding("GPU", "ok", f"{properties.name}, {gib:.0f} GiB, CUDA {torch.version.cuda}")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding("GPU", "missing", f"none that torch can use ({built}): trainings run on the CPU")
    yield Finding("precision", "ok", f"{fast_precision()} unless trainer.precision says otherwise")


def _data() -> Iterator[Finding]:
    root = os.environ.get("BUSI_ROOT")
    if not root:
        yield Finding(
            "data",
            "missing",
            "BUSI_ROOT is not set: `bustseg data fetch DEST` downloads BUSI; phantoms need no download",
        )
    elif not Path(root).is_dir():
        yield Finding("data", "wrong", f"BUSI_ROOT is {root}, which is not a folder")
    else:
        from bustseg.data.sources import BUSI

        try:
            images = len(BUSI().scan(Path(root))[0])
        except UserError:  # the folder holds something else
            images = 0
        state: State = "ok" if images else "wrong"
        yield Finding("data", state, f"BUSI_ROOT {root}: {images} images (`bustseg data check {root}` audits them)")


def _cache() -> Path:
    """Where decoded images are cached; the user's cache folder when neither data nor a setting says where."""
    from platformdirs import user_cache_dir

    from bustseg.data.cache import cache_root

    root = os.environ.get("BUSI_ROOT")
    if root or os.environ.get("BUSTSEG_CACHE"):
        return cache_root(Path(root or "."))
    return Path(user_cache_dir("bustseg"))


def _store() -> Finding:
    from bustseg.runs.opening import open_store
    from bustseg.runs.store import Store, tracking_uri

    uri = tracking_uri()
    shown = Store(uri).shown
    database = Store(uri).database
    if database is not None and not database.exists():
        return Finding("store", "ok", f"{shown}, which the first run creates")
    try:
        open_store(uri)
    except UserError as error:
        return Finding("store", "wrong", str(error))
    return Finding("store", "ok", shown)


def _disk(what: str, folder: Path) -> Finding:
    """Whether a folder, which need not exist yet, can be written to, and its free space."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        return Finding(what, "wrong", f"{folder} cannot be written")
    free = shutil.disk_usage(there).free / 1e9
    state: State = "ok" if free >= LOW_DISK_GB else "wrong"
    return Finding(what, state, f"{folder}: {free:.1f} GB free{'' if state == 'ok' else ', which is too little'}")


def _extras() -> Iterator[Finding]:
    """Which of the package's extras are installed, according to its metadata."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in requires("bustseg") or []]
    except PackageNotFoundError:
        yield Finding("extras", "missing", "bustseg runs from a folder and is not installed, so its extras are unknown")
        return
    by_extra: dict[str, list[Requirement]] = {}
    for extra in ("deploy", "dicom", "server", "serve"):
        by_extra[extra] = [
            one for one in needed if one.marker is not None and one.marker.evaluate({"extra": extra}) and not one.extras
        ]
    for extra, own in by_extra.items():
        absent = [one.name for one in own if not _installed(one.name)]
        if absent:
            yield Finding("extra", "missing", f"{extra}: pip install 'bustseg[{extra}]' (lacks {', '.join(absent)})")
        else:
            yield Finding("extra", "ok", extra)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
