"""Networks that configs in tests name; other processes of a training import them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainNet(nn.Module):
    """Two convolutions without BatchNorm: the mean of gradients over processes is that of their joint batch.

    Args:
        fails_on: rank whose second training step raises an error
    """

    def __init__(self, fails_on: int | None = None) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 5, padding=2)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(8, 1, 3, padding=1)
        self.fails_on = fails_on
        self.steps = 0

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps == 2 and self.fails_on is not None and torch.distributed.get_rank() == self.fails_on:
                raise RuntimeError("this process was told to fail")
        return self.head(torch.relu(self.norm(self.body(image))))
