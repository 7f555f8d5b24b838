"""Costs of a network, as objectives of a sweep in addition to what a fit logs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer

from bustseg.task import SegmentationTask
from bustseg.training.summary import count_flops

_WARM_UP, _CALLS = 3, 20


def latency_ms(trainer: Trainer, task: SegmentationTask, size: tuple[int, int]) -> float:
    """Milliseconds from one image (H, W) to its logits, on the device and in the precision of the fit; median of 20.

    Other work on the machine, such as other workers of the sweep, increases it.
    """
    image = torch.zeros(1, 1, *size, dtype=torch.uint8, device=task.device)
    training, seconds = task.training, []
    task.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for _ in range(_WARM_UP + _CALLS):
                start = time.perf_counter()
                task(image)
                if task.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
    finally:
        task.train(training)
    return 1000 * statistics.median(seconds[_WARM_UP:])


def parameters(trainer: Trainer, task: SegmentationTask, size: tuple[int, int]) -> float:
    """Number of the network's parameters."""
    return float(sum(weight.numel() for weight in task.network.parameters()))


def gflops(trainer: Trainer, task: SegmentationTask, size: tuple[int, int]) -> float:
    """Billions of floating-point operations for one image, as `bustseg summary` counts them."""
    return count_flops(task.network, size, channels=len(task.scale.flatten())) / 1e9


Cost = Callable[[Trainer, SegmentationTask, tuple[int, int]], float]

COSTS: dict[str, Cost] = {"latency_ms": latency_ms, "parameters": parameters, "gflops": gflops}
"""Objectives that are measured once, after the fit."""
