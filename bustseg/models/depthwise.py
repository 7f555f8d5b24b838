"""Faster bf16 gradients of depthwise convolutions on CPUs.

oneDNN (seen with torch 2.15, AVX-512 bf16) has no fast kernel for two of them and uses a reference one that is up to
fifty times slower: the input's gradient when the stride is not 1, and the weight's gradient when the kernel is larger
than 3 x 3. EfficientNet-B0 has eleven such layers, which took a tenth of the time of a training step of the paper's
network. Both gradients can be computed with the fast kernels: the first as the gradient of the convolution with stride
1, most of whose output gradients are zero; the second in tiles of 3 x 3 taps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, pad_same
from torch import nn
from torch.autograd.function import once_differentiable

_Pair = tuple[int, int]


def _backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: _Pair, padding: _Pair, mask: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    channels = x.shape[1]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), channels, (*mask, False)
    )
    return gradients[0], gradients[1]


class _DepthwiseConv(torch.autograd.Function):
    """``conv2d(x, weight, groups=C)`` with x (B, C, H, W), weight (C, 1, k, k), and the gradients above."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: _Pair, padding: _Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = _input_gradient(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None


def _input_gradient(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: _Pair, padding: _Pair
) -> torch.Tensor:
    if stride != (1, 1):
        batch, channels, *size = x.shape
        height, width = (n + 2 * p - k + 1 for n, p, k in zip(size, padding, weight.shape[2:], strict=True))
        spread = grad.new_zeros(batch, height, width, channels)
        spread[:, :: stride[0], :: stride[1]] = grad.permute(0, 2, 3, 1)
        grad = spread.permute(0, 3, 1, 2)
    return _backward(grad, x, weight, (1, 1), padding, (True, False))[0]


def _weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: _Pair, padding: _Pair
) -> torch.Tensor:
    taps = weight.shape[2:]
    if min(taps) < 3 or max(taps) == 3:
        return _backward(grad, x, weight, stride, padding, (False, True))[1]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    tile = weight.new_empty(weight.shape[0], 1, 3, 3)
    height, width = (s * (n - 1) + 3 for s, n in zip(stride, grad.shape[2:], strict=True))
    result = torch.empty_like(weight)
    for i in _tiles(taps[0]):
        for j in _tiles(taps[1]):
            part = x[:, :, i : i + height, j : j + width]
            result[:, :, i : i + 3, j : j + 3] = _backward(grad, part, tile, stride, (0, 0), (False, True))[1]
    return result


def _tiles(taps: int) -> list[int]:
    """First taps of the tiles of three that cover ``taps``; they may overlap."""
    return sorted({min(first, taps - 3) for first in range(0, taps, 3)})


def _depthwise(layer: nn.Conv2d, x: torch.Tensor, padding: _Pair) -> torch.Tensor | None:
    """The convolution with fast gradients, or None where torch's own is as fast."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype != torch.bfloat16 or not (x.requires_grad or layer.weight.requires_grad):
        return None
    stride = (layer.stride[0], layer.stride[1])
    return _DepthwiseConv.apply(x.to(dtype), layer.weight.to(dtype), stride, padding)


class FastDepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` with fast bf16 gradients on CPUs; elsewhere it is ``nn.Conv2d``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = _depthwise(self, input, (int(self.padding[0]), int(self.padding[1])))
        return super().forward(input) if y is None else y


class FastDepthwiseConv2dSame(Conv2dSame):
    """The same for timm's convolution with TensorFlow's padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        y = _depthwise(self, padded, (0, 0))
        return super().forward(x) if y is None else y  # type: ignore[no-untyped-call]


def use_fast_depthwise(net: nn.Module) -> nn.Module:
    """Replace, in place, every depthwise convolution of ``net`` that has a slow bf16 gradient by a faster one.

    Parameters, their names, and the results (up to bf16 rounding) do not change. GPUs, fp32, inference and export are
    not affected.
    """
    fast = {nn.Conv2d: FastDepthwiseConv2d, Conv2dSame: FastDepthwiseConv2dSame}
    for layer in net.modules():
        if (
            type(layer) in fast
            and isinstance(layer, nn.Conv2d)
            and layer.groups == layer.in_channels == layer.out_channels > 1
            and (layer.stride != (1, 1) or max(layer.kernel_size) > 3)
            and layer.bias is None
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = fast[type(layer)]
    return net
