"""DPNet, a competitor of the paper's table 5."""

from __future__ import annotations

import torch
from torch import nn


class DPNet(nn.Module):
    """Images (B, C, H, W) in, logits (B, 1, H, W) out.

    Args:
        in_channels: channels of the images
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)
