"""FusionUNet against the parameter counts of the paper's table 1, and what it promises of sizes, freezing and skips."""

import pytest
import torch
from torch import nn

from bustseg.errors import UserError
from bustseg.models import CBAM, FusionUNet
from bustseg.models.decoder import gated

R, D, E = "resnet18", "densenet121", "efficientnet_b0"


def count(net: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize(
    ("encoders", "attention", "total", "trainable_when_frozen"),
    [
        ([R, D, E], "none", 23_794_557, 1_656_641),
        ([R, D, E], "cbam", 23_881_989, 1_744_073),
        ([R, D, E], "nonlocal", 24_493_277, 2_355_361),
        ([D, E], "none", 12_350_269, 1_388_865),
        ([R, E], "none", 16_305_149, 1_121_089),
        ([R, D], "none", 19_117_569, 987_201),
    ],
)
def test_parameters_are_the_papers(encoders, attention, total, trainable_when_frozen):
    frozen = FusionUNet(encoders, attention=attention, weights="none", freeze_encoders=True)
    assert count(frozen) == total
    assert count(frozen, trainable=True) == trainable_when_frozen
    frozen.requires_grad_(True)
    assert count(frozen, trainable=True) == total


def test_decoder_runs_at_the_stated_sizes():
    net = FusionUNet([R], attention="cbam", weights="none").eval()
    seen = []
    for attention in net.decoder.attentions:
        attention.register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 1, 224, 224)
    assert seen == [(512, 7, 7), (256, 14, 14), (128, 28, 28), (64, 56, 56)]


@pytest.mark.parametrize(("size", "skips"), [((65, 97), True), ((50, 50), False), ((17, 33), False), ((64, 96), True)])
def test_logits_have_the_images_size(size, skips):
    net = FusionUNet([R, E], attention="cbam", skips=skips, weights="none")
    logits = net(torch.randn(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    logits.mean().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("skips", [False, True])
def test_what_is_encoded_once_decodes_to_the_same_logits(skips):
    net = FusionUNet([R, E], skips=skips, weights="none", freeze_encoders=True).eval()
    images = torch.randn(3, 3, 50, 70)
    maps = net.encode(images)
    assert [own.shape[-2:] for own in maps] == [(64 // s, 96 // s) for s in ([32, 16, 8, 4, 2] if skips else [32])]
    torch.testing.assert_close(net.decode(maps, (50, 70)), net(images))
    assert net.frozen
    net.encoders[0].requires_grad_(True)
    assert not net.frozen, "someone lets an encoder learn"


def test_head_before_upsampling_is_head_after_upsampling():
    torch.manual_seed(0)
    net = FusionUNet([R], weights="none").eval()
    x = torch.randn(1, 3, 64, 64)
    last = {}
    net.decoder.blocks[-1].register_forward_hook(lambda _, args, out: last.update(x=out))
    with torch.no_grad():
        logits = net(x)
        up = nn.Upsample(scale_factor=2, mode="bilinear")
        torch.testing.assert_close(logits, up(net.decoder.head(up(last["x"]))), rtol=1e-5, atol=1e-5)


def test_frozen_encoders_neither_learn_nor_record():
    net = FusionUNet([R, E], weights="none", freeze_encoders=True).train()
    before = {key: value.clone() for key, value in net.encoders.state_dict().items()}
    maps = net.encode(torch.randn(2, 3, 64, 64))
    assert not any(own.requires_grad for own in maps)
    net(torch.randn(2, 3, 64, 64)).mean().backward()
    after = net.encoders.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in net.encoders.parameters())
    assert all(p.grad is not None for p in net.decoder.parameters())
    assert net.decoder.training
    assert not any(module.training for module in net.encoders.modules())


def test_trained_encoders_do_learn():
    net = FusionUNet([R], weights="none").train()
    before = net.encoders[0].bn1.running_mean.clone()
    net(torch.randn(2, 3, 64, 64)).mean().backward()
    assert not torch.equal(before, net.encoders[0].bn1.running_mean)
    assert net.encoders[0].conv1.weight.grad is not None


def test_skips_carry_fine_detail():
    torch.manual_seed(0)
    net = FusionUNet([R], skips=True, weights="none").eval()
    assert len(net.decoder.blocks) == 5
    assert net.decoder.blocks[1][0].in_channels == 512 + 256
    assert net.decoder.blocks[4][0].in_channels == 64 + 64


def test_skips_where_an_encoder_has_no_finest_map():
    net = FusionUNet(["convnext_tiny"], skips=True, weights="none").eval()
    assert net.encoders[0].strides == (4, 8, 16, 32)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_attention_as_a_callable():
    net = FusionUNet([R], attention=lambda channels: CBAM(channels, reduction=16), weights="none")
    assert net.decoder.attentions[0].mlp[0].out_features == 32


@pytest.mark.parametrize("bottleneck", ["transformer", lambda channels: CBAM(channels, reduction=16)])
def test_bottleneck_sits_on_the_fused_features(bottleneck):
    net = FusionUNet([R, E], weights="none", bottleneck=bottleneck).eval()
    seen = []
    net.bottleneck.register_forward_hook(lambda _, args, out: seen.append((args[0].shape, out.shape)))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 65, 97)).shape == (1, 1, 65, 97)
    assert seen == [((1, 512 + 1280, 3, 4),) * 2]
    assert not list(FusionUNet([R], weights="none").bottleneck.parameters())


def test_cam_layer_names_the_last_block():
    net = FusionUNet([R], weights="none")
    assert net.get_submodule(net.cam_layer) is net.decoder.blocks[-1]


def test_dropout_falls_on_the_fused_features_in_training_only():
    torch.manual_seed(0)
    net = FusionUNet([R], weights="none", dropout=0.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), net(x))
        assert not torch.equal(net.train()(x), net(x))


@pytest.mark.parametrize("attention", ["none", "cbam", "nonlocal"])
def test_state_dict_round_trip(attention, tmp_path):
    torch.manual_seed(0)
    net = FusionUNet([R], attention=attention, weights="none").eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = FusionUNet([R], attention=attention, weights="none").eval()
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), other(x))


@pytest.mark.parametrize("attention", ["none", "cbam", "nonlocal"])
def test_channels_last_and_bf16(attention):
    torch.manual_seed(0)
    net = FusionUNet([R, E], attention=attention, weights="none").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        last = net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            logits = last(x.to(memory_format=torch.channels_last))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05 * expected.std() + 0.05


@pytest.mark.parametrize("in_channels", [1, 4])
def test_other_numbers_of_image_channels(in_channels):
    net = FusionUNet([R, "timm/resnet18"], weights="none", in_channels=in_channels).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, in_channels, 64, 64)).shape == (1, 1, 64, 64)


def test_weights_must_match_encoders():
    with pytest.raises(UserError, match="2 encoders but 1 weights"):
        FusionUNet([R, E], weights=["none"])
    with pytest.raises(UserError, match="0 encoders"):
        FusionUNet([], weights="none")


def test_unknown_attention_is_named():
    with pytest.raises(UserError, match="no attention 'cbm': choose none, cbam, nonlocal, sk, transformer or"):
        FusionUNet([R], attention="cbm", weights="none")


def test_the_gate_multiplies_probabilities():
    pixel = torch.tensor([-60.0, -3.0, 0.0, 2.0, 60.0]).view(1, 1, 1, 5)
    presence = torch.tensor([-50.0, -1.0, 0.5, 60.0]).view(4, 1, 1, 1)
    product = pixel.double().sigmoid() * presence.double().sigmoid()
    expected = product.log() - (-product).log1p()
    got = gated(pixel, presence).double()
    certain = product > 1 - 1e-12  # where the formula above, not the gate, runs out of digits
    torch.testing.assert_close(got[~certain], expected[~certain], rtol=1e-5, atol=1e-5)
    assert (got[certain] > 25).all()


def test_presence_gates_the_whole_image_and_learns_from_masks():
    torch.manual_seed(0)
    net = FusionUNet([R], weights="none", presence=True)
    assert count(net) == count(FusionUNet([R], weights="none")) + 512 + 1
    x = torch.randn(2, 3, 64, 64)
    empty = nn.functional.binary_cross_entropy_with_logits(net(x), torch.zeros(2, 1, 64, 64))
    empty.backward()
    assert net.presence.linear.bias.grad > 0  # gradient descent closes the gate
    net.eval()
    with torch.no_grad():
        net.presence.linear.bias.fill_(-8)
        assert net(x).max() < -7.9


def test_what_is_learnt_beside_the_mask() -> None:
    net = FusionUNet(["resnet18"], skips=True, weights="none", classify=0.2, deep_supervision=0.4).train()
    mask = torch.zeros(3, 1, 64, 64)
    mask[:2, :, 20:40, 20:40] = 1
    labels = torch.tensor([0, 3, 1])  # the second is of unknown class, the third shows no lesion: normal
    net(torch.rand(3, 3, 64, 64))
    assert len(net.decoder.level_logits) == len(net.decoder.blocks) - 1
    loss = net.auxiliary_loss(mask, labels)
    assert loss is not None
    assert loss.item() > 0
    loss.backward()
    assert net.classifier is not None
    assert net.classifier.weight.grad is not None
    assert net.auxiliary_loss(mask, labels) is None  # taken once
    net.eval()
    net(torch.rand(1, 3, 64, 64))
    assert net.auxiliary_loss(mask, labels) is None  # nothing is kept outside training


def test_a_plain_network_learns_the_mask_alone() -> None:
    net = FusionUNet(["resnet18"], weights="none").train()
    net(torch.rand(2, 3, 64, 64))
    assert net.auxiliary_loss(torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.long)) is None
    assert not any("level_heads" in name or "classifier" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("shows", "label", "counts_as"), [(True, 1, 1), (True, 2, None), (True, 3, None), (False, 0, 2)]
)
def test_the_class_that_an_image_counts_as(shows: bool, label: int, counts_as: int | None) -> None:
    """Augmentation may show a part without the lesion, or move a lesion of unknown class into a normal image."""
    net = FusionUNet(["resnet18"], weights="none", classify=1.0).train()
    mask = torch.zeros(2, 1, 64, 64)
    mask[0] = 1  # a second image, since an empty mean is not a number
    mask[1, :, 20:40, 20:40] = float(shows)
    net(torch.rand(2, 3, 64, 64))
    logits = net._class_logits
    assert logits is not None
    loss = net.auxiliary_loss(mask, torch.tensor([0, label]))
    of_each = -torch.log_softmax(logits, 1)
    wanted = of_each[0, 0] if counts_as is None else (of_each[0, 0] + of_each[1, counts_as]) / 2
    torch.testing.assert_close(loss, wanted)


def test_detection_limits_the_mask_outside_training_only() -> None:
    torch.manual_seed(0)
    net = FusionUNet([R], skips=True, weights="none", detection=0.5)
    x = torch.randn(2, 3, 64, 96)
    net.train()(x)
    detection = net.decoder.detection_logits
    assert detection is not None
    assert detection.shape == (2, 1, 8, 12)
    mask = torch.zeros(2, 1, 64, 96)
    mask[0, 0, 30, 40] = 1  # a single pixel is a lesion, too
    loss = net.auxiliary_loss(mask, torch.zeros(2, dtype=torch.long))
    assert loss is not None
    loss.backward()
    assert net.decoder.detector[1].weight.grad is not None
    assert net.auxiliary_loss(mask, torch.zeros(2, dtype=torch.long)) is None  # taken once

    net.eval()
    with torch.no_grad():
        last = net.decoder.detector[1]
        last.weight.zero_()
        last.bias.fill_(-7.0)
        assert net(x).max() <= -7
        last.bias.fill_(50.0)
        free = net(x)
        assert net.decoder.detection_logits is None
        net.decoder.detector = None
        torch.testing.assert_close(free, net(x))


def test_a_detection_reaches_over_the_border_of_its_lesion() -> None:
    from bustseg.models.decoder import REACH, limited

    detection = torch.full((1, 1, 12, 12), -9.0)
    detection[0, 0, 6, 6] = 4.0
    logits = limited(torch.full((1, 1, 96, 96), 2.0), detection)[0, 0]
    assert logits[52, 52] == 2  # the cell itself
    assert logits[52, 52 + 8 * REACH] == 2
    assert logits[52, 8] == logits[8, 52] == -9
