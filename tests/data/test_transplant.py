"""Lesions and tissue moved between training images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bustseg.data.transforms import Augmentation
from bustseg.data.transplant import Pair, transplant

SIDE = 96


def tissue(grey: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 2, (SIDE, SIDE))
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def with_lesion(grey: int = 130, centre: tuple[int, int] = (48, 40), axes: tuple[int, int] = (14, 9)) -> Pair:
    image, mask = tissue(grey), np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(mask, centre, axes, 20, 0, 360, 1, -1)
    image[mask == 1] = grey - 90
    return image, mask


def normal(grey: int = 130) -> Pair:
    return tissue(grey, 1), np.zeros((SIDE, SIDE), np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_a_normal_image_gets_a_lesion_that_lies_where_its_mask_says(seed: int) -> None:
    target = normal(150)
    image, mask = transplant(target, with_lesion(axes=(10, 7)), np.random.default_rng(seed))
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    dark = image < 105  # half way between lesion and the target's tissue
    assert (dark & (mask == 1)).sum() * 2 / (dark.sum() + mask.sum()) > 0.9
    around = cv2.dilate(mask, np.ones((21, 21))) == 0
    assert (image[around] == target[0][around]).all()


def test_the_lesion_takes_the_grey_level_of_its_new_surroundings() -> None:
    image, mask = transplant(normal(200), with_lesion(130), np.random.default_rng(0))
    assert image[mask == 1].mean() == pytest.approx(200 - 90, abs=10)


def test_tissue_goes_over_a_lesion_or_beside_it() -> None:
    target = with_lesion()
    erased = beside = 0
    for seed in range(20):
        image, mask = transplant(target, normal(90), np.random.default_rng(seed))
        inside = image[target[1] == 1]
        if not mask.any():
            erased += 1
            assert inside.mean() > 110  # no longer dark
        else:
            beside += 1
            assert (mask == target[1]).all()
            assert (inside == target[0][target[1] == 1]).all()
    assert min(erased, beside) >= 3


@pytest.mark.parametrize(
    ("target", "donor"),
    [
        (normal(), normal(90)),  # a normal donor has no lesion to give
        (normal(4), with_lesion()),  # no tissue in the target
        (normal(), with_lesion(centre=(2, 40))),  # the lesion is cut by the border
        (normal(), with_lesion(axes=(44, 44))),  # no surroundings to blend it with
    ],
)
def test_an_image_stays_as_it_is_where_nothing_fits(target: Pair, donor: Pair) -> None:
    for seed in range(5):
        image, mask = transplant(target, donor, np.random.default_rng(seed))
        assert image is target[0]
        assert mask is target[1]


def test_no_draw_fails_or_changes_the_kind_of_the_arrays() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        pair = [
            with_lesion(
                int(rng.integers(95, 250)),
                tuple(map(int, rng.integers(0, SIDE, 2))),
                tuple(map(int, rng.integers(1, 60, 2))),
            )
            if rng.random() < 0.7
            else normal(int(rng.integers(0, 250)))
            for _ in range(2)
        ]
        image, mask = transplant(pair[0], pair[1], rng)
        assert image.shape == mask.shape == (SIDE, SIDE)
        assert image.dtype == mask.dtype == np.uint8
        assert mask.max() <= 1


def test_the_draw_depends_on_seed_epoch_and_image_alone() -> None:
    others = [with_lesion(), normal(90), with_lesion(180)]
    augmentation = Augmentation("none", seed=3, transplants=1.0)
    assert augmentation
    first = [augmentation(*normal(), epoch, 5, others)[0] for epoch in range(6)]
    again = [Augmentation("none", seed=3, transplants=1.0)(*normal(), epoch, 5, others)[0] for epoch in range(6)]
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert any((one != normal()[0]).any() for one in first)
    assert any((first[0] != other).any() for other in first[1:])


def test_without_other_images_nothing_is_moved() -> None:
    target = with_lesion()
    image, mask = Augmentation("none", transplants=1.0)(*target, 0, 0)
    assert image is target[0]
    assert mask is target[1]
