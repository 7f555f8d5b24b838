"""Training throughput of one network in each precision and memory layout, in one process, interleaved.

    python benchmarks/train_step.py [--attention cbam] [--freeze] [--size 224] [--batch 16] [--steps 4] [--profile MODE]

Steps are forward, BCE, backward and Adam on random images. Prints a Markdown table; ``--profile`` prints the operations
of one mode by their own time instead.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bustseg.models import FusionUNet, use_fast_depthwise

MODES = {
    "fp32 NCHW": (False, None),
    "fp32 channels_last": (True, None),
    "bf16 autocast NCHW": (False, "autocast"),
    "bf16 autocast channels_last": (True, "autocast"),
    "the same, torch's depthwise gradients": (True, "autocast"),
    "bf16 parameters, fp32 master, channels_last": (True, "true"),
}


class Loop:
    """One mode's network, optimiser and batch."""

    def __init__(
        self,
        net: torch.nn.Module,
        mode: str,
        batch: int,
        size: int,
        device: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        last, self.precision = MODES[mode]
        layout = torch.channels_last if last else torch.contiguous_format
        self.net = copy.deepcopy(net).to(device, memory_format=layout).train()
        if mode != "the same, torch's depthwise gradients":
            use_fast_depthwise(self.net)
        self.device = device
        self.images = torch.randn(batch, 3, size, size, device=device).to(memory_format=layout)
        self.masks = (torch.rand(batch, 1, size, size, device=device) > 0.9).float()
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.master = parameters
        if self.precision == "true":
            self.master = [p.detach().clone().requires_grad_() for p in parameters]
            self.net.bfloat16()
            self.images = self.images.bfloat16()
        self.parameters = parameters
        self.optimizer = torch.optim.Adam(self.master, lr=1e-4, fused=True)
        self.seconds: list[float] = []

    def step(self) -> float:
        start = self.clock()
        auto = torch.autocast(self.device, torch.bfloat16) if self.precision == "autocast" else contextlib.nullcontext()
        with auto:
            logits = self.net(self.images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), self.masks)
        loss.backward()
        if self.precision == "true":
            for master, parameter in zip(self.master, self.parameters, strict=True):
                master.grad = parameter.grad.float() if parameter.grad is not None else None
        self.optimizer.step()
        if self.precision == "true":
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.master)
        for parameter in self.parameters:
            parameter.grad = None
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "densenet121", "efficientnet_b0"])
    parser.add_argument("--attention", default="cbam")
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--skips", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--profile", choices=list(MODES))
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread: steady on a shared machine")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads = 1
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = FusionUNet(
        args.encoders, attention=args.attention, skips=args.skips, weights="none", freeze_encoders=args.freeze
    )
    if args.profile:
        loop = Loop(net, args.profile, args.batch, args.size, device)
        loop.step()
        with torch.profiler.profile() as profile:
            loop.step()
        key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60))
        return
    loops = {mode: Loop(net, mode, args.batch, args.size, device, clock) for mode in args.modes}
    for step in range(args.steps + 1):  # in turn, so that other load on the machine affects all; the first is a warm-up
        for loop in loops.values():
            seconds = loop.step()
            if step:
                loop.seconds.append(seconds)
    slowest = min(loops["fp32 NCHW"].seconds) if "fp32 NCHW" in loops else None
    print(f"{args.encoders}, {args.attention}, {args.size} px, batch {args.batch}, {device}, {args.threads} threads\n")
    print("| mode | s per step, best | median | images per s | times fp32 NCHW |")
    print("| --- | --- | --- | --- | --- |")
    for mode, loop in loops.items():
        times = sorted(loop.seconds)
        ratio = f"{slowest / times[0]:.2f}" if slowest else ""
        print(f"| {mode} | {times[0]:.2f} | {times[len(times) // 2]:.2f} | {args.batch / times[0]:.1f} | {ratio} |")


if __name__ == "__main__":
    main()
