"""ADU-Net, a competitor of the paper's table 5.

Source: Ejiyi, Qin, Agbesi, Ejiyi, Chikwendu, Bamisile, Onyekwere, Bamisile (2024), Attention-enriched deeper UNet
(ADU-NET) for disease diagnosis in breast ultrasound and retina fundus images, Progress in Artificial Intelligence 13,
351-366, https://doi.org/10.1007/s13748-024-00340-1.

Stated (title and bibliographic record; the article is not open): a UNet, deeper than the original, enriched with
attention, for breast ultrasound among others.

Reconstructed, everything else:

* deeper: five poolings, where UNet has four
* attention: an additive attention gate (Oktay et al. 2018, https://arxiv.org/abs/1804.03999) on every skip
* 32, 64, 128, 256, 512, 1024 channels, so that the deepest level is as wide as UNet's
* BatchNorm after each convolution; bilinear upsampling with a convolution
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from bustseg.models.layers import ConvNormAct, DoubleConv, UpConv, pad_to_multiple


class AttentionGate(nn.Module):
    """Scales the positions of a skip map by a gate from the coarser level.

    ``skip * sigmoid(psi(relu(a(skip) + b(gate))))`` with 1 x 1 convolutions and BatchNorm: (B, C, H, W) and
    (B, C, H, W) -> (B, C, H, W).

    Source: Oktay et al. 2018, https://arxiv.org/abs/1804.03999, equations 1 and 2; the gate is upsampled before, so
    that nothing is resampled here.

    Args:
        channels: C
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.skip = ConvNormAct(channels, inner, kernel=1, activation=False)
        self.gate = ConvNormAct(channels, inner, kernel=1, activation=False)
        self.psi = ConvNormAct(inner, 1, kernel=1, activation=False)

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return skip * torch.sigmoid(self.psi(F.relu(self.skip(skip) + self.gate(gate))))


class ADUNet(nn.Module):
    """Attention-enriched deeper UNet: images (B, C, H, W) in, logits (B, 1, H, W) out.

    The module's docstring says what is reconstructed.

    Images may have any size: they are padded to a multiple of 32, and the logits are cropped.

    Args:
        in_channels: channels of the images
        channels: of the levels, finest first; each level after the first halves the map
    """

    cam_layer = "up_blocks.0"
    """Layer that Grad-CAM explains by default: the last decoder block."""

    def __init__(self, in_channels: int = 3, channels: Sequence[int] = (32, 64, 128, 256, 512, 1024)) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise([in_channels, *channels]))
        levels = list(pairwise(channels))
        self.ups = nn.ModuleList(UpConv(coarse, fine) for fine, coarse in levels)
        self.gates = nn.ModuleList(AttentionGate(fine) for fine, _ in levels)
        self.up_blocks = nn.ModuleList(DoubleConv(2 * fine, fine) for fine, _ in levels)
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 2 ** len(self.ups))
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down_blocks):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for level in reversed(range(len(skips))):
            x = self.ups[level](x)
            x = self.up_blocks[level](torch.cat([self.gates[level](skips[level], x), x], 1))
        return self.head(x)[..., :height, :width]
