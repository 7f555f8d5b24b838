"""The phantoms: BUSI's layout, reproducible, safe to write, and physically plausible."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bustseg.data.phantom import SHARES, Phantom, draw_phantom, phantom_labels, speckle, write_phantoms
from bustseg.data.sources import BUSI
from bustseg.errors import DataError

SMALL = (64, 80)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[np.ndarray, list[np.ndarray]]]]:
    return {
        label: [draw_phantom(np.random.default_rng([7, i]), label, (240, 300)) for i in range(40)]
        for label in ("benign", "malignant", "normal")
    }


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("data") / "phantom", n=40, seed=3, shape=SMALL)


def test_busi_reader_reads_the_set(phantoms: Path) -> None:
    samples = BUSI().read(phantoms)
    assert len(samples) == 40
    assert {sample.label for sample in samples} == set(SHARES)
    for sample in samples:
        image = sample.read_image()
        mask = sample.read_mask(image.shape)
        assert image.shape == SMALL
        assert mask.any() == (sample.label != "normal")


def test_classes_come_in_busis_shares() -> None:
    labels = phantom_labels(780)
    assert [labels.count(name) for name in SHARES] == [437, 210, 133]
    assert all(min(phantom_labels(n).count(name) for name in SHARES) >= 2 for n in range(12, 60))
    assert phantom_labels(30) == phantom_labels(99)[:30]


def test_same_seed_gives_the_same_bytes_and_a_larger_set_starts_with_the_smaller(tmp_path: Path) -> None:
    few = contents(write_phantoms(tmp_path / "few", n=6, seed=1, shape=SMALL))
    again = contents(write_phantoms(tmp_path / "again", n=6, seed=1, shape=SMALL))
    more = contents(write_phantoms(tmp_path / "more", n=12, seed=1, shape=SMALL))
    other = contents(write_phantoms(tmp_path / "other", n=6, seed=2, shape=SMALL))
    assert few == again
    assert few.items() <= more.items()
    assert few["benign/benign (1).png"] != other["benign/benign (1).png"]


_DIGEST = """
import hashlib
import numpy as np
from bustseg.data.phantom import SHARES, draw_phantom
for seed, label in enumerate(SHARES):
    image, masks = draw_phantom(np.random.default_rng(seed), label)
    print(label, hashlib.sha256(b"".join(part.tobytes() for part in (image, *masks))).hexdigest())
"""


def test_other_processors_draw_the_same_pixels() -> None:
    """Libraries are told to use older instructions, as they would by themselves on an older processor."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    others = (
        {"NPY_DISABLE_CPU_FEATURES": " ".join(found)},
        {"OPENCV_IPP": "disabled", "OPENBLAS_CORETYPE": "Haswell"},
        {
            "NPY_DISABLE_CPU_FEATURES": " ".join(found),
            "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1",
            "OPENCV_IPP": "disabled",
            "OPENBLAS_CORETYPE": "Prescott",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
        },
    )
    drawn = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST], env=os.environ | other, capture_output=True, text=True, check=True
        ).stdout
        for other in ({}, *others)
    ]
    assert len(drawn[0].splitlines()) == len(SHARES)
    assert drawn[1:] == drawn[:1] * len(others)


def test_sizes_and_png_modes_vary_as_in_busi(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "set", n=20)
    images = [Image.open(sample.image) for sample in BUSI().read(root)]
    widths, heights = ({image.size[axis] for image in images} for axis in (0, 1))
    assert min(widths) >= 300
    assert max(widths) <= 750
    assert min(heights) >= 250
    assert max(heights) <= 600
    assert len(widths) > 10
    masks = {Image.open(path).mode for path in root.glob("*/*_mask*.png")}
    assert {"1", "L", "RGB"} <= masks


def test_png_modes_of_images(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "set", n=80, shape=(32, 32))
    assert {Image.open(sample.image).mode for sample in BUSI().read(root)} == {"L", "RGB", "RGBA"}
    assert max(len(sample.masks) for sample in BUSI().read(root)) >= 2


def test_range_of_shapes(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "set", n=8, shape=((40, 60), 48))
    shapes = [sample.read_image().shape for sample in BUSI().read(root)]
    assert all(40 <= height <= 60 and width == 48 for height, width in shapes)


@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (250, 301)])
@pytest.mark.parametrize("label", list(SHARES))
def test_draws_any_shape(shape: tuple[int, int], label: str) -> None:
    image, masks = draw_phantom(np.random.default_rng(0), label, shape)
    assert image.shape == shape
    assert image.dtype == np.uint8
    for mask in masks:
        assert mask.shape == shape
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any() == (label != "normal")


def test_every_lesion_has_pixels_and_lesions_of_one_image_lie_apart(drawn: dict) -> None:
    counts = []
    for _, masks in drawn["benign"] + drawn["malignant"]:
        assert all(mask.any() for mask in masks)
        assert np.max(np.sum([mask > 0 for mask in masks], axis=0)) == 1
        counts.append(len(masks))
    assert 1 in counts
    assert 2 in counts


def test_lesion_areas_are_those_of_busi(drawn: dict) -> None:
    shares = [np.mean(np.max(masks, axis=0) > 0) for label in ("benign", "malignant") for _, masks in drawn[label]]
    assert 0.03 < np.median(shares) < 0.12
    assert min(shares) < 0.02
    assert 0.15 < max(shares) < 0.4


def test_speckle_is_rayleigh() -> None:
    """A Rayleigh envelope's mean is sqrt(pi / (4 - pi)) = 1.913 times its standard deviation."""
    envelope = speckle(np.random.default_rng(0), np.full((400, 400), 3.0, dtype=np.float32))[20:-20, 20:-20]
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, abs=0.04)
    assert np.mean(envelope**2) == pytest.approx(9, rel=0.03)
    top, bottom = envelope[:100], envelope[-100:]
    assert np.mean(top**2) == pytest.approx(np.mean(bottom**2), rel=0.08)


def test_speckle_widens_with_depth_and_is_longer_across_than_along() -> None:
    envelope = speckle(np.random.default_rng(0), np.ones((400, 400), dtype=np.float32))

    def correlation(part: np.ndarray, axis: int, lag: int = 2) -> float:
        part = part - part.mean()
        moved = np.roll(part, lag, axis)[lag:, lag:]
        return float(np.mean(part[lag:, lag:] * moved) / part.var())

    top, bottom = envelope[20:120], envelope[-120:-20]
    assert correlation(bottom, 1) > correlation(top, 1) + 0.15
    assert correlation(bottom, 1) > correlation(bottom, 0) + 0.15


def test_lesions_are_hypoechoic_on_average(drawn: dict) -> None:
    for label in ("benign", "malignant"):
        ratios = []
        for image, masks in drawn[label]:
            mask = np.max(masks, axis=0)
            ring = (cv2.dilate(mask, np.ones((31, 31), np.uint8)) > 0) & (mask == 0)
            ratios.append(image[mask > 0].mean() / image[ring].mean())
        assert 0.4 < np.median(ratios) < 0.8
        assert np.mean(np.array(ratios) < 1) > 0.9


def test_benign_outlines_are_smoother_and_lie_wider_than_malignant_ones(drawn: dict) -> None:
    solidity, taller = {}, {}
    for label in ("benign", "malignant"):
        values, tall = [], []
        for _, masks in drawn[label]:
            outline = max(cv2.findContours(masks[0], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=cv2.contourArea)
            values.append(cv2.contourArea(outline) / cv2.contourArea(cv2.convexHull(outline)))
            _, _, width, height = cv2.boundingRect(outline)
            tall.append(height > width)
        solidity[label], taller[label] = np.median(values), np.mean(tall)
    assert solidity["benign"] > 0.96
    assert solidity["malignant"] < solidity["benign"] - 0.03
    assert taller["malignant"] > taller["benign"]


def test_benign_lesions_enhance_and_malignant_ones_shadow(drawn: dict) -> None:
    """Below the lesion against beside that place, in grey levels."""
    behind = {}
    for label in ("benign", "malignant"):
        differences = []
        for image, masks in drawn[label]:
            rows, columns = np.nonzero(masks[0])
            bottom, left, right = rows.max() + 3, columns.min(), columns.max()
            middle = slice((2 * left + right) // 3, (left + 2 * right) // 3 + 1)
            strip = image[bottom : bottom + 20].astype(float)
            beside = np.concatenate([strip[:, max(0, left - 30) : left], strip[:, right + 1 : right + 31]], axis=1)
            if strip.shape[0] == 20 and beside.size and beside.any():
                differences.append(strip[:, middle].mean() - beside.mean())
        behind[label] = np.mean(differences)
    assert behind["benign"] > behind["malignant"] + 8


def test_no_threshold_finds_the_lesions(drawn: dict) -> None:
    """The best global threshold with its largest component stays far from what a network reaches."""
    pairs = []
    for image, masks in drawn["benign"][:20] + drawn["malignant"][:20]:
        small = cv2.resize(cv2.GaussianBlur(image, (0, 0), 2), (100, 80), interpolation=cv2.INTER_AREA)
        pairs.append((small, cv2.resize(np.max(masks, axis=0), (100, 80)) > 127))
    best = 0.0
    for threshold in range(10, 150, 10):
        dices = []
        for image, mask in pairs:
            _, parts, stats, _ = cv2.connectedComponentsWithStats((image < threshold).astype(np.uint8))
            found = parts == 1 + stats[1:, 4].argmax() if len(stats) > 1 else np.zeros_like(mask)
            dices.append(2 * np.sum(found & mask) / max(1, np.sum(found) + np.sum(mask)))
        best = max(best, float(np.mean(dices)))
    assert best < 0.45


def test_the_same_set_is_returned_and_not_rewritten(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = write_phantoms(tmp_path / "set", n=3, shape=SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_phantoms(root, n=3, shape=SMALL, progress=lambda *_: pytest.fail("drawn again")) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert json.loads((root / "phantom.json").read_text())["n"] == 3


def test_writes_into_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert len(BUSI().read(write_phantoms(tmp_path / "empty", n=3, shape=SMALL))) == 3


def test_foreign_folders_and_files_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_phantoms(tmp_path / "theirs", n=3, shape=SMALL)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="is a file"):
        write_phantoms(tmp_path / "theirs" / "notes.txt", n=3, shape=SMALL)
    with pytest.raises(DataError, match="cannot write"):
        write_phantoms(tmp_path / "theirs" / "notes.txt" / "set", n=3, shape=SMALL)


def test_another_or_damaged_phantom_set_is_refused(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path / "set", n=3, shape=SMALL)
    with pytest.raises(DataError, match="seed 0 instead of 1"):
        write_phantoms(root, n=3, seed=1, shape=SMALL)
    (root / "benign" / "benign (1).png").unlink()
    with pytest.raises(DataError, match="lost or gained"):
        write_phantoms(root, n=3, shape=SMALL)
    (root / "phantom.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        write_phantoms(root, n=3, shape=SMALL)


@pytest.mark.parametrize("options", [{"n": 0}, {"seed": -1}, {"shape": (8, 64)}, {"shape": ((90, 40), 64)}])
def test_senseless_options_are_refused_in_one_line(tmp_path: Path, options: dict) -> None:
    with pytest.raises(DataError) as caught:
        write_phantoms(tmp_path / "set", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_unknown_class_is_refused() -> None:
    with pytest.raises(DataError, match="unknown"):
        draw_phantom(np.random.default_rng(0), "unknown")


def test_an_interrupted_set_leaves_nothing_and_can_be_written_again(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "set", n=3, shape=SMALL, progress=stop)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(BUSI().read(write_phantoms(tmp_path / "set", n=3, shape=SMALL))) == 3


def _prepare(root: Path, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    Phantom(n=6, seed=5).prepare(root)


def test_two_processes_prepare_the_same_root(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_prepare, args=(tmp_path / "set", barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Phantom(n=6, seed=5).read(tmp_path / "set")) == 6
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["set"]


def test_source_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSTSEG_CACHE", str(tmp_path))
    source = Phantom(n=3)
    assert source.default_root().parent == tmp_path
    source.prepare(source.default_root())
    samples = source.read(source.default_root())
    assert len(samples) == 3
    assert {sample.source for sample in samples} == {"phantom"}


def test_a_place_where_no_file_can_be_made_is_told_at_once() -> None:
    with pytest.raises(DataError, match="cannot write phantoms to /proc/bustseg"):
        write_phantoms(Path("/proc/bustseg"), n=2)


def test_more_phantoms_than_a_disk_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="n must lie from 1 to 100,000"):
        write_phantoms(tmp_path / "p", n=10**9)
