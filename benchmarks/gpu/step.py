"""A training step and an inference on a GPU: eager, compiled, and as one CUDA graph.

    python benchmarks/gpu/step.py --configs configs/paper/model_01.yaml configs/flagship/grouped.yaml [--batch 16 64]

Images are random and on the device, so no loader is measured. A step is normalisation, forward, loss, backward
and optimiser of the config's own task under bf16 autocast, NHWC. Prints a Markdown table: images per second (median of
three rounds), the ratio to eager, the share of the GPU's peak (operations counted by torch's own counter, three times
the forward; 989 TFLOP/s in bf16 for an H100 or H200), and peak memory. What cannot run is listed with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from bustseg.task import SegmentationTask
from bustseg.training import untrained

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations per second according to the data sheet, for GPUs whose name contains the key."""


class Step:
    """A task with its optimiser and a fixed batch on the device."""

    def __init__(self, config: str, batch: int, size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.task: SegmentationTask = untrained(Path(config))[0].to(device).train()
        self.device = device
        self.images = torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8, device=device)
        self.masks = (torch.rand(batch, 1, size, size, device=device) > 0.9).to(torch.uint8)
        parameters = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        capturable = {"capturable": True} if device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True, **capturable)
        self.network: Callable[[torch.Tensor], torch.Tensor] = self.task.network

    def train(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            loss = self.task.loss(self.network(self.task.normalise(self.images)), self.masks)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def infer(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            self.network(self.task.normalise(self.images))

    def operations(self) -> int:
        """Floating-point operations of a forward pass."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.task.network(self.task.normalise(self.images))
        return counter.get_total_flops()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(action: Callable[[], None], images: int, device: torch.device, seconds: float) -> float:
    """Images per second, the median of three rounds."""
    for _ in range(3):
        action()
    rates = []
    for _ in range(3):
        synchronise(device)
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < seconds or calls < 3:
            action()
            calls += 1
            if calls % 8 == 0:
                synchronise(device)
        synchronise(device)
        rates.append(calls * images / (time.perf_counter() - started))
    return statistics.median(rates)


def captured(step: Step) -> Callable[[], None]:
    """The whole training step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.train()
    return graph.replay


def measure(config: str, batch: int, size: int, seconds: float, variants: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = next((rate for name, rate in PEAK.items() if name in gpu), None)
    eager: dict[str, float] = {}
    for variant in variants:
        for kind in ("train", "infer"):
            if variant == "graph" and (kind == "infer" or device.type != "cuda"):
                continue
            started = time.perf_counter()
            try:
                step = Step(config, batch, size, device)
                operations = step.operations()
                if kind == "infer":
                    step.task.eval()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                if variant == "compiled":
                    step.network = torch.compile(step.task.network)
                action = getattr(step, kind)
                rate = speed(captured(step) if variant == "graph" else action, batch, device, seconds)
            except Exception as error:
                reason = " ".join(str(error).split())[:100]
                print(
                    f"| {Path(config).stem} | {batch} | {kind} | {variant} | {type(error).__name__}: {reason} | | | | |"
                )
                continue
            memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
            eager.setdefault(kind, rate)
            share = f"{100 * rate / batch * operations * (3 if kind == 'train' else 1) / peak:.1f} %" if peak else ""
            took = time.perf_counter() - started
            print(
                f"| {Path(config).stem} | {batch} | {kind} | {variant} | {rate:.0f} | {rate / eager[kind]:.2f} "
                f"| {share} | {memory:.2f} GiB | {took:.0f} s |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of the three rounds")
    parser.add_argument("--variants", nargs="+", default=["eager", "graph", "compiled"])
    args = parser.parse_args()
    print("| config | batch | what | variant | images/s | times eager | share of peak | memory | took |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for config in args.configs:
        for batch in args.batch:
            measure(config, batch, args.size, args.seconds, args.variants)


if __name__ == "__main__":
    main()
