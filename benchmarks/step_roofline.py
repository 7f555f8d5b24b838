"""Breakdown of a training step's time on the CPU, and the share of the hardware's performance that each kind of layer
reaches.

    python benchmarks/step_roofline.py --config configs/paper/model_01.yaml [--size 224] [--batch 16] [--steps 3]

Every operation of a step (forward, loss, backward, optimiser) is timed as PyTorch dispatches it; a CPU operation ends
before the next begins. Arithmetic is counted by PyTorch's own formulas, memory as the bytes of an operation's inputs
and outputs, each moved once. Batch normalisation is an exception: its statistics need the whole input before the first
output, so it reads its input twice, and in the backward pass the gradient as well. The hardware's limits are measured
in the same process: a product of large matrices in the step's type, and the sum of two large arrays. A kind of layer
counts as bound by arithmetic or by memory when it reaches half of that (the roofline model, Williams et al. 2009,
doi:10.1145/1498765.1498785). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bustseg.experiment import Experiment, fast_precision
from bustseg.models import use_fast_depthwise
from bustseg.runs.checkpoint import build_task
from bustseg.training import keep_freed_memory

REACHED = 0.5
"""A kind of layer counts as bound by arithmetic or bandwidth from this share of the hardware's limit."""

_KINDS = {
    "batch normalisation": ("batch_norm",),
    "activation": (
        "relu",
        "silu",
        "sigmoid",
        "hardtanh",
        "clamp",
        "threshold",
        "gelu",
        "where",
        "gt",
        "lt",
        "le",
        "ge",
    ),
    "pooling and resizing": ("pool", "upsample", "interpolate"),
    "optimiser": ("_foreach", "_fused"),
    "concatenation and copies": ("cat", "copy", "clone", "contiguous", "slice", "fill", "zero", "full", "stack"),
    "matrix product": ("mm", "addmm", "bmm", "linear", "matmul", "scaled_dot"),
    "loss": ("binary_cross_entropy", "log_sigmoid"),
    "sums and products of elements": ("add", "mul", "div", "sub", "sum", "mean", "neg", "pow", "sqrt", "max", "min"),
}


def kind_of(name: str, arguments: tuple[Any, ...]) -> str:
    """Kind of layer that an operation belongs to."""
    if "convolution" in name:
        backward = "backward" in name
        weight = arguments[2 if backward else 1]
        groups = int(arguments[9 if backward else 8])
        if groups > 1 and weight.shape[1] == 1:
            part = "depthwise convolution"
        else:
            part = "1 x 1 convolution" if tuple(weight.shape[2:]) == (1, 1) else "dense convolution"
        return f"{part}, {'backward' if backward else 'forward'}"
    return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), "other")


def convolution_operations(arguments: tuple[Any, ...], result: Any) -> float:
    """Multiplications and additions of a convolution or its gradients; PyTorch's formula ignores groups."""
    if isinstance(result, torch.Tensor):
        return 2.0 * result.numel() * arguments[1].shape[1:].numel()
    gradient, _, weight, *_, wanted = arguments
    return 2.0 * gradient.numel() * weight.shape[1:].numel() * sum(wanted[:2])


def passes_over(name: str) -> float:
    """How often an operation moves its inputs and outputs through memory, on average over these.

    Batch normalisation reads its input twice and writes once, of 2 tensors; its backward pass reads the input and the
    gradient twice and writes once, of 3.
    """
    if "batch_norm" not in name:
        return 1.0
    return 5 / 3 if "backward" in name else 3 / 2


@dataclass
class Cost:
    """Total cost of the operations of one kind."""

    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    calls: int = 0


class Costs(TorchDispatchMode):
    """Times each operation of a thread, and counts its arithmetic and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, Cost] = defaultdict(Cost)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record its cost."""
        kwargs = kwargs or {}
        begun = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - begun
        name = func.name().removeprefix("aten::")
        cost = self.kinds[kind_of(name, args)]
        cost.seconds += seconds
        cost.calls += 1
        if "convolution" in name:
            cost.operations += convolution_operations(args, result)
        elif (count := flop_registry.get(func.overloadpacket)) is not None:
            cost.operations += count(*args, **kwargs, out_val=result)
        if not func.is_view:
            moved = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
            cost.bytes += passes_over(name) * sum(leaf.numel() * leaf.element_size() for leaf in moved)
        return result


def peak_arithmetic(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations per second of a product of two large matrices; the best of five."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: a @ b) for _ in range(5))


def peak_bandwidth(numbers: int = 1 << 25) -> float:
    """Bytes per second of the sum of two arrays that do not fit into a cache; the best of five."""
    a, b, out = (torch.zeros(numbers) for _ in range(3))
    return 12 * numbers / min(_seconds(lambda: torch.add(a, b, out=out)) for _ in range(5))


def _seconds(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def table(kinds: dict[str, Cost], steps: int, arithmetic: float, bandwidth: float) -> pd.DataFrame:
    """A row per kind of layer, the costliest first."""
    total = sum(cost.seconds for cost in kinds.values())
    rows = []
    for kind, cost in sorted(kinds.items(), key=lambda item: -item[1].seconds):
        of_arithmetic = cost.operations / cost.seconds / arithmetic
        of_bandwidth = cost.bytes / cost.seconds / bandwidth
        bound = "arithmetic" if of_arithmetic >= of_bandwidth else "memory"
        rows.append(
            {
                "kind": kind,
                "calls": cost.calls // steps,
                "ms": f"{1000 * cost.seconds / steps:.1f}",
                "share of the step": f"{cost.seconds / total:.1%}",
                "GFLOP/s": f"{cost.operations / cost.seconds / 1e9:.0f}",
                "of the product's": f"{of_arithmetic:.0%}",
                "GB/s": f"{cost.bytes / cost.seconds / 1e9:.1f}",
                "of the sum's": f"{of_bandwidth:.0%}",
                "bound by": bound if max(of_arithmetic, of_bandwidth) >= REACHED else "neither",
            }
        )
    return pd.DataFrame(rows)


def network_of(config: Path) -> nn.Module:
    """The network of a config, with random weights."""
    return build_task(Experiment.read(config)["model"]).network  # random weights: speed does not depend on them


def measure(net: nn.Module, size: int, batch: int, steps: int, bf16: bool) -> tuple[dict[str, Cost], float]:
    """Costs by kind over ``steps`` steps, and the seconds of a step without instrumentation."""
    net = net.to(memory_format=torch.channels_last).train()
    use_fast_depthwise(net)
    optimizer = torch.optim.Adam([one for one in net.parameters() if one.requires_grad], lr=1e-4, fused=True)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    masks = (torch.rand(batch, 1, size, size) > 0.9).float()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(images)
        F.binary_cross_entropy_with_logits(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    alone = min(_seconds(step) for _ in range(steps))
    with Costs() as costs:
        for _ in range(steps):
            step()
    return costs.kinds, alone


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    bf16 = "bf16" in str(fast_precision())
    arithmetic = peak_arithmetic(torch.bfloat16 if bf16 else torch.float32)
    bandwidth = peak_bandwidth()
    kinds, alone = measure(network_of(args.config), args.size, args.batch, args.steps, bf16)
    watched = sum(cost.seconds for cost in kinds.values()) / args.steps
    print(
        f"{args.config}, {args.size} px, batch {args.batch}, {'bf16' if bf16 else 'float32'}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"a step: {alone:.2f} s, {args.batch / alone:.1f} images/s; the sum of its operations: {watched:.2f} s\n"
        f"product of matrices: {arithmetic / 1e9:.0f} GFLOP/s; sum of arrays: {bandwidth / 1e9:.1f} GB/s\n"
    )
    print(table(kinds, args.steps, arithmetic, bandwidth).to_markdown(index=False))


if __name__ == "__main__":
    main()
