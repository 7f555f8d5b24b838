"""Dice by threshold: by hand, and against the metric that counts one threshold at a time."""

import pytest
import torch
from torch import Tensor

from bustseg.metrics import SegmentationMetrics, ThresholdSweep, best_threshold
from bustseg.metrics.curves import SWEEP


def data(images: int = 12) -> tuple[Tensor, Tensor]:
    """Half of the images have a lesion; on one of the others nothing is ever predicted."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(images, 1, 24, 20, generator=generator) < 0.2
    mask[images // 2 :] = False
    logits = 2 * torch.randn(mask.shape, generator=generator) + 2 * mask - 1
    logits[-1] = -30
    return logits, mask


def sweep(logits: Tensor, mask: Tensor, batch: int = 5) -> ThresholdSweep:
    metric = ThresholdSweep()
    for part in torch.arange(len(logits)).split(batch):
        metric.update(logits[part], mask[part], part)
    return metric


def test_two_pixels_by_hand() -> None:
    """Lesion pixel at 0.8, background pixel at 0.3: Dice 2/3 below 0.3, 1 up to 0.8, then 0."""
    logits = torch.logit(torch.tensor([0.8, 0.3])).view(1, 1, 1, 2)
    dice = sweep(logits, torch.tensor([1, 0]).view(1, 1, 1, 2)).compute()["dice_lesion"]
    assert dice[:29].tolist() == pytest.approx([2 / 3] * 29)
    assert dice[31:78].tolist() == [1.0] * 47
    assert dice[80:].tolist() == [0.0] * 19
    # of the plateau the threshold nearest to 0.5
    assert best_threshold(dice) == (0.5, 1.0)


def test_every_convention_agrees_with_the_metric_at_one_threshold() -> None:
    logits, mask = data()
    curves = sweep(logits, mask).compute()
    for place in (0, 24, 49, 60, 98):
        metric = SegmentationMetrics(float(SWEEP[place]))
        metric.update(logits, mask, torch.zeros(len(logits), dtype=torch.int64), torch.arange(len(logits)))
        expected = metric.compute()
        assert set(curves) == {"dice_lesion", "dice_paper", "dice_empty_one", "false_positive_rate_normal"}
        for name, values in curves.items():
            assert values[place].item() == pytest.approx(expected[name].item(), abs=1e-12), (name, place)


def test_an_image_counts_once_and_processes_join() -> None:
    logits, mask = data()
    whole = sweep(logits, mask).compute()
    first, second = ThresholdSweep(), ThresholdSweep()
    first.update(logits[:7], mask[:7], torch.arange(7))
    second.update(logits[5:], mask[5:], torch.arange(5, 12))
    first.merge_state(second)
    for name, values in first.compute().items():
        assert torch.equal(values, whole[name])


def test_what_cannot_be_defined_has_no_key() -> None:
    assert ThresholdSweep().compute() == {}
    lesion = torch.ones(1, 1, 2, 2)
    assert "false_positive_rate_normal" not in sweep(lesion, lesion).compute()
    assert "dice_lesion" not in sweep(lesion, 0 * lesion).compute()
    nothing = sweep(torch.full((1, 1, 2, 2), torch.nan), 0 * lesion).compute()
    assert nothing["false_positive_rate_normal"].tolist() == [0.0] * 99
    with pytest.raises(ValueError, match="shape"):
        ThresholdSweep().update(lesion, lesion[0], torch.zeros(1))
