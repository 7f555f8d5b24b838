"""Each public layout is read with the right images, classes, patients and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bustseg.data.cache import data_digest
from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.sources import BUSBRA, BUSI, BUSUCLM, BrEaST, Combined, Folders, Part, Sample, Source
from bustseg.data.splits import leakage, make_split, merge_groups
from bustseg.errors import DataError
from tests.data import layouts

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "external_samples"


def labels(samples: list[Sample]) -> dict[str, int]:
    return dict(Counter(sample.label for sample in samples))


def test_busbra(tmp_path: Path) -> None:
    samples = BUSBRA().read(layouts.busbra(tmp_path))
    assert labels(samples) == {"malignant": 6, "benign": 6}
    first = samples[0]
    assert (first.id, first.label, first.group) == ("bus_0001-l", "malignant", "patient 1")
    image, mask = layouts.picture(10)
    assert np.array_equal(first.read_image(), image)
    assert np.array_equal(first.read_mask(image.shape), mask)
    assert len({sample.group for sample in samples}) == 6


def test_busuclm_reads_both_colours_and_leaves_unequal_pairs_out(tmp_path: Path, capsys) -> None:
    root = layouts.busuclm(tmp_path)
    layouts.save(root / "masks" / "ALWI_001.png", np.zeros((40, 64, 3), np.uint8))
    samples, problems = BUSUCLM().scan(root)
    assert [(problem.image, problem.wrong) for problem in problems] == [("ALWI_001", False)]
    assert "64x48 but its mask is 64x40" in problems[0].message
    assert labels(samples) == {"benign": 2, "malignant": 3, "normal": 3}
    assert {sample.group for sample in samples} == {"ALWI", "CHSP", "NORM"}
    for sample in samples:
        drawn = np.asarray(Image.open(sample.masks[0])).any(axis=2)
        assert np.array_equal(sample.read_mask(layouts.SHAPE), drawn)
        assert drawn.any() == (sample.label != "normal")
    assert len(BUSUCLM().read(root)) == 8
    assert "ALWI_001.png is left out" in capsys.readouterr().err


def test_breast_knows_tumours_from_other_findings(tmp_path: Path) -> None:
    root = layouts.breast(tmp_path)
    samples = BrEaST().read(root)
    assert [sample.id for sample in samples] == [f"case{n:03d}" for n in range(1, 7)]
    assert labels(samples) == {"unknown": 5, "normal": 1}
    assert [len(sample.masks) for sample in samples] == [1, 2, 1, 1, 1, 0]
    for number, sample in enumerate(samples, 1):
        image, mask = layouts.picture(1000 + number, lesion=number < 6)
        assert np.array_equal(sample.read_image(), image)
        assert np.array_equal(sample.read_mask(image.shape), mask)
        assert np.array_equal(sample.read_mask(), mask)


def test_breast_takes_classes_from_its_annotations(tmp_path: Path) -> None:
    root = layouts.breast(tmp_path)
    lines = ["CaseID,Image_filename,Classification"]
    lines += [f"{n},case{n:03d}.png,{'normal' if n == 6 else 'benign' if n % 2 else 'malignant'}" for n in range(1, 7)]
    (root / "annotations.csv").write_text("\n".join(lines))
    assert labels(BrEaST().read(root)) == {"benign": 3, "malignant": 2, "normal": 1}
    (root / "case003_tumor.png").unlink()
    with pytest.raises(DataError, match=r"case003.png has no mask"):
        BrEaST().read(root)


def test_breast_reads_the_table_as_published(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    root = layouts.breast(tmp_path)
    book = openpyxl.Workbook()
    for row in [("CaseID", "Image_filename", "Classification"), (1, "case001.png", "malignant")]:
        book.active.append(row)
    book.save(root / "BrEaST-Lesions-USG-clinical-data.xlsx")
    assert labels(BrEaST().read(root)) == {"malignant": 1, "unknown": 4, "normal": 1}


def test_folders(tmp_path: Path) -> None:
    root = layouts.folders(tmp_path, suffix="_mask", level=1)
    (root / "who.csv").write_text("image,label,patient\nscan 0.jpg,benign,A\nscan 1,malignant,A\nscan 2,,B\n")
    samples = Folders(mask_suffix="_mask", labels="who.csv", lesion_above=0).read(root)
    assert [sample.label for sample in samples] == ["benign", "malignant", *["unknown"] * 4]
    assert [sample.group for sample in samples] == ["A", "A", "B", None, None, None]
    _, mask = layouts.picture(2000)
    assert np.array_equal(samples[0].read_mask(mask.shape), mask)
    # the same files read otherwise are other data: a cache of empty masks must not be taken for them
    assert data_digest(samples) != data_digest(Folders(mask_suffix="_mask", labels="who.csv").read(root))


BROKEN = {
    "BUS-BRA without a mask": (BUSBRA(), layouts.busbra, "Masks/mask_0002-r.png", "bus_0002-r.png has no mask"),
    "BUS-BRA without an image": (BUSBRA(), layouts.busbra, "Images/bus_0002-r.png", "on disk"),
    "BUS-UCLM without a mask": (BUSUCLM(), layouts.busuclm, "masks/CHSP_001.png", "CHSP_001.png has no mask"),
    "BUS-UCLM without an image": (BUSUCLM(), layouts.busuclm, "images/CHSP_001.png", "CHSP_001.png has no image"),
    "BrEaST without an image": (BrEaST(), layouts.breast, "case003.png", "case003_tumor.png has no image"),
    "folders without a mask": (Folders(), layouts.folders, "masks/scan 3.png", "scan 3.jpg has no mask"),
    "folders without an image": (Folders(), layouts.folders, "images/scan 3.jpg", "scan 3.png has no image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named(case: str, tmp_path: Path) -> None:
    source, make, path, message = BROKEN[case]
    (make(tmp_path) / path).unlink()
    with pytest.raises(DataError, match=message):
        source.read(tmp_path)


@pytest.mark.parametrize("source", [BUSBRA(), BUSUCLM(), BrEaST(), Folders()])
def test_another_layout_is_refused_in_one_line(source: Source, phantoms: Path) -> None:
    with pytest.raises(DataError) as caught:
        source.read(phantoms)
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacked_into_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    layouts.busbra(tmp_path / "BUSBRA")
    layouts.breast(tmp_path / "breast" / "BrEaST-Lesions_USG-images_and_masks")
    assert len(BUSBRA().read(tmp_path)) == 12
    assert len(BrEaST().read(tmp_path / "breast")) == 6


@pytest.fixture
def three(tmp_path: Path) -> Combined:
    return Combined(
        [
            Part(BUSBRA(), str(layouts.busbra(tmp_path / "a"))),
            Part(BUSUCLM(), str(layouts.busuclm(tmp_path / "b"))),
            Part(Folders(), str(layouts.folders(tmp_path / "c")), name="own"),
        ]
    )


def test_combined_keeps_ids_and_patients_apart(three: Combined) -> None:
    samples = three.read(three.default_root())
    assert Counter(sample.source for sample in samples) == {"bus-bra": 12, "bus-uclm": 9, "own": 6}
    assert len({sample.id for sample in samples}) == 27
    assert samples[0].id == "bus-bra/bus_0001-l"
    assert samples[0].group == "bus-bra/patient 1"


def test_patients_stay_in_one_subset(three: Combined) -> None:
    samples = three.read(three.default_root())
    split = make_split(samples, "grouped", 3, groups={})
    patients = merge_groups(samples)
    assert len(set(patients.values())) == 9
    assert not any(leakage(split, patients).leaked.values())
    assert any(leakage(make_split(samples, "paper", 3), patients).leaked.values())


def test_a_csv_decides_what_a_part_is_used_for(three: Combined, tmp_path: Path) -> None:
    use = {"bus-bra": "train", "bus-uclm": "val", "own": "test"}
    rows = [f"{sample.id},{use[sample.source]}" for sample in three.read(three.default_root())]
    (tmp_path / "split.csv").write_text("image,subset\n" + "\n".join(rows))
    data = UltrasoundDataModule(source=three, split=str(tmp_path / "split.csv"), image_size=32)
    data.prepare_data()
    data.setup()
    assert {name: len(own) for name, own in data.indices.items()} == {"train": 12, "val": 9, "test": 6}
    assert {data.samples[index].source for index in data.indices["test"]} == {"own"}


def test_combined_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two parts of Combined have the name 'folders'"):
        Combined([Part(Folders(), "a"), Part(Folders(), "b")])
    with pytest.raises(DataError, match="part 'folders' of Combined has no root"):
        UltrasoundDataModule(source=Combined([Part(Folders())])).prepare_data()
    with pytest.raises(DataError, match="no data folder at nowhere"):
        UltrasoundDataModule(source=Combined([Part(BUSI(), "nowhere"), Part(Folders(), "b")])).prepare_data()


def classes_of_equal_names(root: Path) -> Path:
    for label in ("benign", "malignant"):
        for number in range(1, 11):
            image, mask = layouts.picture(number)
            layouts.save(root / label / f"{number:03d}.png", image)
            layouts.save(root / label / f"{number:03d}_mask.png", mask)
    return root


def test_two_images_of_one_id_are_refused_wherever_sources_are_read(tmp_path: Path) -> None:
    root = classes_of_equal_names(tmp_path / "data")
    _, problems = BUSI().survey(root)
    assert [(problem.kind, problem.wrong) for problem in problems] == [("two images of one id", True)] * 10
    combined = Combined([Part(BUSI(), str(root))])
    for source, name in ((BUSI(), "001"), (combined, "busi/001")):
        with pytest.raises(DataError, match=rf"benign/001.png and .*malignant/001.png have the same id, '{name}'"):
            source.read(root)
        data = UltrasoundDataModule(root=str(root), source=source, image_size=32)
        with pytest.raises(DataError, match="have the same id"):
            data.prepare_data()
        with pytest.raises(DataError, match="have the same id"):
            data.setup("fit")


def test_one_file_under_two_ids_is_refused(tmp_path: Path) -> None:
    root = layouts.folders(tmp_path / "data")
    twice = Combined([Part(Folders(), str(root), "here"), Part(Folders(), str(root), "there")])
    with pytest.raises(DataError, match="'here/scan 0' and 'there/scan 0' are the same file"):
        twice.read(root)
    (root / "images" / "copy.jpg").symlink_to(root / "images" / "scan 0.jpg")
    (root / "masks" / "copy.png").symlink_to(root / "masks" / "scan 0.png")
    with pytest.raises(DataError, match="'copy' and 'scan 0' are the same file"):
        Folders().read(root)


@pytest.mark.parametrize(
    ("make", "source", "table", "row"),
    [
        (layouts.busbra, BUSBRA(), "bus_data.csv", "bus_0001-l,9,x,malignant,4,scanner,64,48,left,x"),
        (layouts.busuclm, BUSUCLM(), "INFO.csv", "ALWI_000.png;64x48;Malignant;No;No;No"),
        (layouts.folders, Folders(labels="who.csv"), "who.csv", "scan 0,malignant"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    make: Callable[[Path], Path], source: Source, table: str, row: str, tmp_path: Path
) -> None:
    root = make(tmp_path)
    if table == "who.csv":
        (root / table).write_text("image,label\nscan 0,benign\n")
    content = (root / table).read_text()
    repeated = content + content.splitlines()[1] + "\n"
    (root / table).write_text(repeated)
    assert len(source.read(root)) in (6, 9, 12)  # the same again says nothing new
    (root / table).write_text(repeated + row + "\n")
    with pytest.raises(DataError, match=rf"line \d+ of .*{table} gives .*: keep one"):
        source.read(root)


PUBLISHED = {
    "BUS-BRA": (BUSBRA(), {"malignant": 7, "benign": 8}, 8),
    "BUS-UCLM": (BUSUCLM(), {"benign": 4, "malignant": 4, "normal": 4}, 3),
    "BrEaST": (BrEaST(), {"unknown": 8, "normal": 2}, 10),
}


@pytest.mark.busi
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_samples(name: str) -> None:
    if not (SAMPLES / name).is_dir():
        pytest.skip("the samples of other data sets are not at hand")
    source, expected, patients = PUBLISHED[name]
    samples = source.read(SAMPLES / name)
    assert labels(samples) == expected
    assert len({sample.group for sample in samples}) == patients
    for sample in samples:
        image = sample.read_image()
        mask = sample.read_mask(image.shape)
        assert mask.any() == (sample.label != "normal")
        if name == "BUS-BRA" and sample.id == "bus_0001-l":  # its table: BBOX [91,24,103,79]
            rows, columns = np.nonzero(mask)
            assert abs(columns.min() - 91) <= 1
            assert abs(rows.min() - 24) <= 1
            assert abs(np.ptp(columns) + 1 - 103) <= 1
            assert abs(np.ptp(rows) + 1 - 79) <= 1
