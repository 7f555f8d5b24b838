"""Averages of the weights over the steps of a training."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from bustseg.errors import UserError


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and BatchNorm statistics, which is what is validated and kept.

    After n updates the share of the old average is min(decay, (1 + n) / (10 + n)). With a constant decay (Lightning's
    ``EMAWeightAveraging``) the random first weights and BatchNorm's first statistics stay in the average for several
    multiples of 1 / (1 - decay) steps, and with the few hundred steps of a small data set the first epochs validate
    as if nothing had been learnt. Source of the formula: TensorFlow's ``ExponentialMovingAverage`` (``num_updates``).

    Args:
        decay: share of the old average at the end, from 0 to below 1

    Raises:
        UserError: another decay
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"the decay of the moving average is {decay}: it must lie from 0 to below 1")
        self.decay = decay
        super().__init__(avg_fn=self.average)

    def average(self, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        """The new average of one parameter or buffer, all tensors of its shape, after ``updates`` earlier ones."""
        n = int(updates)
        decay = min(self.decay, (1 + n) / (10 + n))
        return decay * average + (1 - decay) * current
