"""DPNet, a competitor of the paper's table 5.

Source: Liu, Liu, Lin (2024), DPNet: a dual-attention patching network for breast tumor segmentation in an ultrasound
image, Multimedia Systems 30 (6), https://doi.org/10.1007/s00530-024-01562-y.

Stated (abstract; the article is not open): a dual-attention structure with a fusion that integrates global context and
local details; the spatial feature aggregation block (SFA) has a global and a local attention pathway, which suppress
what is irrelevant and join long-range dependencies with fine-grained features; the space-channel position hybrid block
(SCPH) enlarges the receptive field and fuses spatial and channel positional information.

Reconstructed, everything else:

* a UNet of five levels (32, 64, 128, 256, 512 channels) whose skips pass an SFA each, with one SCPH at its bottom
* SFA, global path: the map is averaged over patches (the "patching" of the name), so that every level has one token per
  16 x 16 pixels of the image; self-attention among them gives a gate that is upsampled to the map. Local path: a
  depthwise 3 x 3 and a 1 x 1 convolution give a gate per pixel. Both gated maps are concatenated, fused by a 1 x 1
  convolution, and added to the map
* SCPH: 3 x 3 convolutions with dilation 1, 2 and 3 are summed, then scaled by gates along the rows, along the columns
  (coordinate attention, Hou et al. 2021, https://arxiv.org/abs/2103.02907) and over the channels, and added to the map
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from bustseg.models.decoder import resize
from bustseg.models.layers import ConvNormAct, DoubleConv, UpConv, pad_to_multiple


class SpatialFeatureAggregation(nn.Module):
    """A global and a local attention path over a map, fused: (B, C, H, W) in and out.

    Args:
        channels: C
        patch: pixels of the map along each side of a patch; it must divide H and W
    """

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        inner = max(1, channels // 2)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.local = nn.Sequential(
            ConvNormAct(channels, channels, groups=channels), nn.Conv2d(channels, channels, 1), nn.Sigmoid()
        )
        self.fuse = ConvNormAct(2 * channels, channels, kernel=1, activation=False)

    def global_gate(self, x: torch.Tensor) -> torch.Tensor:
        """Gate of each position and channel in 0..1, (B, C, H, W), from attention among the patches."""
        patches = F.avg_pool2d(x, self.patch) if self.patch > 1 else x
        query, key, value = (
            layer(patches).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2)
        return torch.sigmoid(resize(seen.reshape(patches.shape), x.shape[-2:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x * self.global_gate(x), x * self.local(x)], 1)
        return F.relu(x + self.fuse(both))


class SpaceChannelPosition(nn.Module):
    """Dilated convolutions, scaled by gates over positions and channels: (B, C, H, W) in and out.

    Args:
        channels: C
        reduction: of the gates' hidden layers
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.context = nn.ModuleList(ConvNormAct(channels, channels, dilation=dilation) for dilation in (1, 2, 3))
        self.position = ConvNormAct(channels, hidden, kernel=1)
        self.row = nn.Conv2d(hidden, channels, 1)
        self.column = nn.Conv2d(hidden, channels, 1)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.stack([convolution(x) for convolution in self.context]).sum(0)
        # rows and columns share a layer, so that they are encoded in the same way (coordinate attention)
        rows, columns = y.mean(3, keepdim=True), y.mean(2, keepdim=True).transpose(2, 3)
        encoded = self.position(torch.cat([rows, columns], 2))
        rows, columns = encoded[:, :, : y.shape[2]], encoded[:, :, y.shape[2] :].transpose(2, 3)
        gate = torch.sigmoid(self.row(rows)) * torch.sigmoid(self.column(columns))
        return x + y * gate * self.channel(y.mean((2, 3)))[:, :, None, None]


class DPNet(nn.Module):
    """Dual-attention patching network: images (B, C, H, W) in, logits (B, 1, H, W) out.

    The module's docstring says what is reconstructed.

    Images may have any size: they are padded to a multiple of 16, and the logits are cropped.

    Args:
        in_channels: channels of the images
        channels: of the levels, finest first; each level after the first halves the map
    """

    cam_layer = "up_blocks.0"
    """Layer that Grad-CAM explains by default: the last decoder block."""

    def __init__(self, in_channels: int = 3, channels: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise([in_channels, *channels]))
        levels = list(pairwise(channels))
        self.skips = nn.ModuleList(
            SpatialFeatureAggregation(fine, 2 ** (len(levels) - level)) for level, (fine, _) in enumerate(levels)
        )
        self.bottom = SpaceChannelPosition(channels[-1])
        self.ups = nn.ModuleList(UpConv(coarse, fine) for fine, coarse in levels)
        self.up_blocks = nn.ModuleList(DoubleConv(2 * fine, fine) for fine, _ in levels)
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 2 ** len(self.ups))
        maps: list[torch.Tensor] = []
        for level, block in enumerate(self.down_blocks):
            x = block(F.max_pool2d(x, 2) if level else x)
            maps.append(x)
        x = self.bottom(maps.pop())
        for level in reversed(range(len(maps))):
            skip = self.skips[level](maps[level])
            x = self.up_blocks[level](torch.cat([skip, self.ups[level](x)], 1))
        return self.head(x)[..., :height, :width]
