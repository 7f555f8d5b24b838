"""Building blocks that several networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvNormAct(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU: (B, C, H, W) -> (B, D, H / stride, W / stride), rounded up.

    Args:
        in_channels: C
        out_channels: D
        kernel: odd number of taps along each side
        stride: step of the convolution
        dilation: distance of the taps
        groups: number of channel groups, as in ``nn.Conv2d``
        activation: end with the ReLU
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=groups,
                bias=False,
            ),
            nn.BatchNorm2d(out_channels),
            *([nn.ReLU(inplace=True)] if activation else []),
        )


class DoubleConv(nn.Sequential):
    """UNet's level: two 3 x 3 :class:`ConvNormAct`, (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(ConvNormAct(in_channels, out_channels), ConvNormAct(out_channels, out_channels))


class UpConv(nn.Sequential):
    """Doubles a map and halves (or sets) its channels: bilinear upsampling, then a 3 x 3 :class:`ConvNormAct`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), ConvNormAct(in_channels, out_channels)
        )


def pad_to_multiple(x: torch.Tensor, step: int) -> torch.Tensor:
    """Repeat the last row and column of images (B, C, H, W) until ``step`` divides H and W."""
    height, width = x.shape[-2:]
    if height % step or width % step:
        x = F.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
    return x
