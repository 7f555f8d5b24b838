"""The streamed pixel curves against scikit-learn's exact ones, on distributions that defeat a fixed histogram."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError

from bustseg.metrics import PixelCurves, SegmentationMetrics, curves

SHAPE = (8, 1, 96, 96)  # 73,728 pixels: more than 8192, below which every value is kept anyway


def pixels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, torch.Generator]:
    """A score whose AUC is about 0.76, a mask with 8 % lesion, and the generator for more."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.08
    return torch.randn(shape, generator=generator) + mask, mask, generator


def stream(logits: Tensor, mask: Tensor, batch: int = 3) -> PixelCurves:
    metric = PixelCurves()
    for part, truth in zip(logits.split(batch), mask.split(batch), strict=True):
        metric.update(part, truth)
    return metric


def exact(logits: Tensor, mask: Tensor) -> float:
    return float(roc_auc_score(mask.flatten().numpy(), logits.double().flatten().numpy()))


def clusters(n: int, width: float) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """Scores in ``n`` clusters, each far narrower than the distance between them."""
    return lambda score, mask, generator: (
        torch.randint(0, n, score.shape, generator=generator) - n / 2 - 0.3 + width * score
    )


DISTRIBUTIONS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "random": lambda score, mask, generator: 4 * score - 3,
    "bfloat16": lambda score, mask, generator: (4 * score - 3).bfloat16(),
    "float16": lambda score, mask, generator: (4 * score - 3).half(),
    "bfloat16 as float32": lambda score, mask, generator: (4 * score - 3).bfloat16().float(),
    "constant": lambda score, mask, generator: torch.full_like(score, -2.2),
    "prior, 1e-3 apart": lambda score, mask, generator: -2.2 + 1e-3 * score,
    "prior, 1e-5 apart": lambda score, mask, generator: -2.2 + 1e-5 * score,
    "prior, a few float32 steps apart": lambda score, mask, generator: -2.2 + 1e-6 * score,
    "next to zero": lambda score, mask, generator: 1e-30 * score,
    "huge": lambda score, mask, generator: 1e30 * score,
    "heavy tails": lambda score, mask, generator: score**7,
    "saturated": lambda score, mask, generator: 30 * score.sign() + 1e-4 * score,
    "saturated and tied": lambda score, mask, generator: (60 * score).clamp(-30, 30),
    "ten values": lambda score, mask, generator: (2 * score).round() / 3,
    "half of them zero": lambda score, mask, generator: score.relu(),
    "2 clusters": clusters(2, 1e-6),
    "100 clusters": clusters(100, 1e-5),
    "3000 clusters": clusters(3000, 1e-4),
    "tight cluster in a spread": lambda score, mask, generator: torch.where(
        torch.rand(score.shape, generator=generator) < 0.5, -2.2 + 1e-6 * score, 5 * score
    ),
    "separated by 1e-6": lambda score, mask, generator: -2.2 + 1e-6 * mask,
    "inverted": lambda score, mask, generator: -5.0 * mask + 1e-3 * score,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_auc_is_exact_to_1e_4(name: str) -> None:
    score, mask, generator = pixels()
    logits = DISTRIBUTIONS[name](score, mask, generator)
    assert stream(logits, mask).compute()["auc_pixel"].item() == pytest.approx(exact(logits, mask), abs=1e-4)


def test_auc_keeps_the_order_within_the_upper_16_bits() -> None:
    """Lesion above background within each of 500 clusters, all alike in their upper 16 bits, which see ties only."""
    _, mask, generator = pixels()
    group = torch.randint(0, 500, SHAPE, generator=generator)
    logits = (2.0 + group / 64).bfloat16().float() + 1e-3 * mask
    fine = exact(logits, mask)
    coarse = exact((logits.view(torch.int32) & ~0xFFFF).view(torch.float32), mask)
    assert abs(fine - coarse) > 1e-3
    assert stream(logits, mask).compute()["auc_pixel"].item() == pytest.approx(fine, abs=1e-4)


def test_auc_by_hand() -> None:
    """Lesion at 2 and 1, background at 1, 0, 0, -1: of 8 pairs 7 are in order and one is tied."""
    metric = PixelCurves()
    metric.update(
        torch.tensor([2.0, 1, 1, 0, -0.0, -1]).view(1, 1, 2, 3), torch.tensor([1, 1, 0, 0, 0, 0]).view(1, 1, 2, 3)
    )
    assert metric.compute()["auc_pixel"].item() == pytest.approx(7.5 / 8)
    fpr, tpr, thresholds = metric.roc()
    assert fpr.tolist() == [0, 0, 0.25, 0.75, 1]
    assert tpr.tolist() == [0, 0.5, 1, 1, 1]
    assert thresholds.tolist() == pytest.approx([np.inf, 0.8807971, 0.7310586, 0.5, 0.2689414])
    thresholds, dice = metric.dice_by_threshold(torch.tensor([0.1, 0.5, 0.75, 0.9]))
    assert dice.tolist() == pytest.approx([4 / 8, 4 / 5, 2 / 3, 0])  # above 0.5, strictly: 2, 1, 1


def test_calibration_by_hand() -> None:
    """Two bins: 0.2, 0.4 (no lesion) and 0.6, 0.8, 0.8, 0.8 (two lesions)."""
    metric = PixelCurves()
    probability = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    metric.update(probability.logit().view(1, 1, 2, 3), torch.tensor([0, 0, 0, 1, 0, 1]).view(1, 1, 2, 3))
    edges, count, mean, frequency, ece = metric.calibration(2)
    assert edges.tolist() == [0, 0.5, 1]
    assert count.tolist() == [2, 4]
    assert mean.tolist() == pytest.approx([0.3, 0.75])
    assert frequency.tolist() == [0, 0.5]
    assert ece.item() == pytest.approx(2 / 6 * 0.3 + 4 / 6 * 0.25)
    quarter = metric.calibration(20)
    assert quarter.probability.isnan().sum() == 20 - 4
    assert quarter.ece.item() == pytest.approx((0.2 + 0.4 + 0.6 + 3 * abs(0.8 - 2 / 3)) / 6)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.one_of(st.sampled_from([-1.0, -0.0, 0.0, 1.0]), st.floats(-50, 50, width=32)), st.booleans()),
        min_size=2,
        max_size=40,
    )
)
def test_small_sets_agree_with_scikit_learn_point_by_point(drawn: list[tuple[float, bool]]) -> None:
    logits, mask = torch.tensor([value for value, _ in drawn]), torch.tensor([lesion for _, lesion in drawn])
    metric = PixelCurves()
    for part, truth in zip(logits.split(7), mask.split(7), strict=True):
        metric.update(part.view(1, 1, 1, -1), truth.view(1, 1, 1, -1))
    truth, score = mask.numpy(), logits.double().numpy()
    if mask.all() or not mask.any():
        assert metric.compute() == {}
        with pytest.raises(ValueError, match="needs lesion"):
            metric.roc()
        return
    assert metric.compute()["auc_pixel"].item() == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
    assert metric.average_precision().item() == pytest.approx(average_precision_score(truth, score), abs=1e-9)
    for ours, theirs in (
        (metric.roc(), roc_curve(truth, score, drop_intermediate=False)),
        (metric.precision_recall(), precision_recall_curve(truth, score)),
    ):
        for own, other in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_allclose(own.numpy(), other, atol=1e-9)
        thresholds = np.where(np.isinf(theirs[2]), np.inf, 1 / (1 + np.exp(-theirs[2])))
        np.testing.assert_allclose(ours[2].numpy(), thresholds, rtol=1e-9)


@pytest.mark.parametrize("name", ["random", "bfloat16", "saturated", "100 clusters"])
def test_other_curves_agree_with_the_exact_ones(name: str) -> None:
    score, mask, generator = pixels(1)
    logits = DISTRIBUTIONS[name](score, mask, generator)
    metric = stream(logits, mask)
    theirs = average_precision_score(mask.flatten().numpy(), logits.double().flatten().numpy())
    assert metric.average_precision().item() == pytest.approx(theirs, abs=1e-4)

    reference = BinaryCalibrationError(n_bins=15)
    reference.update(logits.double().sigmoid().flatten(), mask.flatten().int())
    assert metric.calibration().ece.item() == pytest.approx(reference.compute().item(), abs=1e-4)
    assert metric.calibration().pixels.sum() == mask.numel()

    for threshold, dice in zip(*metric.dice_by_threshold(torch.tensor([0.1, 0.3, 0.5, 0.9])), strict=True):
        overlap = SegmentationMetrics(threshold.item())
        overlap.update(logits, mask, torch.zeros(8, dtype=torch.int64), torch.arange(8))
        assert dice.item() == pytest.approx(overlap.compute()["dice_pooled"].item(), abs=1e-3)
    assert metric.dice_by_threshold()[0].shape == (99,)


def test_merged_processes_equal_one() -> None:
    score, mask, _ = pixels(2)
    whole, first, second = stream(score, mask, 2), stream(score[:4], mask[:4], 2), stream(score[4:], mask[4:], 2)
    alone = first.compute()["auc_pixel"].item()
    first.merge_state(second)
    assert first.compute() == whole.compute()
    assert first.compute()["auc_pixel"].item() != alone
    for ours, theirs in zip(first.roc(), whole.roc(), strict=True):
        assert torch.equal(ours, theirs)
    assert first.rows[0].dtype == torch.int64


def test_memory_stays_bounded_and_ties_stay_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty batches, thinned again and again. Every third pixel is saturated at one of two values, in every batch."""
    monkeypatch.setattr(curves, "_MAX_ROWS", 40_000)
    monkeypatch.setattr(curves, "_THIN", 8192)
    score, mask, generator = pixels(3, (40, 1, 96, 96))
    logits = torch.where(torch.rand(mask.shape, generator=generator) < 1 / 3, 30.123 * score.sign(), 4 * score)
    metric = stream(logits, mask, 1)
    assert sum(map(len, metric.rows)) <= 40_000
    assert metric.calibration().pixels.sum() == mask.numel()
    assert metric.compute()["auc_pixel"].item() == pytest.approx(exact(logits, mask), abs=1e-4)


def test_thinning_joins_equal_values_of_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_MAX_ROWS", 10)
    _, mask, generator = pixels(4)
    logits = torch.randint(0, 7, SHAPE, generator=generator) / 3
    metric = stream(logits, mask, 1)
    assert sum(map(len, metric.rows)) <= 10
    assert metric.compute()["auc_pixel"].item() == pytest.approx(exact(logits, mask), abs=1e-12)


def test_not_a_number_predicts_nothing() -> None:
    logits = torch.tensor([torch.nan, -torch.inf, 1.0, torch.inf, -torch.nan, 0.0]).view(1, 1, 2, 3)
    mask = torch.tensor([0, 1, 1, 1, 0, 0]).view(1, 1, 2, 3)
    metric = PixelCurves()
    metric.update(logits, mask)
    numbers = torch.nan_to_num(logits, nan=-1e9, posinf=1e9, neginf=-1e9)
    assert metric.compute()["auc_pixel"].item() == pytest.approx(exact(numbers, mask))


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_only(value: int) -> None:
    metric = PixelCurves()
    mask = torch.full((1, 1, 4, 4), value)
    metric.update(torch.randn(1, 1, 4, 4), mask)
    assert metric.compute() == {}
    with pytest.raises(ValueError, match="background"):
        metric.roc()
    if value:
        assert metric.average_precision() == 1
        assert metric.dice_by_threshold(torch.zeros(1))[1].item() == 1
    else:
        with pytest.raises(ValueError, match="lesion"):
            metric.average_precision()


def test_nothing_seen() -> None:
    metric = PixelCurves()
    metric.update(torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4))
    assert metric.compute() == {}
    with pytest.raises(ValueError, match="needs pixels"):
        metric.calibration()
    with pytest.raises(ValueError, match="shape"):
        metric.update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_counts_the_same() -> None:
    score, mask, _ = pixels(5)
    there = PixelCurves().cuda()
    there.update(score.cuda(), mask.cuda())
    assert there.compute()["auc_pixel"].device.type == "cuda"
    assert there.compute()["auc_pixel"].item() == stream(score, mask, 8).compute()["auc_pixel"].item()


@pytest.mark.parametrize(
    "name", ["random", "saturated", "ten values", "half of them zero", "2 clusters", "heavy tails"]
)
@pytest.mark.parametrize("shift", [0, 2])
def test_thinned_curve_keeps_the_area(name: str, shift: float) -> None:
    """Also of a curve with an AUC of 0.98, as a trained network has."""
    score, mask, generator = pixels(7)
    logits = DISTRIBUTIONS[name](score + shift * mask, mask, generator)
    fpr, tpr, _ = (values.numpy() for values in stream(logits, mask).roc())
    kept = curves.thin(fpr, tpr)
    assert len(kept) <= 500
    assert (kept[0], kept[-1]) == (0, len(fpr) - 1)
    assert (np.diff(kept) > 0).all()
    assert np.trapezoid(tpr[kept], fpr[kept]) == pytest.approx(exact(logits, mask), abs=1e-3)


def test_thinning_keeps_both_ends_of_a_jump() -> None:
    """A fine rise to (0.1, 0.9), then one tie to (1, 1): dropping the corner would cost up to 0.002 of the area."""
    x = np.concatenate([np.linspace(0, 0.1, 5001), [1.0]])
    y = np.concatenate([np.linspace(0, 0.9, 5001), [1.0]])
    assert {0, 5000, 5001} <= set(curves.thin(x, y, 100).tolist())
    assert curves.thin(x[:7], y[:7]).tolist() == [*range(7)]
