"""Masks after the threshold, by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bustseg.errors import UserError
from bustseg.postprocess import PostProcess

EIGHT = np.ones((3, 3))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows], dtype=np.uint8)


MASK = drawn(
    "####......",
    "#..#....#.",
    "#..#...#..",
    "####......",
    ".........#",
)  # a ring of 12 around 4, two pixels that touch at a corner, one alone; 50 pixels
RING, RING_AND_PAIR = MASK.copy(), MASK.copy()
RING[:, 4:] = 0
RING_AND_PAIR[4, 9] = 0


def test_the_default_changes_nothing() -> None:
    assert PostProcess()(MASK) is MASK


def test_small_components_go() -> None:
    # 2 of 50 pixels are 0.04: exactly that share stays
    assert np.array_equal(PostProcess(min_area_px_relative=0.04)(MASK), RING_AND_PAIR)
    assert np.array_equal(PostProcess(min_area_px_relative=0.041)(MASK), RING)
    assert not PostProcess(min_area_px_relative=0.25)(MASK).any()
    # with its hole filled the ring has 16 pixels, a share of 0.32
    assert PostProcess(min_area_px_relative=0.25, fill_holes=True)(MASK).sum() == 16


def test_the_largest_is_kept() -> None:
    assert np.array_equal(PostProcess(keep="largest")(MASK), RING)
    equal = drawn("##..##", "......")
    assert np.array_equal(PostProcess(keep="largest")(equal), drawn("##....", "......"))
    assert not PostProcess(keep="largest", min_area_px_relative=0.5)(MASK).any()
    empty = np.zeros((3, 4), np.uint8)
    assert np.array_equal(PostProcess(keep="largest", fill_holes=True)(empty), empty)


def test_components_far_less_confident_than_the_best_go() -> None:
    # logits of the ring 3, of the pair 2 and 0.5 (mean 1.25), of the single pixel 1.1
    logits = np.where(MASK, 3.0, -4.0)
    logits[1, 8], logits[2, 7], logits[4, 9] = 2, 0.5, 1.1
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert np.array_equal(PostProcess(max_confidence_gap=2)(MASK, probability), MASK)
    assert np.array_equal(PostProcess(max_confidence_gap=1.8)(MASK, probability), RING_AND_PAIR)
    assert np.array_equal(PostProcess(max_confidence_gap=1)(MASK, probability), RING)
    # the most confident one stays whatever its size, and is not compared with what another step removes later
    logits[4, 9] = 9
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert PostProcess(max_confidence_gap=0)(MASK, probability).sum() == 1
    assert not PostProcess(max_confidence_gap=0, min_area_px_relative=0.1)(MASK, probability).any()
    # certain to the last bit is no division by zero
    assert PostProcess(max_confidence_gap=0)(MASK, MASK.astype(np.float32)).sum() == MASK.sum()
    with pytest.raises(ValueError, match="none were given"):
        PostProcess(max_confidence_gap=2)(MASK)


def test_components_without_a_probable_pixel_go() -> None:
    probability = np.where(MASK, 0.6, 0.1).astype(np.float32)
    probability[0, 0], probability[2, 7] = 0.95, 0.8  # peaks: of the ring, of the pair; the single pixel has 0.6
    assert np.array_equal(PostProcess(min_peak_probability=0.5)(MASK, probability), MASK)
    assert np.array_equal(PostProcess(min_peak_probability=0.8)(MASK, probability), RING_AND_PAIR)
    assert np.array_equal(PostProcess(min_peak_probability=0.9)(MASK, probability), RING)
    assert not PostProcess(min_peak_probability=0.96)(MASK, probability).any()
    assert not PostProcess(min_peak_probability=0.96, max_confidence_gap=2)(MASK, probability).any()
    with pytest.raises(ValueError, match="none were given"):
        PostProcess(min_peak_probability=0.8)(MASK)


def test_what_has_no_peak_is_not_what_others_are_compared_with() -> None:
    probability = np.full((4, 8), 0.01, np.float32)
    probability[0, 0:2], probability[3, 2:6], probability[3, 7] = 0.8, 0.55, 0.9
    probability[3, 2] = 0.92
    mask = (probability > 0.5).astype(np.uint8)
    # mean logits 1.39, 0.76 and 2.2; without the last, whose peak is too low, the second is within the gap of nothing
    found = PostProcess(max_confidence_gap=1, min_peak_probability=0.91)(mask, probability)
    assert found.sum() == 4
    assert found[3, 2:6].all()
    assert PostProcess(max_confidence_gap=1)(mask, probability).sum() == 3


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((40, 57)) < rng.uniform(0.2, 0.6)).astype(np.uint8)
    original = mask.copy()
    filled = ndimage.binary_fill_holes(mask)
    assert np.array_equal(PostProcess(fill_holes=True)(mask), filled.astype(np.uint8))
    labels, n = ndimage.label(filled, EIGHT)
    areas = ndimage.sum_labels(filled, labels, range(1, n + 1))
    expected = np.isin(labels, 1 + np.flatnonzero(areas >= 0.01 * mask.size))
    found = PostProcess(fill_holes=True, min_area_px_relative=0.01)(mask)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.astype(np.uint8))
    assert np.array_equal(mask, original), "the input is not changed"


def test_settings_travel_as_plain_types_and_unknown_ones_are_refused() -> None:
    settings = PostProcess(0.01, "largest", True, 2.0, 0.9)
    assert PostProcess.from_dict(settings.to_dict()) == settings
    assert PostProcess.from_dict(None) == PostProcess()
    with pytest.raises(UserError, match="asks for postprocess dilate, which this version does not know"):
        PostProcess.from_dict({"dilate": 3})
    for bad in (
        {"min_area_px_relative": 1},
        {"min_area_px_relative": -0.1},
        {"keep": "smallest"},
        {"max_confidence_gap": -1},
        {"min_peak_probability": 1},
        {"min_peak_probability": -0.1},
    ):
        with pytest.raises(UserError, match="postprocess"):
            PostProcess.from_dict(bad)
