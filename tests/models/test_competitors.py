"""Parts of the competitors against independent formulas."""

import pytest
import timm
import torch
from torch import nn

from bustseg.errors import WeightsError
from bustseg.models import SwinUNet
from bustseg.models.adu_net import AttentionGate
from bustseg.models.ddra_net import AveragePool
from bustseg.models.dpnet import SpaceChannelPosition, SpatialFeatureAggregation
from bustseg.models.swin_unet import PatchExpand

SWIN_T = "swin_tiny_patch4_window7_224"


def block(channels: int) -> int:
    """Parameters of a Swin block (Liu et al. 2021): LayerNorms, QKV, projection, MLP of ratio 4, 169 biases."""
    return 12 * channels**2 + 13 * channels + 13 * 13 * channels // 32


def test_swin_unet_has_the_published_size():
    widths = (96, 192, 384, 768)
    embedding = 3 * 16 * 96 + 96 + 2 * 96
    merging = sum(8 * c * c + 8 * c for c in widths[:3])
    encoder = embedding + merging + 2 * sum(block(c) for c in widths) + 2 * 768
    expanding = sum(2 * c * c + c for c in widths[1:])
    reducing = sum(2 * c * c + c for c in widths[:3])
    decoder = expanding + reducing + 2 * sum(block(c) for c in widths[:3]) + 2 * 96
    final = 96 * 16 * 96 + 2 * 96
    net = SwinUNet(weights="none")
    assert sum(p.numel() for p in net.parameters()) == encoder + decoder + final + 96 == 27_168_132


def test_patch_expand_puts_channels_into_space():
    layer = PatchExpand(4, 2)
    layer.norm = nn.Identity()
    with torch.no_grad():
        layer.expand.weight.copy_(torch.arange(8.0)[:, None].expand(8, 4))
    out = layer(torch.full((1, 1, 1, 4), 0.25))
    # outputs 0, 1 to the top left, 2, 3 to the top right, 4, 5 to the bottom left, 6, 7 to the bottom right
    assert out.shape == (1, 2, 2, 2)
    assert out[0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_swin_unet_takes_the_first_blocks_of_swin_t(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model(SWIN_T).state_dict()
    torch.save(state, tmp_path / "swin.pth")
    encoder = SwinUNet(weights=str(tmp_path / "swin.pth")).encoder.state_dict()
    assert "layers.2.blocks.2.norm1.weight" in state
    assert "layers.2.blocks.2.norm1.weight" not in encoder
    assert all(torch.equal(value, state[key]) for key, value in encoder.items())


def test_swin_unet_weights_from_timm(monkeypatch):
    torch.manual_seed(0)
    create, made = timm.create_model, []

    def create_model(name, pretrained=False, **options):
        made.append(create(name, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create_model)
    encoder = SwinUNet(weights="imagenet").encoder
    assert encoder is made[0]
    assert torch.equal(encoder.layers[3].blocks[1].mlp.fc1.weight, made[1].layers[3].blocks[1].mlp.fc1.weight)


def test_swin_unet_weights_that_cannot_be_had(monkeypatch):
    create = timm.create_model

    def create_model(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(WeightsError, match=r"cannot get ImageNet weights of timm/swin_tiny\S* \(no network\)"):
        SwinUNet()


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(7, 7), (2, 3), (13, 6)])
def test_average_pool_is_adaptive_pooling(bins, size):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(AveragePool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x), rtol=1e-5, atol=1e-6)


def test_attention_gate_scales_positions_alone():
    torch.manual_seed(0)
    gate, skip = AttentionGate(8).eval(), torch.randn(2, 8, 5, 6)
    ratio = gate(skip, torch.randn(2, 8, 5, 6)) / skip
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert (ratio > 0).all()
    assert (ratio < 1).all()


def test_aggregation_sees_the_whole_map_through_its_patches():
    torch.manual_seed(0)
    module, x = SpatialFeatureAggregation(4, patch=4).eval(), torch.randn(1, 4, 16, 16)
    changed = x.clone()
    changed[..., :2, :2] += 3
    with torch.no_grad():
        assert (module.global_gate(changed) - module.global_gate(x))[..., -1, -1].abs().max() > 0
        assert (module.local(changed) - module.local(x))[..., 4:, 4:].abs().max() == 0
        # the mean of a patch is all that the global path knows of it
        shuffled = x.clone()
        shuffled[..., 0, :4] = x[..., 0, :4].flip(-1)
        torch.testing.assert_close(module.global_gate(shuffled), module.global_gate(x))


def test_position_gates_are_along_rows_and_columns():
    torch.manual_seed(0)
    module, x = SpaceChannelPosition(16).eval(), torch.randn(1, 16, 6, 9)
    with torch.no_grad():
        y = sum(convolution(x) for convolution in module.context)
        gate = (module(x) - x) / y
    gate = gate.masked_fill(y < 1e-3, torch.nan)
    # a product of a row's and a column's factor: two by two minors vanish
    minor = gate[..., :-1, :-1] * gate[..., 1:, 1:] - gate[..., :-1, 1:] * gate[..., 1:, :-1]
    assert minor.isfinite().any()
    assert minor[minor.isfinite()].abs().max() < 1e-4
