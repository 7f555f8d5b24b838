"""Training steps with torch's own in-place activations and with `use_lean_activations`, interleaved in one process.

    python benchmarks/lean_activations.py --configs configs/flagship/grouped.yaml configs/paper/model_01.yaml

Steps are forward, the config's loss and backward, on random images with random weights, in the precision that a fit
would use. Prints a Markdown table: the median time of a step, the ratio, and the megabytes that are kept from forward
to backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import yaml

from bustseg.experiment import fast_precision
from bustseg.models import activations
from bustseg.runs.checkpoint import build_task
from bustseg.task import SegmentationTask
from bustseg.training import keep_freed_memory


def step(task: SegmentationTask, image: torch.Tensor, mask: torch.Tensor, half: bool) -> tuple[float, float]:
    """Seconds of one step, and the megabytes that autograd has saved."""
    saved: dict[int, int] = {}
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()), t)[1], lambda t: t
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = task(image)
        loss = task.loss(logits.float(), mask)
    loss.backward()
    seconds = time.perf_counter() - started
    task.zero_grad(set_to_none=True)
    return seconds, sum(saved.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    keep_freed_memory()
    half = fast_precision() == "bf16-mixed"
    image = torch.randint(256, (args.batch, 1, args.size, args.size), dtype=torch.uint8)
    mask = torch.randint(2, image.shape).float()
    print(f"{args.size} px, batch {args.batch}, {torch.get_num_threads()} threads, {fast_precision()}\n")
    print("| config | torch's own, s | lean, s | times as fast | saved for backward, MiB | lean, MiB |")
    print("| --- | --: | --: | --: | --: | --: |")
    for config in args.configs:
        model = yaml.safe_load(Path(config).read_text())["model"]
        model["network"]["init_args"]["weights"] = "none"
        own, lean = (build_task(model).train() for _ in range(2))
        for layer in own.network.modules():
            if type(layer) in activations.LEAN.values():
                layer.__class__ = type(layer).__base__
        times: dict[bool, list[float]] = {True: [], False: []}
        memory = {}
        for number in range(args.rounds + 1):
            for is_lean, task in ((False, own), (True, lean)):
                seconds, memory[is_lean] = step(task, image, mask, half)
                if number:  # the first one is a warm-up
                    times[is_lean].append(seconds)
        before, after = statistics.median(times[False]), statistics.median(times[True])
        cells = [
            f"{before:.3f}",
            f"{after:.3f}",
            f"{before / after:.2f}",
            f"{memory[False]:.0f}",
            f"{memory[True]:.0f}",
        ]
        print("| " + " | ".join([config, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
