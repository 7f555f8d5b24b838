"""Pretrained weights: those installed really work, files load, and what cannot be had is said in one line."""

import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch import nn

from bustseg.errors import WeightsError
from bustseg.models import PACKAGED, FusionUNet, build_encoder
from bustseg.models import weights as weights_module
from bustseg.models.weights import fit_input_channels, packaged_state_dict


def picture(name: str, size: int = 224) -> torch.Tensor:
    """A photograph that scikit-learn ships, as these networks expect it: (1, 3, size, size) in -1..1."""
    image = cv2.resize(load_sample_image(name), (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def statistics_error(net: nn.Module, images: torch.Tensor) -> float:
    """Median over BatchNorms of the distance of their input's mean from the running mean, in running deviations."""
    errors = []

    def compare(norm: nn.BatchNorm2d, args: tuple[torch.Tensor]) -> None:
        mean = args[0].mean((0, 2, 3))
        errors.append(((mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()).abs().mean().item())

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(compare)
    with torch.no_grad():
        net.eval()(images)
    return float(np.median(errors))


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_recognise_a_photograph(name):
    """china.jpg shows a pavilion; weights that do not work give 0.1 % to each of the 1000 classes."""
    net = timm.create_model(name, pretrained=True).eval()
    assert net.pretrained_cfg["mean"] == net.pretrained_cfg["std"] == (0.5, 0.5, 0.5)
    with torch.no_grad():
        china = net(picture("china.jpg", net.pretrained_cfg["input_size"][1])).softmax(1)[0]
    buildings = [442, 449, 483, 497, 663, 698, 832]  # bell cote, boathouse, castle, church, monastery, palace, stupa
    assert china.argmax() in buildings
    assert china[buildings].sum() > 0.4


def test_packaged_weights_fit_their_batchnorm_statistics():
    images = torch.cat([picture("china.jpg"), picture("flower.jpg")])
    net = timm.create_model("tf_efficientnet_lite0", pretrained=True)
    good = statistics_error(net, images)
    torch.manual_seed(0)
    shuffled = timm.create_model("tf_efficientnet_lite0", pretrained=True)
    with torch.no_grad():
        for module in shuffled.modules():
            if isinstance(module, nn.Conv2d):
                flat = module.weight.flatten()
                module.weight.copy_(flat[torch.randperm(len(flat))].view_as(module.weight))
    assert good < 0.5
    assert statistics_error(shuffled, images) > 2 * good


def test_state_dict_is_not_kept_in_the_configuration():
    net = timm.create_model("tf_efficientnet_lite0", pretrained=True, features_only=True)
    assert "state_dict" not in net.pretrained_cfg
    assert len(pickle.dumps(net)) < 20e6  # 13.4 MB of weights once


def test_packaged_weights_reach_every_way_in():
    reference = packaged_state_dict("tf_efficientnet_lite0")["blocks.3.1.conv_dw.weight"]
    unet = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights="imagenet")
    features = timm.create_model("tf_efficientnet_lite0.in1k", pretrained=True, features_only=True, out_indices=(4,))
    ours = FusionUNet(["tf_efficientnet_lite0"], freeze_encoders=True)
    for net in (unet.encoder.model, features, ours.encoders[0].net):
        assert torch.equal(net.state_dict()["blocks.3.1.conv_dw.weight"], reference)
    random = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    assert not torch.equal(random.state_dict()["blocks.3.1.conv_dw.weight"], reference)


def test_one_input_channel_sums_the_filters():
    grey = timm.create_model("tf_efficientnet_lite0", pretrained=True, in_chans=1)
    stem = packaged_state_dict("tf_efficientnet_lite0")["conv_stem.weight"]
    torch.testing.assert_close(grey.conv_stem.weight.data, stem.sum(1, keepdim=True))


def test_own_weights_go_before_the_packaged(tmp_path):
    own = {key: torch.zeros_like(value) for key, value in packaged_state_dict("tf_efficientnet_lite0").items()}
    torch.save(own, tmp_path / "own.pth")
    net = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "own.pth")}
    )
    assert not net.conv_stem.weight.any()


def test_packaged_file_that_does_not_match(monkeypatch):
    tensors = packaged_state_dict("tf_efficientnet_lite0")
    tensors["conv_stem.weight"] = tensors["conv_stem.weight"][:, :1]
    monkeypatch.setattr(weights_module, "read_state_dict", lambda path: tensors)
    with pytest.raises(WeightsError, match=r"does not match .* tensor by tensor"):
        timm.create_model("tf_efficientnet_lite0", pretrained=True)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No cache and no network, wherever the test runs."""
    import socket

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for variable in [key for key in os.environ if key.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t", "timm/efficientnet_lite1"])
def test_weights_that_cannot_be_had(offline, name):
    with pytest.raises(WeightsError, match=r"cannot get ImageNet weights of .*: connect .* none, or use") as error:
        build_encoder(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "model.encoder.", "features."])
def test_file_with_a_wrapper(tmp_path, prefix):
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}, "epoch": 3}, tmp_path / "net.ckpt")
    encoder = build_encoder("resnet18", weights=str(tmp_path / "net.ckpt"))
    assert torch.equal(encoder.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_file_in_densenets_old_names(tmp_path):
    state = torchvision.models.densenet121().state_dict()
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value for key, value in state.items()}
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    encoder = build_encoder("densenet121", weights=str(tmp_path / "densenet121-a639ec97.pth"))
    ours, theirs = encoder.denseblock1.denselayer2, "features.denseblock1.denselayer2"
    assert torch.equal(ours.conv2.weight, state[f"{theirs}.conv2.weight"])
    assert torch.equal(ours.norm1.weight, state[f"{theirs}.norm1.weight"])


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_file_for_another_number_of_channels(tmp_path, name):
    state = (timm.create_model("resnet18") if "/" in name else torchvision.models.resnet18()).state_dict()
    torch.save(state, tmp_path / "net.pth")
    encoder = build_encoder(name, weights=str(tmp_path / "net.pth"), in_channels=1)
    first = getattr(encoder, "net", encoder).conv1.weight
    torch.testing.assert_close(first.data, state["conv1.weight"].sum(1, keepdim=True))


def test_file_errors(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        build_encoder("resnet18", weights=str(tmp_path / "none.pth"))
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not fit the encoder"):
        build_encoder("resnet50", weights=str(tmp_path / "other.pth"))
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="cannot read weights"):
        build_encoder("resnet18", weights=str(tmp_path / "broken.pth"))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        build_encoder("resnet18", weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_fitted_filters_respond_alike_to_a_repeated_image(channels):
    torch.manual_seed(0)
    weight, grey = torch.randn(5, 3, 3, 3), torch.randn(1, 1, 8, 8)
    fitted = fit_input_channels(weight, channels)
    assert fitted.shape == (5, channels, 3, 3)
    if channels in (1, 6):  # whole repeats keep the response to a grey image exactly
        expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
        torch.testing.assert_close(nn.functional.conv2d(grey.expand(-1, channels, -1, -1), fitted), expected)


def test_import_of_the_package_alone_is_light():
    code = "import sys, bustseg; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
