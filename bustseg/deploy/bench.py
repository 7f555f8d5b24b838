"""``bustseg bench``: the same network in torch, ONNX Runtime and OpenVINO, measured side by side in one run.

Every contestant runs in a separate process and all take turns in short rounds, so that other load on the machine
affects all of them equally: on a busy machine ratios are reliable where milliseconds are not.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bustseg.data.inputs import Inputs
from bustseg.deploy.backends import TorchBackend, cores
from bustseg.deploy.check import CheckImages, check_images, logits_of, overlap
from bustseg.deploy.export import Limits, describe, package_versions, write_metadata, write_network
from bustseg.deploy.exported import ExportedModel, is_exported
from bustseg.deploy.formats import ExportFormat, find_format, missing, not_installed, shipped_formats
from bustseg.errors import DataError, UserError
from bustseg.masks import MaskRule
from bustseg.metrics import CONVENTIONS
from bustseg.progress import console, track
from bustseg.reports.tables import markdown_table
from bustseg.runs.checkpoint import load_task, trained_framing
from bustseg.runs.resolve import resolve_checkpoint
from bustseg.task import RECORD, SegmentationTask
from bustseg.training.preflight import try_size

_CALLS = 5
"""Calls of each kind in a round."""


@dataclass
class Contestant:
    """A network at one size and precision in one runtime, and its measurements.

    Attributes:
        model: the name that the user gave
        size: (h, w) of the network's input
        backend: one of :data:`bustseg.deploy.exported.BACKENDS`
        precision: one of :data:`bustseg.deploy.exported.PRECISIONS`
        figures: times in ms, images per second, MB, Dice by convention
        problem: why there are no figures
    """

    model: str
    size: tuple[int, int]
    backend: str
    precision: str
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def bench_command(
    models: Sequence[str],
    sizes: Sequence[int] | None = None,
    batches: Sequence[int] = (1, 8),
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    backends: Sequence[str] = ("eager", "compiled", "onnxruntime", "openvino"),
    threads: int | None = None,
    rounds: int = 20,
    root: Path | None = None,
    images: Path | None = None,
    json_file: Path | None = None,
    markdown: Path | None = None,
) -> int:
    """`bustseg bench`: measures, prints a table, and writes ``json_file`` and ``markdown`` if they are given.

    Args:
        models: checkpoints and runs, exported folders, or config files (whose networks then have random weights)
        sizes: sides of the network's input; the trained one when not given
        batches: batch sizes for the network alone; end to end it is always one image
        precisions: of the exported networks; torch computes in float32
        backends: what to compare
        threads: the machine's cores when not given
        rounds: number of rounds in which all take turns
        root: the run's data, for the Dice, if they have moved since the training
        images: folder of images (and masks) to use instead

    Raises:
        UserError: bad input
    """
    if rounds < 1 or min(batches) < 1 or max(batches) > 64 or min(sizes or [32]) < 16 or (threads or 1) < 1:
        raise UserError("rounds and threads must be at least 1, sizes at least 16, batches from 1 to 64")
    for file in (json_file, markdown):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"no folder {file.parent} to write {file.name} to")
    threads = threads or cores()
    head = machine(threads)
    contestants: list[Contestant] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, model in enumerate(models):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            for group in _groups(model, sizes, precisions, backends, root, images, folder):
                _measure(group, sorted(set(batches)), threads, rounds, folder)
                contestants += [contestant for contestant, _ in group.jobs]
    head["load_average_end"] = _load()
    results = [_row(contestant) for contestant in contestants]
    content = {"machine": head, "rounds": rounds, "calls_per_round": _CALLS, "results": results}
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n")
    if markdown is not None:
        markdown.write_text(as_markdown(content))
    _print(content)
    return 0


@dataclass
class _Group:
    """Contestants that are measured together: one model at one size."""

    jobs: list[tuple[Contestant, dict[str, Any] | None]]
    check: CheckImages | None
    files: list[Path]
    rule: MaskRule


def _groups(
    model: str,
    sizes: Sequence[int] | None,
    precisions: Sequence[str],
    backends: Sequence[str],
    root: Path | None,
    images: Path | None,
    folder: Path,
) -> list[_Group]:
    files = _files(images, folder)
    if is_exported(model):
        exported = ExportedModel.read(model)
        if sizes and any((size, size) != exported.image_size for size in sizes):
            raise UserError(f"{model} takes only images of {exported.image_size}: leave --size out")
        format = find_format(exported.metadata["format"])
        backend = format.runtime or format.name
        contestant = Contestant(model, exported.image_size, backend, exported.metadata["precision"])
        check = None if images is None else check_images(Path(), exported.framing, folder=images)
        job = {"backend": backend, "model": str(exported.folder)}
        return [_Group([(contestant, job)], check, files, exported.mask_rule)]
    trained = Path(model).suffix not in (".yaml", ".yml")
    checkpoint = resolve_checkpoint(model) if trained else untrained_checkpoint(Path(model), folder / "untrained.ckpt")
    task = load_task(checkpoint)
    groups = []
    for size in [(side, side) for side in sizes] if sizes else [None]:
        framing = trained_framing(task, size)
        try_size(task, framing.size, "--size" if sizes else "data.image_size")
        check = check_images(checkpoint if trained else None, framing, root if trained else None, images)
        jobs: list[tuple[Contestant, dict[str, Any] | None]] = []
        for backend in backends:
            of_file = _format_of(backend)
            for precision in precisions if of_file else ["fp32"]:
                if of_file and precision not in of_file.precisions:
                    continue
                contestant = Contestant(model, framing.size, backend, precision)
                jobs.append((contestant, _job(contestant, of_file, task, checkpoint, check, folder)))
        measured = check if trained and check.masks is not None else None
        groups.append(_Group(jobs, measured, files, task.mask_rule))
    return groups


def _files(images: Path | None, folder: Path, n: int = 8) -> list[Path]:
    """Image files for timing from file to mask: the user's, or phantoms with BUSI's sizes."""
    if images is not None:
        return _readable(Inputs([str(images)]), 100)
    from bustseg.data.phantom import write_phantoms
    from bustseg.data.sources import BUSI

    return [sample.image for sample in BUSI().read(write_phantoms(folder / "phantoms", n=n, seed=0))]


def _readable(inputs: Inputs, most: int) -> list[Path]:
    """The first files whose first image can be read."""
    files: dict[Path, None] = {}
    for item in inputs:
        with suppress(DataError):
            item.read()
            files[item.path] = None
        if len(files) == most:
            break
    if not files:
        raise UserError("none of the images can be read")
    return list(files)


def untrained_checkpoint(config: Path, path: Path) -> Path:
    """Write a checkpoint of a config's network with random weights, which do not affect speed."""
    from bustseg.experiment import Experiment
    from bustseg.runs.checkpoint import build_task

    section = Experiment.read(config).config
    task = build_task(section["model"]).eval()
    # leave out what only training needs
    model = {key: value for key, value in section["model"].items() if key not in ("loss", "optimizer", "lr_scheduler")}
    torch.save({RECORD: {"config": {**section, "model": model}}, "state_dict": task.state_dict()}, path)
    return path


def _format_of(backend: str) -> ExportFormat | None:
    """The format that a runtime executes; None for torch."""
    return next((format for format in shipped_formats() if format.runtime == backend), None)


def _job(
    contestant: Contestant,
    format: ExportFormat | None,
    task: SegmentationTask,
    checkpoint: Path,
    check: CheckImages,
    folder: Path,
) -> dict[str, Any] | None:
    """The job for a contestant's process; None (with the reason in its ``problem``) where it is impossible."""
    if format is None:
        return {"backend": contestant.backend, "model": str(checkpoint)}
    if absent := not_installed(format, contestant.precision):
        contestant.problem = str(missing(absent, format.name))
        return None
    out = folder / f"{format.name}-{contestant.precision}-{contestant.size[0]}x{contestant.size[1]}"
    out.mkdir()
    if check.calibration is None:  # untrained, or without data: the values do not matter for speed
        check = CheckImages(check.images, None, check.images, check.origin)
    try:
        reference = logits_of(TorchBackend(task), check.images) if contestant.precision == "int8" else np.empty(0)
        # whatever Dice it loses: the table shows Dice and speed together
        path = write_network(
            task, contestant.size, format.name, contestant.precision, out, check, reference, Limits(dice_drop=1)
        )
        framing = trained_framing(task, contestant.size)
        write_metadata(out, describe(task, framing, format.name, contestant.precision, path, out))
    except UserError as error:
        contestant.problem = str(error)
        return None
    return {"backend": contestant.backend, "model": str(out)}


class _Process:
    """A running contestant."""

    def __init__(self, job: dict[str, Any]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bustseg.deploy.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        try:
            self.first = self._ask({**job, "started": time.time()})
        except BaseException:
            self.close()
            raise

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        return self._ask({"do": do, **arguments})

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        result = json.loads(answer) if answer else {"error": f"its process ended with {self._process.wait()}"}
        if "error" in result:
            raise UserError(result["error"])
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _measure(group: _Group, batches: list[int], threads: int, rounds: int, folder: Path) -> None:
    """Start the contestants of a group one after the other, let them take turns, and fill in their results."""
    running: dict[int, _Process] = {}
    times: dict[int, list[dict[str, Any]]] = {}
    with ExitStack() as stack:

        def attempt(index: int, *command: Any, **arguments: Any) -> dict[str, Any]:
            try:
                return running[index](*command, **arguments)
            except UserError as error:
                group.jobs[index][0].problem = str(error)
                del running[index]
                return {}

        for index, (contestant, job) in enumerate(group.jobs):
            if job is None:
                continue
            common = {"size": contestant.size, "threads": threads, "files": [str(file) for file in group.files]}
            try:
                process = _Process({**job, **common})
            except UserError as error:
                contestant.problem = str(error)
                continue
            stack.callback(process.close)
            running[index], times[index] = process, []
            contestant.figures["start_up_s"] = process.first["start_up_s"]
            contestant.figures["file_mb"] = _megabytes(Path(job["model"]))
            attempt(index, "round", batches=batches, calls=2)  # warm
        title = f"{Path(group.jobs[0][0].model).name} {group.jobs[0][0].size[0]}x{group.jobs[0][0].size[1]}"
        for _ in track(range(rounds), title, total=rounds):
            for index in list(running):
                times[index].append(attempt(index, "round", batches=batches, calls=_CALLS))
        for index in list(running):
            figures = group.jobs[index][0].figures
            figures |= _times(times[index], batches)
            figures["peak_memory_mb"] = attempt(index, "memory").get("bytes", 0) / 2**20
        if group.check is None or group.check.masks is None:
            return
        np.save(folder / "images.npy", group.check.images)
        for index in list(running):
            out = folder / "logits.npy"
            attempt(index, "logits", images=str(folder / "images.npy"), out=str(out))
            if index in running:
                scores = overlap(np.load(out), group.check.masks, group.rule)
                group.jobs[index][0].figures["dice"] = {
                    name: scores[f"dice_{name}"] for name in CONVENTIONS if f"dice_{name}" in scores
                }
                group.jobs[index][0].figures["dice_images"] = group.check.origin


def _times(rounds: Sequence[Mapping[str, Any]], batches: Sequence[int]) -> dict[str, Any]:
    """Medians and 95th percentiles in ms of all calls, and images per second from the medians."""

    def summary(seconds: list[float]) -> dict[str, float]:
        return {"median_ms": 1e3 * float(np.median(seconds)), "p95_ms": 1e3 * float(np.percentile(seconds, 95))}

    whole = summary([value for one in rounds for value in one["end_to_end"]])
    network = {str(b): summary([value for one in rounds for value in one["network"][str(b)]]) for b in batches}
    for batch, figures in network.items():
        figures["images_per_s"] = 1e3 * int(batch) / figures["median_ms"]
    return {"end_to_end": {**whole, "images_per_s": 1e3 / whole["median_ms"]}, "network": network}


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.name.startswith("model.")]
    return sum(file.stat().st_size for file in files) / 1e6


def machine(threads: int) -> dict[str, Any]:
    """Description of the machine that the results were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "instructions": [
            name
            for name in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
            if name in flags
        ],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_start": _load(),
    }


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _row(contestant: Contestant) -> dict[str, Any]:
    return {
        "model": contestant.model,
        "size": list(contestant.size),
        "backend": contestant.backend,
        "precision": contestant.precision,
        "problem": contestant.problem,
        **contestant.figures,
    }


def _cells(row: Mapping[str, Any], eager: float | None, batches: Sequence[str]) -> list[str]:
    if row["problem"]:
        return [row["backend"], row["precision"], row["problem"]]
    single = row["network"][batches[0]]["median_ms"]
    dice = row.get("dice", {})
    return [
        row["backend"],
        row["precision"],
        f"{row['end_to_end']['median_ms']:.1f} / {row['end_to_end']['p95_ms']:.1f}",
        *(f"{row['network'][b]['median_ms']:.1f} / {row['network'][b]['p95_ms']:.1f}" for b in batches),
        f"{eager / single:.2f}" if eager else "-",
        f"{row['end_to_end']['images_per_s']:.1f}",
        *(f"{row['network'][b]['images_per_s']:.1f}" for b in batches),
        f"{row['start_up_s']:.1f}",
        f"{row['peak_memory_mb']:.0f}",
        f"{row['file_mb']:.1f}",
        *(f"{dice[name]:.4f}" if name in dice else "-" for name in ("lesion", "empty_one")),
    ]


def _header(batches: Sequence[str]) -> list[str]:
    return [
        "backend",
        "precision",
        "file to mask, ms",
        *(f"network, batch {b}, ms" for b in batches),
        "times eager",
        "file to mask, images/s",
        *(f"network, batch {b}, images/s" for b in batches),
        "start, s",
        "memory, MB",
        "file, MB",
        "Dice lesion",
        "Dice empty_one",
    ]


def _tables(content: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each model and size; milliseconds are median / 95th percentile."""
    tables = []
    keys = dict.fromkeys((row["model"], tuple(row["size"])) for row in content["results"])
    for model, size in keys:
        rows = [row for row in content["results"] if (row["model"], tuple(row["size"])) == (model, size)]
        batches = next((list(row["network"]) for row in rows if not row["problem"]), ["1"])
        eager = next(
            (r["network"][batches[0]]["median_ms"] for r in rows if r["backend"] == "eager" and not r["problem"]), None
        )
        tables.append((f"{model}, {size[0]} x {size[1]}", _header(batches), [_cells(r, eager, batches) for r in rows]))
    return tables


def _machine_line(content: Mapping[str, Any]) -> str:
    head = content["machine"]
    packages = ", ".join(f"{name} {value}" for name, value in head["versions"].items())
    return (
        f"{head['cpu']} ({', '.join(head['instructions']) or 'instructions unknown'}), {head['cores']} cores, "
        f"{head['threads']} threads; Python {head['python']}, {packages}; {content['rounds']} interleaved rounds of "
        f"{content['calls_per_round']} calls; load average {head['load_average_start']} before and "
        f"{head['load_average_end']} after; {head['measured_at']}"
    )


def as_markdown(content: Mapping[str, Any]) -> str:
    """The results as Markdown: the machine, and a table for each model and size."""
    parts = [_machine_line(content), "Milliseconds are median / 95th percentile of a call."]
    for title, header, rows in _tables(content):
        lines = ([*row, *[""] * (len(header) - len(row))] for row in rows)
        parts.append(f"### {title}\n\n{markdown_table(header, lines, right=range(2, len(header)))}")
    return "\n\n".join(parts) + "\n"


_SHOWN = {
    "backend": "backend",
    "precision": "precision",
    "file to mask, ms": "file to mask ms",
    "network, batch {}, ms": "network ms",
    "times eager": "times eager",
    "file to mask, images/s": "images/s",
    "memory, MB": "MB",
    "Dice lesion": "Dice",
}
"""The columns that are shown in the terminal; the files have more."""


def _print(content: Mapping[str, Any]) -> None:
    console.print(_machine_line(content), highlight=False)
    for title, header, rows in _tables(content):
        first = next(name for name in header if name.startswith("network")).split(",")[1].split()[-1]
        columns = {header.index(name.format(first)): short for name, short in _SHOWN.items()}
        table = Table(title=f"{title} (network: batch {first})", title_justify="left", box=None)
        for short in columns.values():
            table.add_column(short, justify="left" if short in ("backend", "precision") else "right", overflow="fold")
        problems = []
        for row in rows:
            if len(row) == len(header):
                table.add_row(*(row[index] for index in columns))
            else:
                problems.append(": ".join([" ".join(row[:2]), row[2]]))
        console.print(table)
        for problem in problems:
            console.print(problem, highlight=False, markup=False)
