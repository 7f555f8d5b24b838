"""Activations without a second copy of their input: the same numbers, less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bustseg.models import use_lean_activations

KINDS = [nn.ReLU6, nn.SiLU, nn.Hardswish]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_torchs_own(kind: type[nn.Module]) -> None:
    own = nn.Sequential(nn.BatchNorm2d(3), kind(inplace=True), nn.Conv2d(3, 2, 1), kind(inplace=True))
    lean = use_lean_activations(copy.deepcopy(own))
    assert type(lean[1]) is not kind
    # far enough out for both cuts; whole numbers meet 0, 3 and 6 exactly
    x = torch.cat([torch.randn(2, 3, 9, 11) * 5, torch.arange(-9.0, 9).repeat(33).view(2, 3, 9, 11)])
    results = []
    for net in (own, lean):
        net[0].weight.data.fill_(4)
        given = x.clone().requires_grad_()
        y = net(given)
        y.square().sum().backward()
        results.append([y, given.grad, *(parameter.grad for parameter in net.parameters())])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", KINDS)
def test_no_second_copy_is_kept(kind: type[nn.Module]) -> None:
    def copies(layer: nn.Module) -> bool:
        kept: list[int] = []
        x = torch.randn(1000).requires_grad_() * 1  # not a leaf
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
            y = layer(x)
        assert len(kept) == 1
        return kept[0] not in (x.data_ptr(), y.data_ptr())

    assert copies(kind(inplace=True))
    assert not copies(use_lean_activations(kind(inplace=True)))


def test_at_the_cuts_the_gradient_is_zero() -> None:
    layer = use_lean_activations(nn.ReLU6(inplace=True))
    x = torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0], requires_grad=True)
    layer(x * 1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 0, 0]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")  # the older ONNX exporter traces
def test_views_and_export_take_torchs_own_way() -> None:
    layer = use_lean_activations(nn.ReLU6(inplace=True))
    x = torch.randn(4, 6, requires_grad=True)
    whole = x * 1
    layer(whole[:2]).sum().backward()
    assert torch.equal(x.grad[:2], ((x[:2] > 0) & (x[:2] < 6)).float())
    with torch.no_grad():
        y = whole.clone()
        assert layer(y) is y
    traced = torch.jit.trace(nn.Sequential(nn.Linear(6, 6), layer), torch.randn(2, 6))
    assert "hardtanh" in str(traced.inlined_graph)


def test_what_does_not_work_in_place_is_left() -> None:
    net = nn.Sequential(nn.ReLU6(), nn.SiLU(), nn.ReLU(inplace=True))
    assert [type(layer) for layer in use_lean_activations(net)] == [nn.ReLU6, nn.SiLU, nn.ReLU]
