"""In-place activations that keep no second copy of their input for the gradient.

torch computes the gradients of ReLU6, SiLU and Hardswish from their *input*; in place, it therefore copies the input
first, on every device, and needs as much memory as out of place. EfficientNets and MobileNets use them throughout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class _ReLU6(torch.autograd.Function):
    """In-place ReLU6, any shape, with the gradient from the output: it is 0 or 6 only where the input was clipped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)


def _differentiated(x: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and not (torch.jit.is_tracing() or torch.compiler.is_compiling())


class LeanReLU6(nn.ReLU6):
    """``nn.ReLU6`` in place, without the copy."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if _differentiated(input) and not input._is_view():  # noqa: SLF001 (listed in tests/test_private_parts.py)
            return _ReLU6.apply(input)
        return super().forward(input)


class LeanSiLU(nn.SiLU):
    """``nn.SiLU`` that works in place only where no gradient is asked for."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.silu(input, inplace=not _differentiated(input))


class LeanHardswish(nn.Hardswish):
    """``nn.Hardswish`` that works in place only where no gradient is asked for."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.hardswish(input, inplace=not _differentiated(input))


LEAN: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU6: LeanReLU6,
    nn.SiLU: LeanSiLU,
    nn.Hardswish: LeanHardswish,
}


def use_lean_activations(net: nn.Module) -> nn.Module:
    """Replace, in place, every activation of ``net`` that would copy its input in training by one that does not.

    Values and gradients are unchanged, bit by bit. Activations that do not work in place are left alone.
    """
    for layer in net.modules():
        if type(layer) in LEAN and getattr(layer, "inplace", False):
            layer.__class__ = LEAN[type(layer)]
    return net
