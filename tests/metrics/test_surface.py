"""HD95 and ASSD by hand and against MONAI."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from bustseg.metrics import surface_distances


def square(side: int, top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_two_pixels_by_hand() -> None:
    result = surface_distances(square(30, 2, 3, 1), square(30, 5, 7, 1))
    assert result["hd95"] == result["assd"] == 5
    assert result["hd95_relative"] == result["assd_relative"] == pytest.approx(5 / math.hypot(30, 30))


def test_square_in_a_square_by_hand() -> None:
    """3 x 3 in the middle of 5 x 5. Inner outline: 8 pixels at distance 1. Outer outline: 12 at 1, 4 corners at sqrt 2.

    95th percentile of the outer 16, interpolated: position 14.25 lies among the corners. A filled outline would add the
    centre of the square.
    """
    result = surface_distances(square(12, 3, 3, 3), square(12, 2, 2, 5))
    assert result["hd95"] == pytest.approx(1.41421356)
    assert result["assd"] == pytest.approx((8 + 12 + 4 * 1.41421356) / 24)


def test_percentile_is_interpolated_and_the_larger_direction_counts() -> None:
    """The mask has one far pixel more: 11 outline pixels, ten at 0 and one at 10 -> position 9.5 -> 5. Back: all 0."""
    prediction, mask = np.zeros((2, 40, 40), dtype=bool)
    prediction[5, 0:10] = True
    mask[5, 0:10] = mask[5, 19] = True
    for ours, theirs in ((prediction, mask), (mask, prediction)):
        result = surface_distances(ours, theirs)
        assert result["hd95"] == pytest.approx(5)
        assert result["assd"] == pytest.approx(10 / 21)


def test_equal_masks_have_no_distance() -> None:
    assert set(surface_distances(square(9, 0, 0, 9), square(9, 0, 0, 9)).values()) == {0.0}


def test_missed_lesion_counts_the_diagonal() -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[10:15, 10:15] = True
    assert surface_distances(np.zeros_like(mask), mask) == {
        "hd95": 50.0,
        "assd": 50.0,
        "hd95_relative": 1.0,
        "assd_relative": 1.0,
    }


@pytest.mark.parametrize("value", [False, True])
def test_an_empty_mask_has_no_distance(value: bool) -> None:
    result = surface_distances(np.full((8, 8), value), np.zeros((8, 8), dtype=bool))
    assert len(result) == 4
    assert all(math.isnan(distance) for distance in result.values())


def test_masks_as_integers() -> None:
    ours, theirs = square(30, 2, 3, 4), square(30, 5, 7, 6)
    assert surface_distances(ours.astype(np.uint8), theirs.astype(np.uint8) * 255) == surface_distances(ours, theirs)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        surface_distances(np.ones((1, 8, 8)), np.ones((1, 8, 8)))
    with pytest.raises(ValueError, match="shape"):
        surface_distances(np.ones((8, 8)), np.ones((8, 9)))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_agrees_with_monai(data: st.DataObject) -> None:
    """Noise, blocks that reach the border, single pixels, full images; at any place, so that cropping is tested too."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))

    def draw() -> np.ndarray:
        kind = data.draw(st.sampled_from(["noise", "block", "pixel", "full"]))
        mask = np.zeros((height, width), dtype=bool)
        top, left = rng.integers(height), rng.integers(width)
        if kind == "noise":
            mask = rng.random(mask.shape) < data.draw(st.sampled_from([0.02, 0.5, 0.95]))
        elif kind == "block":
            mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
        elif kind == "full":
            mask[:] = True
        mask[top, left] = True
        return mask

    prediction, mask = draw(), draw()
    ours = surface_distances(prediction, mask)
    pair = [torch.from_numpy(array)[None, None] for array in (prediction, mask)]
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95).item()
    assd = compute_average_surface_distance(*pair, include_background=True, symmetric=True).item()
    assert ours["hd95"] == pytest.approx(hd95, rel=1e-6, abs=1e-6)
    assert ours["assd"] == pytest.approx(assd, rel=1e-6, abs=1e-6)
