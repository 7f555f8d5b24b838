"""Size and cost of a network, without training it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bustseg.progress import console
from bustseg.runs.checkpoint import build_data, build_task
from bustseg.training.preflight import try_size

if TYPE_CHECKING:
    from bustseg.experiment import Experiment


@torch.inference_mode()
def count_flops(network: nn.Module, image_size: tuple[int, int], channels: int = 3) -> int:
    """Floating-point operations for one image, counting a multiply-add as two; the network's mode is restored.

    Args:
        network: images (1, C, H, W) in
        image_size: (H, W)
        channels: C
    """
    training = network.training
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    network.eval()
    try:
        with counter:
            network(torch.zeros(1, channels, *image_size, device=device))
    finally:
        network.train(training)
    return counter.get_total_flops()


@torch.inference_mode()
def summarise(network: nn.Module, image_size: tuple[int, int], channels: int = 3) -> dict[str, Any]:
    """Parameters, GFLOPs and layers of a network.

    Args:
        network: images (1, C, H, W) in, logits out
        image_size: (H, W) for which the cost is counted
        channels: C

    Returns:
        ``parameters``, ``trainable``, ``frozen``; ``gflops`` of one image, counting a multiply-add as two operations;
        ``layers``, a list of name, type, output shape and parameters of the modules down to the second level
    """
    layers: list[dict[str, Any]] = []
    hooks = []
    for name, module in network.named_modules():
        if name and name.count(".") < 2:

            def record(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                shape = list(output.shape) if isinstance(output, torch.Tensor) else None
                count = sum(parameter.numel() for parameter in module.parameters())
                layers.append({"name": name, "type": type(module).__name__, "output": shape, "parameters": count})

            hooks.append(module.register_forward_hook(record))
    try:
        flops = count_flops(network, image_size, channels)
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(parameter.numel() for parameter in network.parameters())
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return {
        "network": type(network).__name__,
        "parameters": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "gflops": round(flops / 1e9, 4),
        "image_size": list(image_size),
        "layers": layers,
    }


def print_summary(result: dict[str, Any]) -> None:
    """Print the result of :func:`summarise` as tables."""
    table = Table(title=f"{result['name']} ({result['network']})")
    for column in ("layer", "type", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for layer in result["layers"]:
        shape = " x ".join(map(str, layer["output"])) if layer["output"] else ""
        table.add_row("  " * layer["name"].count(".") + layer["name"], layer["type"], shape, f"{layer['parameters']:,}")
    console.print(table)
    height, width = result["image_size"]
    console.print(
        f"parameters {result['parameters']:,}  trainable {result['trainable']:,}  frozen {result['frozen']:,}  "
        f"GFLOPs {result['gflops']:.2f} at {height} x {width} (a multiply-add is two operations)",
        highlight=False,
    )


def summary_command(experiment: Experiment, as_json: bool = False) -> int:
    """Print the layers and the cost of an experiment's network; returns the exit code."""
    task = build_task(experiment["model"])
    image_size = build_data(experiment["data"]).image_size
    try_size(task, image_size, "data.image_size")
    result = summarise(task.network, image_size, channels=len(task.scale.flatten()))
    result["name"] = experiment["tracking.run_name"] or type(task.network).__name__
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print_summary(result)
    return 0
