"""Losses against hand-computed values and against MONAI and segmentation_models_pytorch."""

import math

import monai
import pytest
import segmentation_models_pytorch as smp
import torch

from bustseg.errors import UserError
from bustseg.losses import BCELoss, DiceLoss, HybridLoss

OURS = [BCELoss(), BCELoss(pos_weight=3.0), DiceLoss(), HybridLoss()]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def batch(size: int = 4, side: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, 1, side, side, generator=generator)
    mask = (torch.rand(size, 1, side, side, generator=generator) < 0.2).to(torch.uint8)
    return logits, mask


def test_bce_by_hand() -> None:
    logits = torch.tensor([logit(0.8), logit(0.8), logit(0.25), 0.0]).view(1, 1, 2, 2)
    mask = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).view(1, 1, 2, 2)
    # -ln of the probability given to the truth: 0.8, 0.2, 0.25, 0.5
    assert BCELoss()(logits, mask).item() == pytest.approx((0.22314355 + 1.60943791 + 1.38629436 + 0.69314718) / 4)
    weighted = (3 * 0.22314355 + 1.60943791 + 3 * 1.38629436 + 0.69314718) / 4
    assert BCELoss(pos_weight=3)(logits, mask).item() == pytest.approx(weighted)


def test_dice_by_hand() -> None:
    """Image 1 (lesion): 1 - 2 * 0.75 / (1.5 + 2). Image 2 (none): 0.8 / (0.8 + 0.05 * 4)."""
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.5], [0.2, 0.2, 0.2, 0.2]]).logit().view(2, 1, 2, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    lesion, normal = 1 - 1.5 / 3.5, 0.8
    assert DiceLoss()(logits[:1], mask[:1]).item() == pytest.approx(lesion)
    assert DiceLoss()(logits[1:], mask[1:]).item() == pytest.approx(normal)
    assert DiceLoss()(logits, mask).item() == pytest.approx((lesion + normal) / 2)


def test_hybrid_is_the_weighted_sum() -> None:
    logits, mask = batch()
    expected = 0.3 * BCELoss(2.0)(logits, mask) + 0.7 * DiceLoss(0.1)(logits, mask)
    assert HybridLoss(0.3, 0.7, 2.0, 0.1)(logits, mask).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("initial", [-6.0, -2.0, 0.0, 3.0])
def test_dice_learns_from_a_batch_of_normals(initial: float) -> None:
    """Wherever training stands, normals pull the prediction down, though not harder than lesions do in sum."""
    logits = torch.full((4, 1, 224, 224), initial, requires_grad=True)
    mask = torch.zeros(4, 1, 224, 224, dtype=torch.uint8)
    (gradient,) = torch.autograd.grad(DiceLoss()(logits, mask), logits)
    assert (gradient > 0).all()
    # the common s = 1 pixel gives a sum of 1e-5 at logit 0, smp's pooled Dice exactly 0
    assert 1e-3 < gradient.sum() < 1
    (theirs,) = torch.autograd.grad(smp.losses.DiceLoss(mode="binary")(logits, mask), logits)
    assert theirs.abs().max() == 0


def test_normals_keep_a_lesion_image_as_it_is() -> None:
    """A mean over images: an image without lesion in the batch must not dilute the Dice of another one."""
    logits, mask = batch(2)
    alone = torch.autograd.grad(DiceLoss()(first := logits[:1].clone().requires_grad_(), mask[:1]), first)[0]
    mask[1] = 0
    logits.requires_grad_()
    together = torch.autograd.grad(DiceLoss()(logits, mask), logits)[0][:1]
    torch.testing.assert_close(together, alone / 2)


def test_agrees_with_monai_on_lesion_images() -> None:
    logits, mask = batch()
    theirs = monai.losses.DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=0)(logits, mask)
    torch.testing.assert_close(DiceLoss()(logits, mask), theirs, rtol=1e-6, atol=1e-6)
    default = monai.losses.DiceLoss(sigmoid=True)(logits, mask)  # its smoothing is 1e-5 pixel
    torch.testing.assert_close(DiceLoss()(logits, mask), default, rtol=1e-5, atol=1e-6)


def test_agrees_with_smp_on_one_lesion_image() -> None:
    """smp pools the batch: the two can agree on a single image only, and do not on several."""
    logits, mask = batch()
    theirs = smp.losses.DiceLoss(mode="binary")
    torch.testing.assert_close(DiceLoss()(logits[:1], mask[:1]), theirs(logits[:1], mask[:1]), rtol=1e-6, atol=1e-6)
    mask[0, :, 4:] = 0
    assert abs(DiceLoss()(logits, mask) - theirs(logits, mask)) > 1e-3


@pytest.mark.parametrize("loss", OURS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_mask_of_any_type(loss: torch.nn.Module, dtype: torch.dtype) -> None:
    logits, mask = batch()
    assert loss(logits, mask.to(dtype)).item() == loss(logits, mask).item()


@pytest.mark.parametrize("loss", OURS, ids=repr)
def test_bfloat16_logits_lose_nothing_but_their_own_rounding(loss: torch.nn.Module) -> None:
    logits, mask = batch(side=128)
    short = logits.bfloat16().to(memory_format=torch.channels_last)
    value = loss(short, mask.to(memory_format=torch.channels_last))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(short.float(), mask).item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(short, mask).item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("loss", OURS, ids=repr)
@pytest.mark.parametrize("magnitude", [0.0, 40.0, 1e4])
def test_saturated_logits_stay_finite(loss: torch.nn.Module, magnitude: float) -> None:
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    mask[0, :, :2] = 1
    for sign in (-1, 1):
        logits = torch.full((2, 1, 8, 8), sign * magnitude, requires_grad=True)
        value = loss(logits, mask)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", OURS, ids=repr)
def test_shapes_that_would_broadcast_are_refused(loss: torch.nn.Module) -> None:
    logits, mask = batch()
    with pytest.raises(ValueError, match="shape"):
        loss(logits, mask[:, 0])


def test_settings_do_not_enter_a_checkpoint() -> None:
    assert HybridLoss(pos_weight=2.0).state_dict() == {}


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (BCELoss, {"pos_weight": 0}),
        (DiceLoss, {"empty_smooth": 0}),
        (HybridLoss, {"bce_weight": -1}),
        (HybridLoss, {"bce_weight": 0, "dice_weight": 0}),
    ],
)
def test_senseless_settings_are_refused(loss: type, settings: dict) -> None:
    with pytest.raises(UserError):
        loss(**settings)


def test_presence_is_read_from_the_highest_logits() -> None:
    from bustseg.losses import PresenceLoss, peak_logit

    logits = torch.full((2, 1, 10, 10), -3.0)
    logits[0, 0, 4, 4:6] = torch.tensor([2.0, 4.0])
    assert peak_logit(logits, share=0.02).tolist() == pytest.approx([3.0, -3.0])  # 2 of 100 pixels
    assert peak_logit(logits, share=1e-6).tolist() == pytest.approx([4.0, -3.0])  # at least one
    mask = torch.zeros(2, 1, 10, 10)
    mask[0, 0, 4, 4] = 1
    # the cross-entropies of logit 3 with a lesion and of logit -3 without are the same softplus(-3)
    loss = PresenceLoss(pixels=BCELoss(), weight=0.5, share=0.02)
    expected = BCELoss()(logits, mask) + 0.5 * math.log1p(math.exp(-3))
    assert loss(logits, mask).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_false_peak_costs_however_small_it_is() -> None:
    from bustseg.losses import PresenceLoss

    quiet = torch.full((1, 1, 64, 64), -4.0)
    peaked = quiet.clone()
    peaked[0, 0, 3, 3] = 5.0
    empty = torch.zeros(1, 1, 64, 64)
    plain, watching = HybridLoss(), PresenceLoss(HybridLoss(), weight=1.0, share=0.0002)
    assert plain(peaked, empty) - plain(quiet, empty) < 0.01
    assert watching(peaked, empty) - watching(quiet, empty) > 4


@pytest.mark.parametrize("options", [{"weight": -1}, {"share": 0.0}, {"share": 1.5}])
def test_presence_settings_that_make_no_sense(options: dict[str, float]) -> None:
    from bustseg.losses import PresenceLoss

    with pytest.raises(UserError, match="presence"):
        PresenceLoss(**options)


@pytest.mark.parametrize("pixels", OURS)
def test_only_images_with_a_lesion_teach(pixels: torch.nn.Module) -> None:
    from bustseg.losses import LesionLoss

    logits, mask = batch()
    mask[1:3] = 0
    logits.requires_grad_()
    loss = LesionLoss(pixels)(logits, mask)
    # of four images the two without a lesion count as perfect, so that the size of a batch changes nothing
    assert loss.item() == pytest.approx(pixels(logits[[0, 3]], mask[[0, 3]]).item() / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1:3].any()
    assert (gradient[[0, 3]] != 0).any()
    assert LesionLoss(pixels)(logits[1:3], mask[1:3]).item() == pytest.approx(0, abs=1e-6)
