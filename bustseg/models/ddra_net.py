"""DDRA-Net, a competitor of the paper's table 5.

Source: Sun et al. (2024), DDRA-Net: Dual-channel deep residual attention UPerNet for breast lesions segmentation in
ultrasound images, IEEE Access 12, 43691-43703, https://doi.org/10.1109/ACCESS.2024.3373551.

Stated (title): a UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221: pyramid pooling on the coarsest map, a
feature pyramid, and the fusion of all its levels) whose deep residual encoder has two channels and attention.

Reconstructed, everything else:

* two channels: each residual block has two paths of half its width, one with plain 3 x 3 convolutions for detail, one
  with dilation 2 for context; they are concatenated
* attention: CBAM (channels, then positions; reduction 16) on the concatenation, before the shortcut is added
* deep: ResNet-34's stem and numbers of blocks, 3, 4, 6, 3 with 64, 128, 256, 512 channels
* the decoder is segmentation-models-pytorch's UPerNet decoder with 256 channels, the logits upsampled x4
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from bustseg.models.attention import CBAM
from bustseg.models.decoder import resize
from bustseg.models.layers import ConvNormAct, pad_to_multiple


class DualResidualAttention(nn.Module):
    """Residual block of two paths and attention: (B, C, H, W) -> (B, D, H / stride, W / stride).

    Args:
        in_channels: C
        out_channels: D
        stride: of the first convolutions
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        self.detail, self.context = (
            nn.Sequential(
                ConvNormAct(in_channels, half, stride=stride, dilation=dilation),
                ConvNormAct(half, half, dilation=dilation, activation=False),
            )
            for dilation in (1, 2)
        )
        self.attention = CBAM(out_channels, reduction=16)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else ConvNormAct(in_channels, out_channels, 1, stride=stride, activation=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attention(torch.cat([self.detail(x), self.context(x)], 1))
        return F.relu(y + self.shortcut(x))


class AveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, which every exporter supports: (B, C, H, W) -> (B, C, n, n).

    ONNX has no adaptive pooling; bin i of n covers rows floor(i H / n) to ceil((i + 1) H / n).

    Args:
        bins: n
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def _means(self, length: int) -> list[list[float]]:
        rows = []
        for index in range(self.bins):
            first, last = index * length // self.bins, -(-(index + 1) * length // self.bins)
            rows.append([float(first <= place < last) / (last - first) for place in range(length)])
        return rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (
            torch.tensor(self._means(int(length)), dtype=x.dtype, device=x.device) for length in x.shape[-2:]
        )
        return rows @ x @ columns.t()


class DDRANet(nn.Module):
    """Dual-channel deep residual attention UPerNet: images (B, C, H, W) in, logits (B, 1, H, W) out.

    The module's docstring says what is reconstructed.

    Images may have any size: they are padded to a multiple of 32, and the logits are cropped.

    Args:
        in_channels: channels of the images
        channels: of the four stages (strides 4, 8, 16, 32)
        depths: blocks of each stage
        decoder_channels: channels of the pyramid
    """

    cam_layer = "decoder.fusion_block"
    """Layer that Grad-CAM explains by default: the input of the head."""

    def __init__(
        self,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        decoder_channels: int = 256,
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, channels[0], kernel=7, stride=2)
        self.stages = nn.ModuleList()
        for level, ((before, after), depth) in enumerate(zip(pairwise([channels[0], *channels]), depths, strict=True)):
            first = DualResidualAttention(before, after, stride=2 if level else 1)
            self.stages.append(nn.Sequential(first, *(DualResidualAttention(after, after) for _ in range(depth - 1))))
        self.decoder = UPerNetDecoder([in_channels, channels[0], *channels], decoder_channels=decoder_channels)
        for block in self.decoder.psp.blocks:
            assert isinstance(block, nn.Sequential)
            pool = block[0]
            assert isinstance(pool, nn.AdaptiveAvgPool2d)
            assert isinstance(pool.output_size, int)
            block[0] = AveragePool(pool.output_size)
        self.head = nn.Conv2d(decoder_channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 32)
        maps = [x, self.stem(x)]
        y = F.max_pool2d(maps[-1], 3, stride=2, padding=1)
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        return resize(self.head(self.decoder(maps)), x.shape[-2:])[..., :height, :width]
