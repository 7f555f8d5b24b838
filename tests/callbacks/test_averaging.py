"""The moving average of the weights, against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bustseg.callbacks import MovingAverage
from bustseg.errors import UserError


def after(decay: float, values: list[float]) -> float:
    """Average of a weight that takes these values, step by step, from 0."""
    layer = nn.Linear(1, 1, bias=False)
    average = AveragedModel(layer, multi_avg_fn=MovingAverage(decay).average)
    for value in values:
        nn.init.constant_(layer.weight, value)
        average.update_parameters(layer)
    return average.module.weight.item()


def test_the_first_steps_weigh_little() -> None:
    # shares of the old average: none at the first step, then 2/11 and 3/12
    assert after(0.99, [5.0]) == pytest.approx(5)
    assert after(0.99, [5.0, 1.0, 3.0]) == pytest.approx(3 / 12 * (2 / 11 * 5 + 9 / 11 * 1) + 9 / 12 * 3)


def test_a_weight_that_stays_is_its_average_at_once() -> None:
    assert after(0.99, [100.0] + 10 * [1.0]) == pytest.approx(1, abs=0.01)


def test_the_decay_is_the_largest_share() -> None:
    average, current = torch.ones(2), torch.zeros(2)
    MovingAverage(0.9).average([average], [current], 10_000)
    assert average.tolist() == pytest.approx([0.9, 0.9])
    MovingAverage(0.0).average([average], [current], torch.tensor(10_000))
    assert average.tolist() == [0, 0]


def test_counters_are_copied() -> None:
    average, current = torch.tensor([3]), torch.tensor([8])
    MovingAverage(0.9).average([average], [current], 5)
    assert average.tolist() == [8]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(UserError, match="from 0 to below 1"):
        MovingAverage(decay)
