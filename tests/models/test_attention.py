"""Attention modules against independent formulas."""

import pytest
import torch
from torch import nn

from bustseg.models import CBAM, NonLocal, SelectiveKernel, Transformer


def textbook(block: NonLocal, x: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2018, equation 6 with equation 3, the N x N matrix held."""
    theta, phi, g = (layer(x).flatten(2) for layer in (block.theta, block.phi, block.g))
    attention = torch.softmax(theta.transpose(1, 2) @ phi, dim=-1)
    y = (attention @ g.transpose(1, 2)).transpose(1, 2)
    return x + block.W(y.reshape(x.shape[0], -1, *x.shape[2:]))


def noisy(channels: int) -> NonLocal:
    block = NonLocal(channels)
    nn.init.normal_(block.W.weight, std=0.3)
    nn.init.normal_(block.W.bias)
    return block


@pytest.mark.parametrize("shape", [(2, 64, 14, 14), (1, 16, 9, 5), (2, 6, 7, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nonlocal_is_the_textbook_form(shape, layout):
    torch.manual_seed(0)
    block = noisy(shape[1])
    x = torch.randn(shape).to(memory_format=layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = block(ours), textbook(block, theirs)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_nonlocal_starts_as_the_identity():
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(NonLocal(8)(x), x)


def test_nonlocal_in_bf16():
    torch.manual_seed(0)
    block = noisy(32)
    x = torch.randn(2, 32, 14, 14).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert (out.float() - textbook(block, x)).abs().max() < 0.1


def test_nonlocal_map_is_the_mean_row_of_the_attention():
    torch.manual_seed(0)
    block = noisy(8)
    x = torch.randn(2, 8, 20, 17)
    theta, phi = block.theta(x).flatten(2), block.phi(x).flatten(2)
    attention = torch.softmax(theta.transpose(1, 2) @ phi, dim=-1)
    expected = attention.sum(1).reshape(2, 1, 20, 17)
    torch.testing.assert_close(block.attention_map(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.attention_map(x).mean(), torch.tensor(1.0))


def test_cbam_by_hand():
    block = CBAM(2, reduction=2)
    with torch.no_grad():
        block.mlp[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        block.mlp[2].weight.copy_(torch.tensor([[1.0], [2.0]]))
        block.spatial.weight.zero_()
        block.spatial.weight[0, :, 3, 3] = torch.tensor([1.0, -1.0])  # of mean and max at the position itself
    x = torch.tensor([[[[4.0, 0.0]], [[0.0, 2.0]]]])  # means 2, 1; maxima 4, 2
    # hidden: relu(2 - 1) = 1 and relu(4 - 2) = 2; channel logits (1 + 2) * (1, 2) = 3, 6
    a, b = torch.sigmoid(torch.tensor(3.0)), torch.sigmoid(torch.tensor(6.0))
    scaled = torch.stack([torch.tensor([4.0, 0.0]) * a, torch.tensor([0.0, 2.0]) * b])  # (channel, position)
    gate = torch.sigmoid(scaled.mean(0) - scaled.max(0).values)
    torch.testing.assert_close(block(x)[0, :, 0], scaled * gate)
    torch.testing.assert_close(block.attention_map(x)[0, 0, 0], gate)
    torch.testing.assert_close(block.channel_map(x).flatten(), torch.stack([a, b]))


@pytest.mark.parametrize("channels", [512, 256, 128, 64])
def test_counts(channels):
    assert sum(p.numel() for p in CBAM(channels).parameters()) == 2 * channels * channels // 8 + 98
    inner = channels // 2
    expected = 3 * (channels * inner + inner) + inner * channels + channels
    assert sum(p.numel() for p in NonLocal(channels).parameters()) == expected


def test_selective_kernel_is_the_textbook_form():
    torch.manual_seed(0)
    block = SelectiveKernel(32)
    x = torch.randn(4, 32, 9, 7)
    near, far = (path(x) for path in block.paths)  # Li et al. 2019, equations 1 to 6
    assert [path[0].dilation for path in block.paths] == [(1, 1), (2, 2)]
    s = (near + far).mean((2, 3))
    z = torch.relu(block.squeeze[1](s @ block.squeeze[0].weight.T))
    a, b = (z @ half.T for half in block.select.weight.chunk(2))
    share = (a.exp() / (a.exp() + b.exp()))[:, :, None, None]
    torch.testing.assert_close(block(x), share * near + (1 - share) * far, rtol=1e-4, atol=1e-5)


def test_selective_kernel_counts():
    # two grouped convolutions with BatchNorm, the bottleneck of 32 with BatchNorm, one row per path and channel
    expected = 2 * (256 * 256 * 9 // 32 + 2 * 256) + 256 * 32 + 2 * 32 + 32 * 2 * 256
    assert sum(p.numel() for p in SelectiveKernel(256).parameters()) == expected


def test_transformer_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    block, x = Transformer(24, width=16, depth=1, heads=2), torch.randn(2, 24, 5, 7)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.expand.weight)
    changed = x.clone()
    changed[:, :, 0, 0] += 1
    seen = (block(changed) - block(x)).abs().amax((0, 1))
    assert seen[-1, -1] > 0  # every position sees every other


def test_transformer_knows_positions():
    torch.manual_seed(0)
    block, x = Transformer(8, width=16, depth=1, heads=2), torch.randn(1, 8, 4, 4)
    nn.init.normal_(block.expand.weight)
    turned = block(x.flip(3)).flip(3)
    assert (turned - block(x)).abs().max() > 1e-3
