"""Averaging of the weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from bustseg.errors import UserError


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and BatchNorm statistics; the average is what is validated and saved.

    After n updates the share of the old average is min(decay, (1 + n) / (10 + n)). With a constant decay (Lightning's
    ``EMAWeightAveraging``) the random first weights and BatchNorm's first statistics stay in the average for several
    multiples of 1 / (1 - decay) steps, and with the few hundred steps of a small data set the first epochs validate
    as if nothing had been learned. Source of the formula: TensorFlow's ``ExponentialMovingAverage`` (``num_updates``).

    Args:
        decay: share of the old average at the end, from 0 to below 1

    Raises:
        UserError: a decay outside this range
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"the decay of the moving average is {decay}: give a value from 0 to below 1")
        self.decay = decay
        super().__init__(multi_avg_fn=self.average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning reads the module's device before the module is moved there, so the average of a network on a GPU
        # would be kept on the CPU and every step would wait for copies
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def average(self, averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        """Update averages of one kind in place, after ``updates`` earlier ones.

        Uses a few kernels for all tensors together, and never waits for the GPU: ``updates`` stays on its device.
        """
        if not averages[0].is_floating_point():  # BatchNorm's counts of batches
            torch._foreach_copy_(list(averages), list(currents))
            return
        n = torch.as_tensor(updates, dtype=torch.float32, device=averages[0].device)
        share = 1 - torch.clamp((1 + n) / (10 + n), max=self.decay)
        differences = torch._foreach_sub(list(currents), list(averages))  # noqa: SLF001 (listed in tests/test_private_parts.py)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(list(averages), differences)
