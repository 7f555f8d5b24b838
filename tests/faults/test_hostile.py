"""Hostile files, read by every command that reads such files: one line, bounded time and memory, no run left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.faults import harness, hostile
from tests.launcher import Limits

pytestmark = pytest.mark.faults

LIMITS = Limits(data_bytes=2 * 2**30, cpu_seconds=60)
MEBIBYTES = 1500
"""What a command may hold beyond what it has imported: less than it may ask for."""
SECONDS = 30
"""What it may compute, whatever else the machine does."""

KINDS: dict[str, tuple[Callable[[hostile.Material], list[hostile.Case]], int]] = {
    "images": (hostile.images, 7),
    "models": (hostile.models, 4),
    "configs": (hostile.configs, 4),
    "tables": (hostile.tables, 3),
}
"""Makers of the cases, and how many of each the short form tries"""


@pytest.fixture(scope="session")
def material(
    tmp_path_factory: pytest.TempPathFactory, few_phantoms: Path, template: Path, cache_folder: Path
) -> hostile.Material:
    """A trained network, what it was exported to and how it scored."""
    world = harness.World(tmp_path_factory.mktemp("material") / "world", few_phantoms, template)
    env = {"BUSTSEG_CACHE": str(cache_folder)}
    assert world.fit("--trainer.max_epochs", 1, env=env).code == 0
    checkpoint = world.last_checkpoint()
    assert checkpoint is not None
    ended = world.run("test", "--ckpt_path", checkpoint, "--explain.enabled", "false", env=env)
    assert ended.code == 0, ended.err
    options = ("--format", "onnx", "--out", "exported", "--images", few_phantoms)
    ended = world.run("export", checkpoint, *options, env=env)
    assert ended.code == 0, ended.err
    (table,) = world.folder.glob("mlruns/artifacts/*/artifacts/tables/test.csv")
    # away from its store, to which a continued fit would write
    for name in ("last.ckpt", "test.csv"):
        (world.folder / "kept").mkdir(exist_ok=True)
        shutil.copy(checkpoint if name == "last.ckpt" else table, world.folder / "kept" / name)
    config = torch.load(checkpoint, map_location="cpu", weights_only=True)["bustseg"]["config"]
    kept = world.folder / "kept"
    return hostile.Material(few_phantoms, kept / "last.ckpt", world.folder / "exported", kept / "test.csv", config)


def chosen(cases: list[hostile.Case], few: int) -> list[hostile.Case]:
    """All of them in the long form, else some from everywhere."""
    return cases if harness.LONG else cases[:: max(1, len(cases) // few)][:few]


def faults(world: harness.World, ended: harness.Ended) -> Iterator[str]:
    """What a command has done that it must not."""
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    # 1 is what a check says that has found something, and a command of many images of which some are damaged
    told = not errors or re.search(r"images (could not be read|have an error in)", errors[0])
    if ended.code not in (0, 2) and not (ended.code == 1 and told):
        yield f"exit code {ended.code}"
    if ended.code == 2 and not errors:
        yield "no line says why"
    if len(errors) > 1:
        yield f"{len(errors)} lines of errors"
    if re.search(r"Traceback \(most recent", ended.err + ended.out):
        yield "a traceback"
    if any(len(line) > 1500 for line in errors):
        yield "an endless line"
    if ended.cpu_seconds > SECONDS:
        yield f"{ended.cpu_seconds:.0f} s"
    if ended.mebibytes > MEBIBYTES:
        yield f"{ended.mebibytes:.0f} MiB"
    if any(world.folder.rglob("RAN")):
        yield "it ran what the file asks for"
    runs = list(harness.statuses(world.database).values())
    if runs if ended.code == 2 else set(runs) - {"FINISHED"}:
        yield f"runs left behind: {runs}"
    if list(world.folder.glob("mlruns/spool/*/*.jsonl")):
        yield "a journal left behind"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=pytest.mark.promise(
                f"Hostile {kind} end in one line of an error at most, within bounds of time and memory, and leave no "
                "run behind"
            ),
        )
        for kind in KINDS
    ],
)
def test_hostile_files(
    kind: str,
    material: hostile.Material,
    template: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    make, few = KINDS[kind]
    cases = chosen(make(material), few)
    found: dict[str, str] = {}
    peak = slowest = 0.0
    for number, case in enumerate(cases):
        world = harness.World(tmp_path / str(number), material.phantoms, template)
        case.make(world.folder)
        args = [str(harness.TINY) if word == "{tiny}" else word for word in case.args]
        try:
            ended = harness.run(world.folder, *args, limit=600, limits=LIMITS)
        except AssertionError as error:
            found[case.name] = f"{' '.join(args)}: {error}"
            continue
        print(f"{kind}: {case.name!r}: {ended.code}, {ended.cpu_seconds:.1f} s, {ended.mebibytes:.0f} MiB", flush=True)
        peak, slowest = max(peak, ended.mebibytes), max(slowest, ended.cpu_seconds)
        if wrong := list(faults(world, ended)):
            found[case.name] = f"{', '.join(wrong)}: bustseg {' '.join(args)}\n{ended.out[-300:]}{ended.err[-1500:]}"
        else:
            shutil.rmtree(world.folder, ignore_errors=True)
    record_property("cases", len(cases))
    record_property("figure", f"at most {slowest:.0f} s of computing and {peak:.0f} MiB each")
    listing = "\n\n".join(f"{name}: {text}" for name, text in found.items())
    assert not found, f"{len(found)} of {len(cases)}:\n{listing}"
