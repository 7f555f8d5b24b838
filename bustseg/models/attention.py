"""Attention modules of the decoder: shape (B, C, H, W) in and out.

A module is chosen by name (:data:`ATTENTIONS`) or by a callable from the number of channels to a module, so that YAML
can give ``class_path`` and ``init_args``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from bustseg.errors import UserError
from bustseg.models.layers import ConvNormAct


class CBAM(nn.Module):
    """Convolutional block attention module: channel attention, then spatial attention.

    ``sigmoid(mlp(mean(x)) + mlp(max(x)))`` scales the channels, then ``sigmoid(conv7x7([mean, max] over channels))``
    the positions. No layer has a bias: 2 C^2 / ``reduction`` + 98 parameters.

    Source: Woo et al. 2018, https://arxiv.org/abs/1807.06521.

    Args:
        channels: C
        reduction: of the channel MLP's hidden layer (the paper's counts: 8)
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden, channels, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def channel_map(self, x: torch.Tensor) -> torch.Tensor:
        """Weight of each channel: (B, C, 1, 1) in 0..1."""
        mean = x.mean((2, 3))
        # not amax: its backward pass divides the gradient among ties, which is twelve times slower on a CPU
        largest = F.adaptive_max_pool2d(x, 1).flatten(1)
        return torch.sigmoid(self.mlp(mean) + self.mlp(largest))[:, :, None, None]

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return torch.sigmoid(self.spatial(pooled))

    @torch.no_grad()
    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        """Spatial weights (B, 1, H, W) in 0..1 for this module's input ``x``."""
        return self._positions(x * self.channel_map(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.channel_map(x)
        return x * self._positions(x)


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian: ``x + W(softmax(theta(x)^T phi(x)) g(x))`` over all positions.

    The product is not scaled, as in the source. All four maps are 1 x 1 convolutions with bias and C / 2 inner
    channels, without BatchNorm: 2 C^2 + 5 C / 2 parameters. The last starts at zero, so that the block starts as the
    identity (as in the source, section 4.1). The N x N attention matrix is never stored completely: memory is
    proportional to N = H W.

    Source: Wang et al. 2018, https://arxiv.org/abs/1711.07971, equations 2 to 6.

    Args:
        channels: C
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.W = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.W.weight)
        assert self.W.bias is not None
        nn.init.zeros_(self.W.bias)

    @staticmethod
    def _tokens(x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, 1, H W, C): one head; a view if ``x`` is channels_last."""
        return x.flatten(2).transpose(1, 2).unsqueeze(1)  # not .mT: ONNX has no such operator

    @torch.no_grad()
    def attention_map(self, x: torch.Tensor) -> torch.Tensor:
        """Attention that each position receives, (B, 1, H, W), summed over all queries (mean 1)."""
        query, key = self._tokens(self.theta(x))[:, 0], self._tokens(self.phi(x))[:, 0]
        total = torch.zeros(key.shape[:2], dtype=torch.float32, device=x.device)
        for part in query.split(256, dim=1):  # a slice of the N x N matrix at a time
            total += (part @ key.mT).float().softmax(-1).sum(1)
        return total.reshape(x.shape[0], 1, *x.shape[2:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._tokens(layer(x)) for layer in (self.theta, self.phi, self.g))
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.W(y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class SelectiveKernel(nn.Module):
    """Selective-kernel convolution: paths with different receptive fields, weighted per channel from the whole map.

    Each path is a grouped 3 x 3 convolution with BatchNorm and ReLU, with its own dilation. Their sum, averaged over
    the positions, passes a bottleneck that gives each channel its weights of the paths (softmax).

    Source: Li et al. 2019, https://arxiv.org/abs/1903.06586, section 3.1, with its r = 16, L = 32, G = 32; used for
    breast ultrasound in ESKNet, Chen et al. 2024, https://doi.org/10.1016/j.eswa.2024.123265.

    Args:
        channels: C
        reduction: of the bottleneck, which has at least 32 channels
        dilations: of the paths
    """

    def __init__(self, channels: int, reduction: int = 16, dilations: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        groups, hidden = gcd(channels, 32), max(32, channels // reduction)
        self.paths = nn.ModuleList(
            ConvNormAct(channels, channels, dilation=dilation, groups=groups) for dilation in dilations
        )
        self.squeeze = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
        )
        self.select = nn.Linear(hidden, channels * len(dilations), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.stack([path(x) for path in self.paths])  # (P, B, C, H, W)
        squeezed = self.squeeze(maps.sum(0).mean((2, 3)))
        weights = self.select(squeezed).unflatten(1, (len(self.paths), -1)).softmax(1)  # (B, P, C)
        return (maps * weights.transpose(0, 1)[..., None, None]).sum(0)


class Transformer(nn.Module):
    """Transformer layers over all positions of a map, added to it.

    They are the "transformer or self-attention" of the paper's future work.

    ``x + expand(layers(reduce(x) + position(reduce(x))))``: 1 x 1 convolutions reduce the channels and restore them
    (the fused bottleneck of three encoders has 2816 channels, at which one layer would need 95 million parameters), a
    depthwise 3 x 3 convolution encodes the position (so that any size works; Chu et al. 2021,
    https://arxiv.org/abs/2102.10882). The last convolution starts at zero, so that it starts as the identity.

    Args:
        channels: C
        width: channels of the layers
        depth: number of layers
        heads: number of their attention heads
    """

    def __init__(self, channels: int, width: int = 256, depth: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.layers = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.expand.weight)
        assert self.expand.bias is not None
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.reduce(x)
        tokens = (y + self.position(y)).flatten(2).transpose(1, 2)
        return x + self.expand(self.norm(self.layers(tokens)).transpose(1, 2).unflatten(2, x.shape[2:]))


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "cbam": CBAM,
    "nonlocal": NonLocal,
    "sk": SelectiveKernel,
    "transformer": Transformer,
}
"""Attention modules by name, which a config may use instead of a ``class_path``."""


def build_attention(attention: str | Callable[[int], nn.Module], channels: int) -> nn.Module:
    """Build the attention module for a name of :data:`ATTENTIONS` or with a callable.

    Raises:
        UserError: there is no attention with that name
    """
    if not isinstance(attention, str):
        return attention(channels)
    if attention not in ATTENTIONS:
        raise UserError(f"no attention {attention!r}: choose {', '.join(ATTENTIONS)} or give a class_path")
    return ATTENTIONS[attention](channels)
