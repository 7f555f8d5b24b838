"""Threshold and smallest component: by hand, and against post-processing and metric applied one after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bustseg.masks import PostProcess
from bustseg.metrics import OperatingPoint, OperatingPoints, SegmentationMetrics


def blobs(images: int = 10, side: int = 60) -> tuple[Tensor, Tensor]:
    """A lesion, and around it lesser blobs of lower probability; every third image has no lesion."""
    rng = np.random.default_rng(5)
    probability, mask = np.full((images, 1, side, side), 0.05), np.zeros((images, 1, side, side), np.uint8)
    for image in range(images):
        for _ in range(6):
            top, left = rng.integers(0, side - 8, 2)
            height, width = rng.integers(1, 8, 2)
            probability[image, 0, top : top + height, left : left + width] = rng.uniform(0.2, 0.9)
        if image % 3:
            mask[image, 0, 20:40, 15:35] = 1
            probability[image, 0, 22:42, 14:33] = rng.uniform(0.5, 0.95)
    return torch.logit(torch.from_numpy(probability).float()), torch.from_numpy(mask)


def seen(logits: Tensor, mask: Tensor, postprocess: PostProcess | None = None) -> OperatingPoints:
    metric = OperatingPoints(postprocess)
    for part in torch.arange(len(logits)).split(4):
        metric.update(logits[part], mask[part], part)
    return metric


@pytest.mark.parametrize("doubts", [{}, {"max_confidence_gap": 1.0}, {"min_peak_probability": 0.8}])
def test_every_pair_agrees_with_the_steps_taken_apart(doubts: dict[str, float]) -> None:
    logits, mask = blobs()
    points = seen(logits, mask, PostProcess(**doubts)).points()  # type: ignore[arg-type]
    assert len({(point.threshold, point.min_area) for point in points}) == len(points) == 105
    for point in points[::5]:
        cut = logits.sigmoid() > point.threshold
        step = PostProcess(min_area_px_relative=point.min_area, **doubts)  # type: ignore[arg-type]
        pairs = zip(cut[:, 0].numpy().astype(np.uint8), logits.sigmoid()[:, 0].numpy(), strict=True)
        after = torch.stack([torch.from_numpy(step(one, probability)) for one, probability in pairs])[:, None]
        metric = SegmentationMetrics(0.5)
        metric.update(20.0 * after - 10, mask, torch.zeros(len(mask), dtype=torch.int64), torch.arange(len(mask)))
        expected = metric.compute()
        for name in ("dice_empty_one", "dice_lesion", "false_positive_rate_normal"):
            assert getattr(point, name) == pytest.approx(float(expected[name]), abs=1e-6), (point, name)


def test_a_speck_on_a_normal_image_is_worth_a_smallest_component() -> None:
    logits, mask = torch.full((8, 1, 50, 50), -5.0), torch.zeros(8, 1, 50, 50)
    logits[:4, 0, 10:30, 10:30], mask[:4, 0, 10:30, 10:30] = 5, 1
    logits[4:, 0, 3:5, 3:5] = 5  # 4 of 2500 pixels
    best = seen(logits, mask).recommended()
    assert best == OperatingPoint(0.5, 0.002, 1.0, 1.0, 0.0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_of_equals_the_one_that_changes_least() -> None:
    logits, mask = torch.full((1, 1, 8, 8), -5.0), torch.zeros(1, 1, 8, 8)
    best = seen(logits, mask).recommended()
    assert best is not None
    assert (best.threshold, best.min_area, best.dice_empty_one) == (0.5, 0.0, 1.0)
    assert math.isnan(best.dice_lesion)
    assert OperatingPoints().points() == []
    assert OperatingPoints().recommended() is None


def test_a_gain_that_hangs_on_one_image_is_not_followed() -> None:
    """A smallest component that clears one normal of 20 stays within one standard error; clearing ten does not."""
    for specks, expected in ((1, 0.0), (10, 0.002)):
        logits, mask = torch.full((20, 1, 50, 50), -5.0), torch.zeros(20, 1, 50, 50)
        logits[:specks, 0, 3:5, 3:5] = 5  # 4 of 2500 pixels
        metric = seen(logits, mask)
        assert max(point.dice_empty_one for point in metric.points()) == 1
        best = metric.recommended()
        assert best is not None
        assert (best.threshold, best.min_area) == (0.5, expected)
