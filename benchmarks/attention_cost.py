"""Cost of attention: time per training step and memory of a network with each kind, each in its own process.

    python benchmarks/attention_cost.py [--configs configs/offline configs/paper] [--size 224] [--batch 16] [--rounds 2]

Rows 7, 1 and 3 of a family of configs are one network without attention, with CBAM and with Non-Local. Steps are
forward, BCE, backward and Adam on random images, in the precision that `fit` would choose. The variants run in turn,
``--rounds`` times, so that other load on the machine affects all; the best step counts. Memory is a peak: on a CPU the
increase of resident memory since before the first step, on a GPU the allocated memory including weights. Prints a
Markdown table per family; ``--attention sk transformer`` adds further kinds to row 7's network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

KINDS = {"none": 7, "cbam": 1, "nonlocal": 3}
"""Row of each kind of attention in the paper's table 1 (all encoders, trainable, BCE)."""


def measure(config: Path, attention: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train one network for a few steps in this process."""
    import torch

    from bustseg.experiment import fast_precision
    from bustseg.models import FusionUNet
    from bustseg.task import SegmentationTask
    from bustseg.training import keep_freed_memory

    torch.set_num_threads(args.threads or torch.get_num_threads())
    keep_freed_memory()
    torch.manual_seed(0)
    arguments = yaml.safe_load(config.read_text())["model"]["network"]["init_args"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # the rows' loss (BCE) and optimiser are the task's own defaults
    task = SegmentationTask(FusionUNet(**{**arguments, "attention": attention, "weights": "none"})).to(device).train()
    optimizer: Any = task.configure_optimizers()
    precision = args.precision or fast_precision()
    mixed = torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()
    image = torch.randint(0, 256, (args.batch, 1, args.size, args.size), dtype=torch.uint8, device=device)
    mask = (torch.rand(args.batch, 1, args.size, args.size, device=device) > 0.9).float()
    before = psutil.Process().memory_info().rss
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(args.steps + 1):  # the first is a warm-up
        start = time.perf_counter()
        with mixed:
            loss = task.loss(task(image), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device == "cuda":
        peak, name = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    else:
        peak, name = peak_rss() - before, f"{platform.machine()}, {torch.get_num_threads()} threads"
    parameters = sum(parameter.numel() for parameter in task.parameters())
    return {
        "seconds": min(seconds[1:]),
        "mib": peak / 2**20,
        "parameters": parameters,
        "device": name,
        "precision": precision,
    }


def peak_rss() -> int:
    """Highest resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def compare(family: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure every kind of a family, in turn; the best of the rounds."""
    kinds = [*KINDS, *args.attention]
    best: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for kind in kinds:
            config = family / f"model_{KINDS.get(kind, KINDS['none']):02d}.yaml"
            command = [sys.executable, __file__, *sys.argv[1:], "--run", str(config), kind]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            if kind in best:
                result = {**result, **{key: min(result[key], best[kind][key]) for key in ("seconds", "mib")}}
            best[kind] = result
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).resolve().parents[1] / "configs"
    parser.add_argument("--configs", nargs="+", type=Path, default=[folder / "offline", folder / "paper"])
    parser.add_argument("--attention", nargs="*", default=[], help="further kinds, such as sk and transformer")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help="default: as fit chooses")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--run", nargs=2, metavar=("CONFIG", "ATTENTION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(Path(args.run[0]), args.run[1], args)))
        return
    results = {}
    for family in args.configs:
        results[family.name] = rows = compare(family, args)
        base = rows["none"]
        print(f"\n{family.name}: {args.size} px, batch {args.batch}, {base['precision']}, {base['device']}\n")
        print("| attention | parameters | s per step | times none | peak memory, MiB | more than none |")
        print("| --- | --- | --- | --- | --- | --- |")
        for kind, row in rows.items():
            ratio, more = row["seconds"] / base["seconds"], row["mib"] - base["mib"]
            print(
                f"| {kind} | {row['parameters']:,} | {row['seconds']:.3f} | {ratio:.2f} "
                f"| {row['mib']:.0f} | {more:+.0f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
