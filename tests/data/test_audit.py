import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bustseg.data.artefacts import find_artefacts
from bustseg.data.audit import AuditReport, audit
from bustseg.data.duplicates import Pair, duplicate_groups, find_pairs, group_pairs, pixel_digest, thumbnail
from bustseg.data.sources import BUSI, Sample, read_grey, read_native
from bustseg.data.splits import grouped_split, leakage, make_split, paper_split
from bustseg.errors import DataError
from bustseg.reports.audit import render, write_report
from bustseg.reports.data import check_command, split_command
from tests.data.speckle import speckle_image, write_sample

_REAL = Path(os.environ.get("BUSI_ROOT") or Path(__file__).parents[3] / "shared/data/Dataset_BUSI_with_GT")
busi = [
    pytest.mark.busi,
    pytest.mark.skipif(not _REAL.is_dir(), reason="the real BUSI is not at BUSI_ROOT"),
]


def mirrored(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def cropped(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    y, x = round(0.05 * height), round(0.05 * width)
    return image[y : height - y, x : width - x].copy()


def cropped_at_one_corner(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return image[round(0.05 * height) :, : width - round(0.05 * width)].copy()


def rescaled(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.62, fy=0.62, interpolation=cv2.INTER_AREA)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(1.15 * image.astype(np.float32) + 25, 0, 255).astype(np.uint8)


def recompressed(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 35])[1], cv2.IMREAD_GRAYSCALE)


COPIES: list[Callable[[np.ndarray], np.ndarray]] = [
    mirrored,
    cropped,
    cropped_at_one_corner,
    rescaled,
    brighter,
    recompressed,
]


def planted(originals: list[np.ndarray], others: list[np.ndarray]) -> tuple[list[Pair], set[tuple[str, str]]]:
    """Pairs found among originals, one copy of each and others, and the pairs that were planted."""
    images, names, truth = [], [], set()
    for number, image in enumerate(originals):
        copy = COPIES[number % len(COPIES)]
        truth.add((f"{number} copy", f"{number} original"))
        images += [image, copy(image)]
        names += [f"{number} original", f"{number} copy"]
    images += others
    names += [f"{number} other" for number in range(len(originals), len(originals) + len(others))]
    samples = [Sample(name, Path(name), (), "benign") for name in names]
    return find_pairs(samples, [thumbnail(image) for image in images], [pixel_digest(image) for image in images]), truth


def test_planted_copies_are_found_and_look_alikes_are_not():
    originals = [speckle_image(seed)[0] for seed in range(60)]
    others = [speckle_image(seed)[0] for seed in range(1000, 1200)]
    pairs, truth = planted(originals, others)
    found = {(pair.first, pair.second) for pair in pairs}
    assert len(found & truth) >= 0.95 * len(truth)
    assert not found - truth
    kinds = {pair.first: pair.kind for pair in pairs}
    assert kinds["0 copy"] == "mirrored"
    assert kinds["1 copy"] == "near"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return BUSI().read(_REAL)


@pytest.fixture(scope="module")
def real(samples) -> AuditReport:
    return audit(BUSI(), _REAL)


class TestRealBUSI:
    pytestmark = busi

    @pytest.mark.slow
    def test_planted_copies(self, samples, real):
        single = [sample.read_image() for sample in samples if sample.id not in real.groups]
        rng = np.random.default_rng(0)
        chosen = [single[index] for index in rng.permutation(len(single))[:320]]
        pairs, truth = planted(chosen[:120], chosen[120:])
        found = {(pair.first, pair.second) for pair in pairs}
        assert len(found & truth) >= 0.95 * len(truth)
        assert not found - truth

    def test_counts(self, real):
        counts = real.counts()
        assert counts["images"] == 780
        assert counts["images_with_several_masks"] == 17
        assert counts["coloured_overlays"] == 8
        assert counts["wrong"] == 0
        assert 145 <= counts["duplicate_groups"] <= 165
        assert counts["exact_pairs"] == 1

    def test_the_known_pair_of_two_classes(self, real):
        assert ("benign (433)", "malignant (145)") in {
            (pair.first, pair.second) for pair in real.pairs if pair.cross_class
        }
        assert real.groups["benign (433)"] == real.groups["malignant (145)"]

    def test_masks_that_contradict_each_other_are_named(self, real):
        assert ("benign (437)", "normal (34)") in {(pair.first, pair.second) for pair in real.contradictions}

    def test_time(self, real):
        assert real.seconds < 60

    def test_the_report_is_small_enough_to_send(self, real, tmp_path):
        write_report(real, tmp_path / "report.html")
        assert (tmp_path / "report.html").stat().st_size < 15e6

    def test_the_paper_split_leaks_and_the_grouped_one_does_not(self, samples, real):
        assert leakage(paper_split(samples, 0), real.groups).share["test"] > 0.25
        split = grouped_split(samples, real.groups, 0)
        assert leakage(split, real.groups).leaked == {"val": 0, "test": 0}
        assert split["subset"].value_counts().to_dict() == {"train": 624, "val": 78, "test": 78}

    @pytest.mark.parametrize(
        ("kind", "precision", "recall"), [("text", 0.95, 0.85), ("calipers", 0.95, 0.95), ("overlay", 1, 1)]
    )
    def test_detectors_on_the_labelled_sample(self, real, kind, precision, recall):
        labels = pd.read_csv(Path(__file__).with_name("artefact_labels.csv")).set_index("image")
        records = {record.image: record for record in real.records}
        found = pd.Series({image: bool(getattr(records[image], kind)) for image in labels.index})
        truth = labels[kind].astype(bool)
        assert (found & truth).sum() >= precision * found.sum()
        assert (found & truth).sum() >= recall * truth.sum()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve sound images in BUSI's layout; malignant (1) is a mirrored copy of benign (1)."""
    root = tmp_path / "data"
    for number in range(1, 7):
        write_sample(root, "benign", number, *speckle_image(number))
    for number in range(2, 5):
        write_sample(root, "malignant", number, *speckle_image(10 + number))
    image, mask = speckle_image(1)
    write_sample(root, "malignant", 1, brighter(image), mask, mirror=True)
    for number in range(1, 3):
        image, mask = speckle_image(20 + number)
        write_sample(root, "normal", number, image, np.zeros_like(mask))
    return root


def kinds(report: AuditReport) -> dict[str, bool]:
    return {problem.kind: problem.wrong for problem in report.problems}


def test_a_sound_folder(folder):
    report = audit(BUSI(), folder)
    assert report.problems == []
    assert [(pair.first, pair.second, pair.kind, pair.cross_class) for pair in report.pairs] == [
        ("benign (1)", "malignant (1)", "mirrored", True)
    ]
    assert report.pairs[0].mask_dice == pytest.approx(1, abs=0.1)
    assert report.groups == {"benign (1)": "benign (1)", "malignant (1)": "benign (1)"}
    assert report.classes() == {"benign": 6, "malignant": 4, "normal": 2}


def ruin_truncate(folder: Path) -> None:
    path = folder / "benign" / "benign (2).png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def ruin_mask_file(folder: Path) -> None:
    (folder / "benign" / "benign (2)_mask.png").write_bytes(b"not a picture")


def ruin_no_mask(folder: Path) -> None:
    (folder / "benign" / "benign (2)_mask.png").unlink()


def ruin_no_image(folder: Path) -> None:
    (folder / "benign" / "benign (2).png").unlink()


def draw_mask(folder: Path, image: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = folder / image.split(" ", maxsplit=1)[0] / f"{image}_mask.png"
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    cv2.imwrite(str(path), change(mask))


RUINED: list[tuple[str, Callable[[Path], None], bool]] = [
    ("unreadable image", ruin_truncate, True),
    ("unreadable mask", ruin_mask_file, True),
    ("image without mask", ruin_no_mask, True),
    ("mask without image", ruin_no_image, True),
    ("mask of another size", lambda root: draw_mask(root, "benign (2)", lambda mask: mask[:-4]), True),
    ("empty mask of a lesion class", lambda root: draw_mask(root, "malignant (2)", np.zeros_like), True),
    ("non-empty mask of a normal", lambda root: draw_mask(root, "normal (1)", lambda mask: mask + 255), True),
    ("mask too dark to count", lambda root: draw_mask(root, "benign (2)", lambda mask: mask // 255), True),
    ("non-binary mask", lambda root: draw_mask(root, "benign (2)", lambda m: cv2.GaussianBlur(m, (3, 3), 0)), False),
    ("specks in a mask", lambda root: draw_mask(root, "benign (2)", speck), False),
    ("blank image", lambda root: cv2.imwrite(str(root / "normal/normal (1).png"), np.zeros((240, 300))), True),
]


def speck(mask: np.ndarray) -> np.ndarray:
    mask[-2:, -2:] = 255
    return mask


@pytest.mark.parametrize(("kind", "ruin", "wrong"), RUINED, ids=[row[0] for row in RUINED])
def test_each_problem_is_found_and_judged(folder, kind, ruin, wrong):
    ruin(folder)
    report = audit(BUSI(), folder)
    assert kinds(report) == {kind: wrong}
    assert bool(report.wrong) is wrong
    assert "\n" not in report.problems[0].message


def test_all_problems_are_collected(folder):
    for ruin in (ruin_truncate, lambda root: (root / "normal/normal (2)_mask.png").unlink()):
        ruin(folder)
    assert kinds(audit(BUSI(), folder)) == {"unreadable image": True, "image without mask": True}
    with pytest.raises(DataError, match=r"normal \(2\).png has no mask"):
        BUSI().read(folder)


def test_read_native_tells_truncated_files_and_reads_every_mode(tmp_path):
    grey = speckle_image(3)[0]
    cv2.imwrite(str(tmp_path / "whole.png"), grey)
    data = (tmp_path / "whole.png").read_bytes()
    for share in (0.05, 0.5, 0.99):
        (tmp_path / "part.png").write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataError, match="corrupt or truncated"):
            read_grey(tmp_path / "part.png")
    with pytest.raises(DataError, match="No such file"):
        read_grey(tmp_path / "none.png")
    colour = cv2.merge([grey, grey, grey])
    alpha = cv2.merge([grey, grey, grey, np.full_like(grey, 90)])
    pictures = (("l", grey), ("rgb", colour), ("rgba", alpha), ("16", grey.astype(np.uint16) * 257))
    for name, picture in pictures:
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
        assert np.array_equal(read_grey(tmp_path / f"{name}.png"), grey), name
    assert read_native(tmp_path / "rgb.png").shape == (*grey.shape, 3)
    cv2.imwrite(str(tmp_path / "1.png"), (grey > 90).astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert set(np.unique(read_grey(tmp_path / "1.png"))) == {0, 255}


def test_artefacts_are_seen_where_they_are_drawn():
    image = (0.6 * speckle_image(5)[0]).astype(np.uint8)
    assert find_artefacts(image) == find_artefacts(cv2.merge([image] * 3))
    assert not find_artefacts(image).calipers
    assert not find_artefacts(image).text
    for x in (60, 220):
        image[100:102, x - 8 : x + 10] = image[92:110, x : x + 2] = 228
    found = find_artefacts(image)
    assert sorted(round((box[0] + box[2] / 2) / 10) for box in found.calipers) == [6, 22]
    assert not found.text
    cv2.putText(image, "LT AXILLA", (90, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.55, 228, 2, cv2.LINE_8)
    assert find_artefacts(image).text
    colour = cv2.merge([image] * 3)
    colour[150:165, 100:115] = (255, 60, 20)
    assert find_artefacts(colour).overlay
    assert not find_artefacts(cv2.merge([image] * 3)).overlay


def test_groups_are_connected_components():
    pairs = [Pair("a", "b", 1, 1, "near"), Pair("c", "d", 1, 1, "near"), Pair("b", "e", 1, 1, "near")]
    assert group_pairs(pairs) == {"a": "a", "b": "a", "e": "a", "c": "c", "d": "c"}


def test_the_threshold_decides(folder):
    near = audit(BUSI(), folder, threshold=0.4)
    strict = audit(BUSI(), folder, threshold=1.0)
    assert near.groups
    assert strict.groups == {}
    assert strict.suspects == near.pairs
    for value in (0, 1.5, float("nan")):
        with pytest.raises(DataError, match="threshold"):
            audit(BUSI(), folder, threshold=value)


def test_grouped_finds_its_groups_by_itself(folder):
    samples = BUSI().read(folder)
    assert duplicate_groups(samples) == {"benign (1)": "benign (1)", "malignant (1)": "benign (1)"}
    for seed in range(4):
        subset = make_split(samples, "grouped", seed).set_index("image")["subset"]
        assert subset["benign (1)"] == subset["malignant (1)"]


def test_outliers(folder):
    for number in range(7, 20):
        write_sample(folder, "benign", number, *speckle_image(number))
    write_sample(folder, "benign", 30, *speckle_image(30, (120, 900)))
    outliers = audit(BUSI(), folder).outliers
    assert {"benign (30)"} == {outlier["image"] for outlier in outliers if outlier["what"] == "width to height"}


def quiet() -> Console:
    return Console(width=150, record=True, file=io.StringIO())


def test_check_command(folder, tmp_path):
    console = quiet()
    code = check_command(folder, json=tmp_path / "a/audit.json", report=tmp_path / "b/audit.html", console=console)
    assert code == 0
    text = console.export_text()
    assert "12 images (6 benign, 4 malignant, 2 normal)" in text
    assert "across classes: benign (1) / malignant (1)" in text
    content = json.loads((tmp_path / "a/audit.json").read_text())
    assert content["counts"]["cross_class_pairs"] == 1
    assert content["groups"]["malignant (1)"] == "benign (1)"
    assert len(content["images"]) == 12
    page = (tmp_path / "b/audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "http" not in page.replace("http://www.w3.org", "")
    ruin_no_mask(folder)
    assert check_command(folder, console=quiet()) == 1


def test_the_report_escapes_what_it_shows(folder):
    report = audit(BUSI(), folder)
    report.root = "<script>alert(1)</script>"
    assert "<script>" not in render(report)


def test_a_report_on_broken_data_still_renders(folder):
    ruin_truncate(folder)
    ruin_mask_file(folder)
    page = render(audit(BUSI(), folder))
    assert "Do not train on these data" in page


def test_split_command_writes_and_checks(folder, tmp_path):
    assert split_command(folder, scheme="grouped", out=tmp_path / "g.csv", console=quiet()) == 0
    assert split_command(folder, check=tmp_path / "g.csv", console=quiet()) == 0
    names = [sample.id for sample in BUSI().read(folder)]
    rows = "".join(f"{name},{'test' if name == 'benign (1)' else 'train'}\n" for name in names)
    (tmp_path / "leaky.csv").write_text("image,subset\n" + rows)
    console = quiet()
    assert split_command(folder, check=tmp_path / "leaky.csv", console=console) == 1
    assert "benign (1) (test) and malignant (1) (train)" in console.export_text()
    assert split_command(folder, scheme="kfold", folds=3, out=tmp_path / "k.csv", console=quiet()) == 0
    folds = pd.read_csv(tmp_path / "k.csv")
    assert sorted(folds["fold"].unique()) == [0, 1, 2]
    assert (folds.drop_duplicates(["fold", "group", "subset"]).groupby(["fold", "group"]).size() == 1).all()
