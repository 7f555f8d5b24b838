"""Bands of curves: against the definition, on a handful of images, and their coverage of nothing but images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bustseg.metrics import ThresholdSweep
from bustseg.metrics.bands import FALSE_POSITIVE_RATES, CurveBands
from bustseg.metrics.curves import SWEEP
from bustseg.metrics.sweep import ImageSweeps
from bustseg.statistics import Bootstrap


def images(n: int = 12, spread: float = 1.5, scale: float = 1.0) -> tuple[ImageSweeps, torch.Tensor, torch.Tensor]:
    """Images of which a third has no lesion; some are found well and some badly."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(n, 1, 16, 20, generator=generator) < 0.2
    mask[::3] = False
    skill = torch.linspace(-spread, spread, n).view(-1, 1, 1, 1) + 1
    logits = scale * (torch.randn(mask.shape, generator=generator) + skill * (2 * mask.float() - 1))
    sweep = ThresholdSweep()
    for part in torch.arange(n).split(5):
        sweep.update(logits[part], mask[part], part)
    return sweep.per_image(), logits, mask


def test_counts_are_those_of_each_threshold() -> None:
    found, logits, mask = images()
    for place in (0, 20, 49, 80, 98):
        above = logits > torch.logit(SWEEP[place])
        assert found.tp[:, place].tolist() == (above & mask).sum((1, 2, 3)).tolist()
        assert found.fp[:, place].tolist() == (above & ~mask).sum((1, 2, 3)).tolist()
    assert found.lesion.tolist() == mask.sum((1, 2, 3)).tolist()
    assert (found.lesion + found.background).tolist() == [320] * 12


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_counts_between_thresholds_are_read_off_the_shares(scale: float) -> None:
    """However narrow the range is that a network uses."""
    found, logits, mask = images(scale=scale)
    levels = scale * np.array([-2.0, -0.3, 0.0, 1.1, 2.5])
    tp, fp = found.above(levels)
    for place, level in enumerate(levels):
        above = (logits > level).flatten(1).numpy()
        own = mask.flatten(1).numpy()
        assert np.abs(tp[:, place] - (above & own).sum(1)).max() <= 1 + found.lesion.max() / 60
        assert np.abs(fp[:, place] - (above & ~own).sum(1)).max() <= 1 + found.background.max() / 60


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_band_is_where_the_curves_of_resamples_run(scale: float) -> None:
    found, logits, mask = images(scale=scale)
    names, label = np.arange(12), np.resize(["normal", "benign", "malignant"], 12)
    bands = CurveBands(found, names, label)
    boot = Bootstrap(names, label, resamples=1000, seed=0)
    truth, score = mask.flatten(1).numpy(), logits.flatten(1).numpy()
    drawn = [np.repeat(np.arange(12), weights) for weights in boot.weights[:150]]
    areas = [roc_auc_score(truth[own].ravel(), score[own].ravel()) for own in drawn]
    low, high = bands.auc()
    assert np.quantile(areas, 0.025) == pytest.approx(low, abs=0.02)
    assert np.quantile(areas, 0.975) == pytest.approx(high, abs=0.02)
    assert low < roc_auc_score(truth.ravel(), score.ravel()) < high

    roc = bands.roc()
    place = int(np.abs(FALSE_POSITIVE_RATES - 0.2).argmin())
    rates = []
    for own in drawn:
        cut = np.quantile(score[own][~truth[own]], 0.8)
        rates.append((score[own][truth[own]] > cut).mean())
    assert np.quantile(rates, 0.025) == pytest.approx(roc["low"][place], abs=0.05)
    assert np.quantile(rates, 0.975) == pytest.approx(roc["high"][place], abs=0.05)
    assert (roc["low"].diff().dropna() >= -1e-9).all()
    assert roc[["low", "high"]].iloc[-1].tolist() == [1, 1]


def test_bands_by_threshold_are_those_of_the_means() -> None:
    found, _, _ = images()
    names, label = np.arange(12), np.resize(["normal", "benign", "malignant"], 12)
    table = CurveBands(found, names, label).by_threshold()
    dice = np.where(found.lesion[:, None] > 0, found.dice, np.nan)
    expected = Bootstrap(names, label, resamples=1000, seed=0).mean(dice).interval(method="percentile")
    np.testing.assert_allclose(table["threshold"], SWEEP)
    np.testing.assert_allclose(table["dice_lesion_low"], expected.low)
    np.testing.assert_allclose(table["dice_lesion_high"], expected.high)
    assert (table["false_positive_rate_normal_high"] <= 1).all()


def test_groups_are_drawn_together() -> None:
    found, _, _ = images(n=24)
    label = np.resize(["normal", "benign", "malignant"], 24)
    alone = CurveBands(found, np.arange(24), label).auc()
    # twelve copies of two images tell less than 24 images
    groups = CurveBands(found, np.arange(24) // 12, np.array(["all"] * 24)).auc()
    assert groups[1] - groups[0] > alone[1] - alone[0]


def test_what_has_no_band_is_left_out() -> None:
    sweep = ThresholdSweep()
    logits, mask = torch.tensor([0.5, -0.5]).view(1, 1, 1, 2), torch.tensor([1, 0]).view(1, 1, 1, 2)
    sweep.update(logits, mask, torch.tensor([0]))
    found = CurveBands(sweep.per_image(), np.array(["a"]), np.array(["benign"]))
    assert "false_positive_rate_normal_low" not in found.by_threshold()
    assert found.auc() == (1.0, 1.0), "one image: every resample is it"
    empty = ThresholdSweep()
    empty.update(logits, 0 * mask, torch.tensor([0]))
    with pytest.raises(ValueError, match="bands need"):
        CurveBands(empty.per_image(), np.array(["a"]), np.array(["normal"]))
