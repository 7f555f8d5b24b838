"""Batches: alignment, order, augmentation draws, splits on the real make-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from bustseg.data import cache
from bustseg.data.datamodule import EpochSampler, UltrasoundDataModule
from bustseg.data.phantom import Phantom
from bustseg.data.sources import BUSI, LABELS
from bustseg.data.transforms import Augmentation
from bustseg.errors import DataError
from tests.conftest import TINY


def module(root: Path, **options: object) -> UltrasoundDataModule:
    data = UltrasoundDataModule(root=str(root), image_size=32, batch_size=8, seed=0, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def test_batches_hold_grey_bytes_masks_labels_and_positions(phantoms: Path) -> None:
    data = module(phantoms)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert batch["image"].shape == batch["mask"].shape == (len(batch["index"]), 1, 32, 32)
    for image, mask, label, index in zip(*(batch[key] for key in ("image", "mask", "label", "index")), strict=True):
        own_image, own_mask = data.arrays(int(index))
        assert np.array_equal(image[0], own_image)
        assert np.array_equal(mask[0], own_mask)
        assert LABELS[int(label)] == data.samples[int(index)].label


def test_an_epoch_shows_every_training_image_once(phantoms: Path) -> None:
    data = module(phantoms)
    loader = data.train_dataloader()
    first = torch.cat([batch["index"] for batch in loader])
    assert sorted(first.tolist()) == data.indices["train"].tolist()
    loader.batch_sampler.sampler.set_epoch(1)  # type: ignore[union-attr]
    assert torch.cat([batch["index"] for batch in loader]).tolist() != first.tolist()


@pytest.mark.timeout(60)
def test_loaders_start_after_opencv_has_used_its_threads(phantoms: Path) -> None:
    cv2.setNumThreads(2)
    for _ in range(5):
        cv2.GaussianBlur(np.zeros((1000, 1000), np.float32), (31, 31), 5)
    data = module(phantoms, augmentation="ultrasound", num_workers=2)
    assert sum(len(batch["index"]) for batch in data.train_dataloader()) == len(data.indices["train"])


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_seed_epoch_and_image_alone(workers: int, phantoms: Path) -> None:
    def epoch(number: int, workers: int) -> dict[int, torch.Tensor]:
        loader = module(phantoms, augmentation="ultrasound", num_workers=workers).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(number)  # type: ignore[union-attr]
        return {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}

    first, again, second = epoch(0, 0), epoch(0, workers), epoch(1, workers)
    assert all(torch.equal(first[i], again[i]) for i in first)
    differing = sum(not torch.equal(first[i], second[i]) for i in first)
    # each transform may stay out, so an image may come as it is in both epochs; a repeated draw would repeat all
    assert differing >= len(first) - 2


def test_image_and_mask_move_together() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 1
    image = mask * 255
    steps = [A.HorizontalFlip(p=0.5), A.Affine(rotate=(-40, 40), translate_percent=(-0.2, 0.2), p=1)]
    augmentation = Augmentation(steps, seed=3)
    moved = 0
    for epoch in range(8):
        new_image, new_mask = augmentation(image, mask, epoch, 0)
        agree = ((new_image > 127) == (new_mask > 0)).mean()
        assert agree > 0.97
        moved += not np.array_equal(new_mask, mask)
    assert moved == 8


def test_evaluation_shards_count_every_image_once() -> None:
    for length, world in ((10, 3), (78, 4), (5, 2)):
        shards = [list(EpochSampler(length, 0, False, rank=rank, world_size=world)) for rank in range(world)]
        assert sorted(position for shard in shards for position in shard) == list(range(length))
        training = [list(EpochSampler(length, 0, True, rank=rank, world_size=world)) for rank in range(world)]
        assert len({len(shard) for shard in training}) == 1
        assert {position for shard in training for position in shard} == set(range(length))


def test_phantoms_need_no_folder() -> None:
    data = UltrasoundDataModule(source=Phantom(n=12), image_size=32)
    data.prepare_data()
    data.setup()
    assert sum(map(len, data.indices.values())) == 12


def test_a_csv_split_is_followed(phantoms: Path, tmp_path: Path) -> None:
    samples = module(phantoms).samples
    rows = [f"{sample.id},{('train', 'train', 'val', 'test')[i % 4]}" for i, sample in enumerate(samples)]
    (tmp_path / "split.csv").write_text("image,subset\n" + "\n".join(rows))
    data = module(phantoms, split=str(tmp_path / "split.csv"))
    assert data.indices["val"].tolist() == list(range(2, len(samples), 4))
    assert data.split_digest != module(phantoms).split_digest


def test_a_split_without_test_images_says_so(phantoms: Path, tmp_path: Path) -> None:
    samples = module(phantoms).samples
    (tmp_path / "split.csv").write_text(
        "image,subset\n" + "\n".join(f"{sample.id},{'val' if i < 4 else 'train'}" for i, sample in enumerate(samples))
    )
    with pytest.raises(DataError, match="no test images"):
        module(phantoms, split=str(tmp_path / "split.csv")).test_dataloader()


@pytest.mark.busi
def test_the_paper_split_of_busi(busi_root: Path) -> None:
    data = UltrasoundDataModule(root=str(busi_root), image_size=32)
    data.setup()
    assert {name: len(indices) for name, indices in data.indices.items()} == {"train": 624, "val": 78, "test": 78}
    labels = [data.samples[index].label for index in data.indices["test"]]
    assert labels.count("normal") == 16
    assert labels.count("benign") + labels.count("malignant") == 62
    lesion = UltrasoundDataModule(root=str(busi_root), image_size=32, split="lesion")
    lesion.setup()
    assert sum(len(indices) for indices in lesion.indices.values()) == 647
    assert abs(len(lesion.indices["train"]) - 0.8 * 647) < 2


def test_a_fit_reads_and_hashes_every_file_once(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, bustseg: Callable[..., tuple[int, str, str]]
) -> None:
    hashed: list[Path] = []
    scanned: list[Path] = []
    digest, scan = cache._file_digest, BUSI.scan
    monkeypatch.setattr(cache, "_file_digest", lambda path: hashed.append(path) or digest(path))
    monkeypatch.setattr(BUSI, "scan", lambda self, root: scanned.append(root) or scan(self, root))
    code, _, err = bustseg(
        *("fit", "--config", TINY, "--data.root", phantoms, "--data.split", "grouped", "--trainer.max_epochs", 1)
    )
    assert code == 0, err
    assert len(scanned) == 1
    assert sorted(hashed) == sorted((phantoms).glob("*/*.png"))
    # where another process has prepared the data, this one reads them for itself
    data = UltrasoundDataModule(root=str(phantoms), image_size=32)
    data.setup()
    assert len(scanned) == 2
    data.setup()
    data.prepare_data()
    assert len(scanned) == 2


def test_the_name_of_before_still_works() -> None:
    from bustseg.data.datamodule import BUSIDataModule

    assert BUSIDataModule is UltrasoundDataModule
