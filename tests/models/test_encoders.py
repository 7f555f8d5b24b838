"""Encoders: feature maps, parameter counts and names, against torchvision's own forward."""

import pytest
import torch
import torchvision

from bustseg.errors import UserError
from bustseg.models import build_encoder


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        ("resnet18", 11_176_512, (64, 64, 128, 256, 512)),
        ("densenet121", 6_953_856, (64, 256, 512, 1024, 1024)),
        ("efficientnet_b0", 4_007_548, (16, 24, 40, 112, 1280)),
    ],
)
def test_paper_encoders(name, parameters, channels):
    encoder = build_encoder(name, weights="none")
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.channels == channels
    assert encoder.strides == (2, 4, 8, 16, 32)
    with torch.no_grad():
        maps = encoder(torch.zeros(2, 3, 96, 64))
    assert [tuple(own.shape) for own in maps] == [
        (2, c, 96 // s, 64 // s) for c, s in zip(channels, encoder.strides, strict=True)
    ]
    only = build_encoder(name, weights="none", last_only=True)
    assert (only.channels, only.strides) == (channels[-1:], (32,))
    assert only.state_dict().keys() == encoder.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0"])
def test_last_map_is_torchvisions_own(name, tmp_path):
    """The classifier's own forward gives the same features; its state dict is a weights file."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    encoder = build_encoder(name, weights=str(tmp_path / "net.pth")).eval()
    seen = {}
    pool = {"resnet18": "avgpool", "densenet121": "features.norm5", "efficientnet_b0": "avgpool"}[name]
    net.get_submodule(pool).register_forward_hook(
        lambda _, args, out: seen.update(input=args[0].clone(), output=out.clone())
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        net(x)
        last = encoder(x)[-1]
    expected = seen["output"].relu() if name == "densenet121" else seen["input"]
    assert torch.equal(last, expected)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_v2_s", "mobilenet_v3_small", "regnety_002.pycls_in1k"])
def test_other_families(name):
    encoder = build_encoder(name, weights="none").eval()
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 64, 64))
    assert [own.shape[1] for own in maps] == list(encoder.channels)
    assert [64 // own.shape[2] for own in maps] == list(encoder.strides)
    assert encoder.strides[-1] == 32


@pytest.mark.parametrize(("name", "channels"), [("timm/resnet18", 512), ("tf_efficientnet_lite0", 320)])
def test_timm(name, channels):
    encoder = build_encoder(name, weights="none").eval()
    assert encoder.strides == (2, 4, 8, 16, 32)
    only = build_encoder(name, weights="none", last_only=True)
    assert (only.channels, only.strides) == ((channels,), (32,))
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 64, 64))[-1].shape == (1, channels, 2, 2)


def test_bare_names_are_torchvisions_first():
    assert "layer1.0.conv1.weight" in build_encoder("resnet18", weights="none").state_dict()
    assert "net.layer1.0.conv1.weight" in build_encoder("timm/resnet18", weights="none").state_dict()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "did you mean .*resnet18"),
        ("torchvision/tf_efficientnet_lite0", "no encoder"),
        ("huggingface/resnet18", "did you mean resnet18"),
        ("efficientnet-b0", "efficientnet_b0"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(UserError, match=hint) as error:
        build_encoder(name, weights="none")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["torchvision/vit_b_16", "torchvision/googlenet"])
def test_encoder_without_feature_maps(name):
    with pytest.raises(UserError, match="no plain feature extractor"):
        build_encoder(name, weights="none")
