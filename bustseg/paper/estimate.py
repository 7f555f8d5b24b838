"""Estimate of the cost of a fit (parameters and seconds) from one training step on random images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from bustseg.callbacks.frozen import SplitNetwork, size_gib, usable
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.runs.checkpoint import build_task
from bustseg.task import SegmentationTask

_CPU_IMAGES = 4
"""Images in the measured step on a CPU, where the time per image hardly depends on it; a GPU gets a whole batch."""


@dataclass(frozen=True)
class Cost:
    """The cost of a network on this machine.

    Attributes:
        parameters: number of parameters
        trainable: number of trained parameters
        train: seconds of a training step per image
        evaluate: seconds of an evaluation per image
        encode: seconds per image of frozen encoders whose features are cached; then the two above do not include them
        scale: image side in training as a fraction of the full side, by the first epoch that it applies to
    """

    parameters: int
    trainable: int
    train: float
    evaluate: float
    encode: float
    scale: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})

    def fit(self, epochs: int, images: Mapping[str, int]) -> float:
        """Seconds of a fit of ``epochs``, with ``train`` and ``val`` images."""
        starts = sorted(self.scale)
        # the time of a step is proportional to the area of its images
        whole = sum(
            (min(end, epochs) - min(start, epochs)) * self.scale[start] ** 2
            for start, end in zip(starts, [*starts[1:], epochs], strict=True)
        )
        train = self.train * images["train"] * whole
        return self.encode * (images["train"] + images["val"]) + train + epochs * self.evaluate * images["val"]

    def test(self, images: Mapping[str, int]) -> float:
        """Seconds of a test that scores all subsets and explains the test images, not counting figures."""
        seen = images["train"] + images["val"] + images["test"]
        return (self.encode + self.evaluate) * seen + (self.encode + self.train) * images["test"]


def measure_cost(config: Mapping[str, Any], data: UltrasoundDataModule) -> Cost:
    """Time one step of a configuration's task after a warm-up step; weights and images are random.

    Args:
        config: a fit's complete configuration
        data: its data, set up
    """
    trainer = config["trainer"]
    gpu = torch.cuda.is_available() and trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    state = torch.get_rng_state()
    task = build_task(config["model"]).to(device)
    batch = data.batch_size if gpu else min(data.batch_size, _CPU_IMAGES)
    images = torch.randint(0, 256, (batch, 1, *data.image_size), dtype=torch.uint8, device=device)
    mask = torch.zeros(batch, 1, *data.image_size, dtype=torch.uint8, device=device)
    mask[..., ::2, ::2] = 1
    precision = str(trainer.get("precision"))
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)

    def autocast() -> Any:
        return torch.autocast(device.type, half) if half is not None else nullcontext()

    features = None
    encode = 0.0
    limit = (config.get("frozen_features") or {}).get("max_gib", 0)
    if usable(task, data) and isinstance(task.network, SplitNetwork):
        network = task.network
        network.train()

        def look() -> list[torch.Tensor]:
            with torch.no_grad(), autocast():
                return network.encode(task.normalise(images))

        found = look()
        if size_gib(found, len(data.indices["train"]) + len(data.indices["val"])) <= limit:
            encode, features = _seconds(look, device), found
    given: Any = {"image": images, **({"features": features} if features is not None else {})}
    optimizer = task.optimizer([parameter for parameter in task.parameters() if parameter.requires_grad])

    def step() -> None:
        with autocast():
            loss = task.loss(task.logits(given), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def score() -> None:
        with torch.inference_mode(), autocast():
            task.logits(given)

    task.train()
    train = _seconds(step, device)
    task.eval()
    evaluate = _seconds(score, device)
    torch.set_rng_state(state)
    return Cost(*count_parameters(task), train / batch, evaluate / batch, encode / batch, task.train_scale)


def count_parameters(task: SegmentationTask) -> tuple[int, int]:
    """Numbers of all and of trained parameters of a task's network."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in task.network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second call."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started
