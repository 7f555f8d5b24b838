"""What trains a network for scanners that it has not seen: balance, lesion-free crops, other images' looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bustseg.data.datamodule import EpochSampler, UltrasoundDataModule, balanced_weights, weighted_order
from bustseg.data.phantom import write_phantoms
from bustseg.data.transforms import PRESETS, Augmentation, lesion_free_crop
from bustseg.errors import DataError


def speckle(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A grey image and a mask of one round lesion in its middle."""
    image = np.random.default_rng(0).integers(40, 200, (size, size), dtype=np.uint8)
    y, x = np.mgrid[:size, :size] - size / 2
    return image, (x**2 + y**2 < (size / 8) ** 2).astype(np.uint8)


def test_a_crop_beside_the_lesion_shows_none_of_it() -> None:
    image, mask = speckle()
    image[mask > 0] = 255  # nothing else is so bright
    for seed in range(50):
        found = lesion_free_crop(image, mask, np.random.default_rng(seed), tries=200)
        assert found is not None
        crop, empty = found
        assert crop.shape == image.shape
        assert crop.dtype == np.uint8
        assert not empty.any()
        assert crop.max() < 201


def test_a_lesion_that_fills_the_image_leaves_no_crop() -> None:
    image, mask = speckle()
    assert lesion_free_crop(image, np.ones_like(mask), np.random.default_rng(0)) is None


def test_dark_corners_are_no_tissue() -> None:
    image, mask = speckle()
    assert lesion_free_crop(np.zeros_like(image), np.zeros_like(mask), np.random.default_rng(0)) is None


def test_the_share_of_lesion_free_images() -> None:
    image, mask = speckle()
    mask = np.roll(mask, (-40, -40), (0, 1))  # in a corner, where a window beside it is found at once
    augmentation = Augmentation("none", seed=0, lesion_free=0.3)
    empty = [not augmentation(image, mask, 0, index)[1].any() for index in range(400)]
    assert 0.24 < np.mean(empty) < 0.36
    assert bool(augmentation)
    assert not Augmentation("none")


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"none"}))
def test_presets_keep_type_and_size_and_repeat(name: str) -> None:
    image, mask = speckle()
    other = np.full((40, 50), 90, np.uint8)
    augmentation = Augmentation(name, seed=1, lesion_free=0.2)
    for index in range(20):
        changed, moved = augmentation(image, mask, 3, index, [other])
        assert changed.shape == moved.shape == image.shape
        assert changed.dtype == moved.dtype == np.uint8
        assert moved.max() <= 1
        again = augmentation(image, mask, 3, index, [other])
        assert np.array_equal(changed, again[0])
        assert np.array_equal(moved, again[1])


def test_the_look_of_another_image_is_taken_over() -> None:
    import albumentations as A

    image, mask = speckle()
    match = [A.HistogramMatching(blend_ratio=(1.0, 1.0), metadata_key="reference", p=1.0)]
    reference = np.random.default_rng(1).integers(0, 30, image.shape, dtype=np.uint8)
    dark, _ = Augmentation(match)(image, mask, 0, 0, [reference])
    assert dark.max() < 31  # the reference's levels, not the image's
    same, _ = Augmentation(match)(image, mask, 0, 0)
    assert np.abs(same.astype(int) - image).max() <= 1  # an image alone is its own reference


def test_balance_from_every_image_to_every_cell_alike() -> None:
    cells = [("a", False)] * 8 + [("b", False)] * 2
    assert balanced_weights(cells, 0).tolist() == [1] * 10
    whole = balanced_weights(cells, 1)
    assert whole[:8].sum() == pytest.approx(whole[8:].sum())
    half = balanced_weights(cells, 0.5)
    assert half[:8].sum() / half[8:].sum() == pytest.approx(2)  # 4 to the power of one half


def test_an_image_comes_as_often_as_its_weight_says() -> None:
    weights = np.array([1.0, 1, 1, 1, 4])
    for seed in range(20):
        order = weighted_order(weights, np.random.default_rng(seed))
        assert len(order) == 5
        # expected 0.625 and 2.5 times: the floor or one more
        assert set(np.bincount(order, minlength=5)[:4]) <= {0, 1}
        assert np.bincount(order, minlength=5)[4] in (2, 3)
    equal = weighted_order(np.ones(7), np.random.default_rng(0))
    assert sorted(equal) == list(range(7))


def test_a_weighted_epoch_depends_on_seed_and_epoch_alone() -> None:
    weights = np.arange(1.0, 12)
    sampler = EpochSampler(11, 3, shuffle=True, epoch=2, weights=weights)
    assert list(sampler) == list(EpochSampler(11, 3, shuffle=True, epoch=2, weights=weights))
    parts = [EpochSampler(11, 3, shuffle=True, epoch=2, rank=r, world_size=2, weights=weights) for r in (0, 1)]
    assert sorted(key for part in parts for key in part)[1:]
    assert len(list(parts[0])) == len(list(parts[1])) == 6


def test_normals_come_more_often_in_a_balanced_fit(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "phantoms", n=60) or tmp_path / "phantoms"
    shares = []
    for balance in (0.0, 1.0):
        data = UltrasoundDataModule(root=str(root), image_size=32, batch_size=8, balance=balance)
        data.prepare_data()
        data.setup("fit")
        labels = np.concatenate([batch["label"].numpy() for batch in data.train_dataloader()])
        shares.append((labels == 2).mean())
    assert shares[0] < 0.3
    assert shares[1] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("options", [{"balance": -0.1}, {"lesion_free": 1.5}, {"transplants": 2}])
def test_shares_lie_between_0_and_1(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="from 0 to 1"):
        UltrasoundDataModule(**options)  # type: ignore[arg-type]
