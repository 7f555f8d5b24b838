"""The decoder: depthwise separable blocks with attention, from fused features to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from bustseg.models.attention import build_attention


class DSCBlock(nn.Sequential):
    """Depthwise separable convolution: 3 x 3 depthwise, BatchNorm, ReLU6, 1 x 1 pointwise, BatchNorm, ReLU6.

    (B, C, H, W) -> (B, D, H, W); no biases: 11 C + C D + 2 D parameters (2 C of them the first BatchNorm's).

    Args:
        in_channels: C
        out_channels: D
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )


def resize(x: torch.Tensor, size: Sequence[int], mode: str = "bilinear") -> torch.Tensor:
    """Resize maps (B, C, H, W) to ``size`` (H, W) with half-pixel centres; unchanged if they already have it."""
    if x.shape[-2:] == torch.Size(size):
        return x
    align = None if mode == "nearest" else False
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align)


class PresenceGate(nn.Module):
    """Estimates from the bottleneck whether an image shows a lesion: (B, C, H, W) -> logits (B, 1, 1, 1).

    A pixel then belongs to a lesion with probability sigmoid(pixel) * sigmoid(presence). It is trained by the masks
    alone: on an image without a lesion every pixel lowers the same gate, instead of only its own logit. Aumente-Maestro
    et al. 2025 (multi-task on BUSI) found that a classification branch keeps normals empty.

    Args:
        channels: C
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)
        # initially open, so that the pixels learn as without it
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean((2, 3)))[:, :, None, None]


def gated(pixel: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
    """Logits of the product of two probabilities, from their logits (broadcastable shapes); exact and stable.

    1 / p - 1 of p = sigmoid(a) sigmoid(b) is exp(-a) + exp(-b) + exp(-a - b).
    """
    pixel, presence = pixel.float(), presence.float()
    return -_logaddexp(_logaddexp(-pixel, -presence), -pixel - presence)


def _logaddexp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``torch.logaddexp``, which torch's older ONNX exporter does not support."""
    return b + F.softplus(a - b)


class DetectionHead(nn.Sequential):
    """Where in an image there are lesions at all: features (B, C, h, w) -> logits (B, 1, h, w), for coarse maps.

    A mask's extent and whether there is anything to outline are learned from different images: the first from lesions,
    the second from normal tissue above all. With one map for both, what keeps normals empty also takes from the masks.

    Args:
        channels: C
    """

    def __init__(self, channels: int) -> None:
        super().__init__(DSCBlock(channels, channels), nn.Conv2d(channels, 1, 1))


REACH = 3
"""Cells by which a detection reaches beyond itself, so that it does not cut the border of a mask."""


def limited(pixel: torch.Tensor, detection: torch.Tensor) -> torch.Tensor:
    """The lower of the pixels' logits (B, 1, H, W) and of the highest detection (B, 1, h, w) nearby."""
    nearby = F.max_pool2d(detection.float(), 2 * REACH + 1, stride=1, padding=REACH)
    return torch.minimum(pixel.float(), resize(nearby, pixel.shape[-2:]))


class DSCDecoder(nn.Module):
    """Fused features at the coarsest stride -> logits at image size.

    Each block is followed by attention, then by x2 upsampling (at 224 px attention runs at 7, 14, 28, 56). Without
    skips the blocks end at stride 4 and the head's logits are upsampled twice, x2 each. With skips, the maps of the
    next finer stride are concatenated before each further block, and one more block (half the channels, no attention)
    takes those of stride 2.

    Args:
        in_channels: channels of the fused features
        skip_channels: channels of the skip maps at stride 16, 8, 4, 2 (0: none there); empty for no skips
        channels: output channels of the blocks
        attention: a name or a callable, see :func:`bustseg.models.attention.build_attention`
        upsample: ``bilinear`` or ``nearest``
        classes: number of logit maps
        supervised: give every block except the last its own head, for :attr:`level_logits`
        detect: a :class:`DetectionHead` on the block of stride 8 (the last one if there are fewer), which limits the
            logits outside training and is learned from :attr:`detection_logits`
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: Sequence[int] = (),
        channels: Sequence[int] = (512, 256, 128, 64),
        attention: str | Callable[[int], nn.Module] = "none",
        upsample: str = "bilinear",
        classes: int = 1,
        supervised: bool = False,
        detect: bool = False,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.level_logits: list[torch.Tensor] = []
        """Logits (B, classes, h, w) of the coarser blocks of the last training step, where they have heads."""
        self.detection_logits: torch.Tensor | None = None
        """Logits (B, 1, h, w) of the detection head in the last training step."""
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        outputs = [*channels, max(channels[-1] // 2, 1)] if skip_channels else list(channels)
        skips = [0, *skip_channels] if skip_channels else [0] * len(outputs)
        for level, out_channels in enumerate(outputs):
            self.blocks.append(DSCBlock(in_channels + skips[level], out_channels))
            plain = level >= len(channels)
            self.attentions.append(build_attention("none" if plain else attention, out_channels))
            in_channels = out_channels
        self.head = nn.Conv2d(in_channels, classes, 1)
        self.level_heads = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in outputs[:-1]) if supervised else None
        self.detect_level = min(2, len(outputs) - 1)
        self.detector = DetectionHead(outputs[self.detect_level]) if detect else None

    def forward(
        self,
        x: torch.Tensor,
        skips: Sequence[torch.Tensor | None],
        size: Sequence[int],
        presence: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, classes, H, W).

        Args:
            x: fused features at the coarsest stride
            skips: skip maps, one for each of ``skip_channels``, None where that is 0
            size: (H, W) of the logits
            presence: logits (B, 1, 1, 1) that the image shows a lesion, which gate the pixels
        """
        sizes = [_coarser(size, level) for level in range(5)][::-1]  # strides 16, 8, 4, 2, 1
        levels: list[torch.Tensor] = []
        detection: torch.Tensor | None = None
        for level, (block, attention) in enumerate(zip(self.blocks, self.attentions, strict=True)):
            if level:
                x = resize(x, sizes[level - 1], self.upsample)
                skip = skips[level - 1] if skips else None
                if skip is not None:
                    x = torch.cat([x, resize(skip, x.shape[-2:])], 1)
            x = attention(block(x))
            if self.level_heads is not None and self.training and level < len(self.level_heads):
                levels.append(self.level_heads[level](x))
            if self.detector is not None and level == self.detect_level:
                detection = self.detector(x)
        self.level_logits = levels
        self.detection_logits = detection if self.training else None
        # a 1 x 1 convolution and an interpolation commute (the interpolation's weights sum to one): upsampling the
        # head's single channel instead of the last block's 64 gives the same logits in a fraction of the time
        x = self.head(x)
        if presence is not None:
            x = gated(x, presence)
        if detection is not None and not self.training:
            x = limited(x, detection)
        for finer in sizes[len(self.blocks) - 1 :]:
            x = resize(x, finer, self.upsample)
        return x


def _coarser(size: Sequence[int], halvings: int) -> tuple[int, int]:
    step = 2**halvings
    return -(-size[0] // step), -(-size[1] // step)
