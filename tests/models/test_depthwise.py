"""Fast depthwise gradients are torch's own fp32 gradients up to bf16 rounding, and change nothing else."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from bustseg.models import use_fast_depthwise
from bustseg.models.depthwise import FastDepthwiseConv2d, FastDepthwiseConv2dSame


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (4, 2), (5, 1), (5, 2), (7, 1), (7, 2)])
@pytest.mark.parametrize("size", [(15, 17), (16, 16)])
def test_gradients(same, taps, stride, size):
    torch.manual_seed(0)
    padding = {} if same else {"padding": taps // 2}
    kind = Conv2dSame if same else nn.Conv2d
    slow = kind(16, 16, taps, stride, groups=16, bias=False, **padding)
    fast = use_fast_depthwise(nn.Sequential(copy.deepcopy(slow)))[0]
    assert type(fast) is (FastDepthwiseConv2dSame if same else FastDepthwiseConv2d)
    x = torch.randn(2, 16, *size)
    expected = slow(a := x.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        out = fast(b := x.clone().requires_grad_())
    assert out.dtype == torch.bfloat16
    assert "Depthwise" in type(out.grad_fn).__name__
    grad, own = torch.randn_like(expected), copy.deepcopy(slow)
    expected.backward(grad)
    out.backward(grad.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        own(c := x.clone().requires_grad_()).backward(grad.bfloat16())
    for got, want, torchs in (
        (out, expected, expected),
        (b.grad, a.grad, c.grad),
        (fast.weight.grad, slow.weight.grad, own.weight.grad),
    ):
        # a CPU without bf16 arithmetic rounds more often, in torch's own gradients as in these
        rounding = (torchs.float() - want).abs().max()
        assert (got.float() - want).abs().max() < max(0.01 * want.abs().max(), 1.5 * rounding)


def test_fp32_and_inference_take_torchs_own_path():
    layer = use_fast_depthwise(nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)))
    x = torch.randn(1, 8, 9, 9)
    assert "Depthwise" not in type(layer(x).grad_fn).__name__
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_other_convolutions_are_left_alone():
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),  # fast already
        nn.Conv2d(8, 8, 5, padding=2, bias=False),
        nn.Conv2d(8, 16, 5, padding=2, groups=8, bias=False),
        nn.Conv2d(16, 16, 5, padding=2, groups=16),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, stride=2, groups=16, bias=False),
    )
    assert {type(layer) for layer in use_fast_depthwise(net)} == {nn.Conv2d}
