"""The decoded cache: content, staleness, damaged input, two builders at once."""

from __future__ import annotations

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bustseg.data.cache import cache_root, data_digest, decode, load_cache
from bustseg.data.sources import BUSI, read_grey
from bustseg.errors import DataError
from bustseg.framing import Framing


@pytest.fixture
def root(tmp_path: Path, phantoms: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


def test_the_cache_holds_what_decoding_gives(phantoms: Path, tmp_path: Path) -> None:
    samples = BUSI().read(phantoms)
    cache = load_cache(samples, Framing((40, 48)), tmp_path / "cache")
    assert cache.images.shape == cache.masks.shape == (len(samples), 40, 48)
    assert cache.images.dtype == np.uint8
    assert set(np.unique(cache.masks)) == {0, 1}
    for index in (0, len(samples) - 1):
        image, mask = decode(samples[index], Framing((40, 48)))
        assert np.array_equal(cache.images[index], image)
        assert np.array_equal(cache.masks[index], mask)


def test_several_masks_are_united(root: Path) -> None:
    sample = next(sample for sample in BUSI().read(root) if sample.label == "benign")
    first = read_grey(sample.masks[0]) > 127
    second = np.zeros_like(first)
    second[:5, :7] = True
    Image.fromarray(second.astype(np.uint8) * 255).save(sample.image.with_name(sample.id + "_mask_1.png"))
    again = next(other for other in BUSI().read(root) if other.id == sample.id)
    assert len(again.masks) == len(sample.masks) + 1
    union = again.read_mask(first.shape)
    assert union[:5, :7].all()
    assert union.sum() >= first.sum()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_modes_read_as_the_same_grey(mode: str, tmp_path: Path) -> None:
    grey = np.zeros((8, 9), np.uint8)
    grey[2:5, 3:6] = 255
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "image.png")
    assert np.array_equal(read_grey(tmp_path / "image.png"), grey)


def test_a_changed_file_makes_a_new_cache(root: Path, tmp_path: Path) -> None:
    samples = BUSI().read(root)
    before = load_cache(samples, Framing((32, 32)), tmp_path / "cache")
    image = Image.open(samples[0].image).convert("L")
    Image.fromarray(255 - np.asarray(image)).save(samples[0].image)
    after = load_cache(samples, Framing((32, 32)), tmp_path / "cache")
    assert before.digest != after.digest
    assert not np.array_equal(before.images[0], after.images[0])
    assert np.array_equal(before.images[1:], after.images[1:])


def test_the_digest_sees_labels_ids_and_bytes(phantoms: Path) -> None:
    samples = BUSI().read(phantoms)
    assert data_digest(samples) == data_digest(samples)
    assert data_digest(samples[:-1]) != data_digest(samples)
    assert data_digest(samples[::-1]) != data_digest(samples)


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_a_damaged_image_is_named(keep: float, root: Path, tmp_path: Path) -> None:
    sample = BUSI().read(root)[3]
    content = sample.image.read_bytes()
    sample.image.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(DataError, match=r"truncated|corrupt") as error:
        load_cache(BUSI().read(root), Framing((32, 32)), tmp_path / "cache")
    assert sample.image.name in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*/meta.json")), "no half cache is left"


def test_a_mask_of_another_size_is_named(root: Path, tmp_path: Path) -> None:
    sample = BUSI().read(root)[0]
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(sample.masks[0])
    with pytest.raises(DataError, match="20x10 but its image is 128x96"):
        load_cache(BUSI().read(root), Framing((32, 32)), tmp_path / "cache")


def test_an_image_without_mask_is_named(root: Path) -> None:
    sample = BUSI().read(root)[0]
    for mask in sample.masks:
        mask.unlink()
    with pytest.raises(DataError, match=f"{sample.image.name}.* has no mask".replace("(", r"\(").replace(")", r"\)")):
        BUSI().read(root)


def test_empty_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="benign, malignant, normal"):
        BUSI().read(tmp_path)
    (tmp_path / "benign").mkdir()
    with pytest.raises(DataError, match="no images in benign"):
        BUSI().read(tmp_path)


def _load(root: Path, folder: Path) -> int:
    return int(load_cache(BUSI().read(root), Framing((24, 24)), folder).images.sum())


def test_two_processes_may_build_at_once(phantoms: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        sums = list(pool.map(_load, [phantoms] * 2, [tmp_path / "cache"] * 2))
    assert sums[0] == sums[1] > 0
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == 1


def test_the_cache_lies_beside_the_data_unless_told(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSTSEG_CACHE", str(tmp_path / "elsewhere"))
    assert cache_root(phantoms) == tmp_path / "elsewhere"
    monkeypatch.delenv("BUSTSEG_CACHE")
    assert cache_root(tmp_path / "data") == tmp_path / ".bustseg_cache"


@pytest.mark.busi
def test_the_real_busi_reads_as_published(busi_root: Path) -> None:
    samples = BUSI().read(busi_root)
    counts = {label: sum(sample.label == label for sample in samples) for label in ("benign", "malignant", "normal")}
    assert counts == {"benign": 437, "malignant": 210, "normal": 133}
    assert sum(len(sample.masks) > 1 for sample in samples) == 17
    assert samples[1].id == "benign (2)"
