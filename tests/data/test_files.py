"""One search finds the images, whoever asks: suffixes in any case, links without loops, nothing of the system's own."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bustseg.data.audit import audit
from bustseg.data.files import PassedOver, images_in, is_hidden, list_folder, natural_key, walk
from bustseg.data.inputs import Inputs, LooseSamples, is_mask_of_another
from bustseg.data.sources import BUSBRA, BUSI, BUSUCLM, BrEaST, DICOMFolder, Folders, Source
from bustseg.errors import DataError, UserError
from tests.conftest import TrainedRun
from tests.data import dicoms, layouts

Bustseg = Callable[..., tuple[int, str, str]]

JUNK = ("._{}", ".{}", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What systems leave beside a file of some name; the first is how macOS keeps its attributes on other disks."""


def litter(folder: Path) -> int:
    """Leave the systems' own files beside every file of a folder and those in it; returns how many."""
    beside = [(path.parent, path.name) for path in folder.rglob("*") if path.is_file()]
    junk = {parent / pattern.format(name) for parent, name in beside for pattern in JUNK}
    junk |= {parent / "__MACOSX" / f"._{name}" for parent, name in beside}
    for path in junk:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    return len(junk)


LAYOUTS: dict[str, tuple[Source, Callable[[Path], Path]]] = {
    "BUSBRA": (BUSBRA(), layouts.busbra),
    "BUSUCLM": (BUSUCLM(), layouts.busuclm),
    "BrEaST": (BrEaST(), layouts.breast),
    "Folders": (Folders(), layouts.folders),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_systems_files_are_passed_over_and_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, make = LAYOUTS[name]
    root = make(tmp_path / "data")
    (root / "annotations.csv").write_text("image_filename,classification\n")
    clean = source.read(root)
    assert capsys.readouterr().err == ""
    litter(root)
    assert source.read(root) == clean
    told = capsys.readouterr().err.split()
    assert " ".join(told).startswith(f"note: {source.name}:")
    assert "hidden" in told
    found = audit(source, root)
    assert found.wrong == []
    assert [problem.kind for problem in found.problems] == ["skipped"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_upper_case_suffixes_are_read(name: str, tmp_path: Path) -> None:
    source, make = LAYOUTS[name]
    root = make(tmp_path / "data")
    expected = source.read(root)
    masks = [sample.read_mask() for sample in expected]
    for path in [path for path in root.rglob("*") if path.suffix in (".png", ".jpg")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    found = source.read(root)
    assert [(one.id, one.label, one.group) for one in found] == [(one.id, one.label, one.group) for one in expected]
    assert all(np.array_equal(one.read_mask(), mask) for one, mask in zip(found, masks, strict=True))


def test_busi_of_any_case_and_kind_of_picture(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = BUSI().read(phantoms)
    root = Path(shutil.copytree(phantoms, tmp_path / "data"))
    (root / "benign").rename(root / "Benign")
    for path in (root / "malignant").iterdir():
        path.rename(path.with_suffix(".PNG"))
    for path in (root / "normal").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    moved = root / "malignant"
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    (root / "unsorted").mkdir()
    litter(root)
    (root / "Benign" / "notes.txt").write_text("")
    (root / "Benign" / "clip.gif").write_bytes(b"")
    found = BUSI().read(root)
    assert [(one.id, one.label, len(one.masks)) for one in found] == [
        (one.id, one.label, len(one.masks)) for one in expected
    ]
    told = " ".join(capsys.readouterr().err.split())
    assert "1 no image" in told
    assert "sub-folder" in told
    assert len(told.splitlines()) == 1


def test_dicom_in_linked_folders_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "study"
    for number, folder in enumerate((root / "first", tmp_path / "disk" / "second")):
        image, mask = layouts.picture(number)
        dicoms.write(dicoms.dataset(image), folder / "scan.dcm")
        layouts.save(folder / "scan_mask.png", np.where(mask, 255, 0).astype(np.uint8))
    (root / "linked").symlink_to(tmp_path / "disk")
    (root / "linked again").symlink_to(tmp_path / "disk" / "second")
    (tmp_path / "disk" / "loop").symlink_to(root)
    (root / "first" / "._scan.dcm").write_bytes(b"\0\5\26\7")
    samples, problems = DICOMFolder().survey(root)
    assert len(samples) == 2
    assert [(problem.kind, problem.wrong) for problem in problems] == [("skipped", False)]
    # a name of any other suffix is DICOM where the file begins so
    (root / "first" / "scan.dcm").rename(root / "first" / "scan.ima")
    (root / "first" / "scan_mask.png").rename(root / "first" / "scan.ima_mask.png")
    again, _ = DICOMFolder().survey(root)
    assert {sample.id for sample in again} == {sample.id for sample in samples}
    assert all(sample.read_image().shape == layouts.SHAPE for sample in again)


def test_a_folder_is_met_once_under_its_own_path_first(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.png", "b/deep/x.png", "c/y.PNG", "z.png"):
        layouts.save(tmp_path / "in" / name, np.zeros((4, 4), np.uint8))
    (tmp_path / "in" / "a").symlink_to(tmp_path / "in" / "b")
    (tmp_path / "in" / "b" / "deep" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    passed = PassedOver()
    listings = list(walk(tmp_path / "in", passed))
    files = [path.relative_to(tmp_path / "in").as_posix() for listing in listings for path in listing.files]
    assert files == ["z.png", "b/2.png", "b/10.png", "b/deep/x.png", "c/y.PNG"]
    assert dict(passed.kinds) == {"broken link": 1, "no image": 1}
    assert passed.told() == "2 files or folders skipped: 1 broken link, 1 no image"
    assert [path.name for path in images_in(tmp_path / "in", passed)] == ["z.png"]
    assert passed.kinds["sub-folder"] == 3
    # many links between few folders have very many paths
    for number in range(30):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        for link in "ab":
            (tmp_path / "many" / str(number) / link).symlink_to(tmp_path / "many" / str((number + 1) % 30))
    assert len(list(walk(tmp_path / "many"))) == 31


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.save(tmp_path / "in" / "a" / "x.png", np.zeros((4, 4), np.uint8))
    layouts.save(tmp_path / "in" / "b" / "y.png", np.zeros((4, 4), np.uint8))
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    assert not list_folder(tmp_path / "in" / "a").readable
    items = list(Inputs([str(tmp_path / "in")]))
    assert [(item.name, bool(item.error)) for item in items] == [("a", True), ("b/y", False)]


def test_what_is_hidden() -> None:
    assert all(is_hidden(name) for name in ("._x.png", ".DS_Store", "__MACOSX", "Thumbs.db", "DESKTOP.INI", ".git"))
    assert not any(is_hidden(name) for name in ("x.png", "_x.png", "x.", "MACOSX"))
    assert sorted(["b (10)", "b (2)", "B (1)"], key=natural_key) == ["B (1)", "b (2)", "b (10)"]


def test_masks_are_known_by_their_image_whatever_its_kind(tmp_path: Path) -> None:
    picture = np.zeros((4, 4), np.uint8)
    for name in ("a.jpg", "a_mask.png", "b.PNG", "b_mask_1.png", "c_mask.png", "pages.tif", "pages_frame0_mask.png"):
        layouts.save(tmp_path / name, picture)
    (tmp_path / "d.dcm").write_bytes(b"")
    layouts.save(tmp_path / "d_mask.png", picture)
    layouts.save(tmp_path / "d_frame3_mask.png", picture)
    masks = {path.name for path in tmp_path.iterdir() if is_mask_of_another(path)}
    assert masks == {"a_mask.png", "b_mask_1.png", "pages_frame0_mask.png", "d_mask.png", "d_frame3_mask.png"}
    inputs = Inputs([str(tmp_path)])
    assert [item.name for item in inputs if not item.error] == ["a", "b", "c_mask", "pages"]
    assert inputs.told() == "5 files or folders skipped: 5 mask beside its image"


def test_patterns_follow_links_and_leave_outputs_out(tmp_path: Path) -> None:
    layouts.save(tmp_path / "in" / "x.png", np.zeros((4, 4), np.uint8))
    layouts.save(tmp_path / "disk" / "y.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "in")
    for out, table, start in (
        ("predicted", "predictions.csv", "image,frame,mask,width\n"),
        ("explained", "explain.csv", "name,image,label\n"),
    ):
        layouts.save(tmp_path / "in" / out / "masks" / "x.png", np.zeros((4, 4), np.uint8))
        (tmp_path / "in" / out / table).write_text(start)

    def names(pattern: str) -> list[str]:
        return [item.name for item in Inputs([str(tmp_path / pattern)])]

    assert names("in") == names("in/**/*.png") == names("in/**") == ["x", "link/y"]
    assert names("in/*") == ["x", "link/y"]
    assert names("in/*/*.png") == ["link/y"]


def test_an_empty_folder_says_what_lies_there_instead(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("")
    (tmp_path / "in" / ".DS_Store").write_text("")
    with pytest.raises(UserError, match=r"no image \(png .*\); 2 files or folders skipped: 1 hidden, 1 no image"):
        Inputs([str(tmp_path / "in")])


def test_pages_that_no_one_reads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.folders(tmp_path / "data", n=2)
    pages = [Image.fromarray(layouts.picture(number)[0]) for number in range(3)]
    (root / "images" / "scan 1.jpg").unlink()
    pages[0].save(root / "images" / "scan 1.tif", save_all=True, append_images=pages[1:])
    assert len(Folders().read(root)) == 2
    assert "scan 1.tif holds 3 images, of which 1 is read" in " ".join(capsys.readouterr().err.split())


def test_rows_and_masks_of_no_image_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = layouts.folders(tmp_path / "data", n=3)
    (root / "labels.csv").write_text("image,label\nscan 0.jpg,benign\nScan 1.jpg,malignant\n")
    Folders(labels="labels.csv").read(root)
    assert "in labels.csv 1 row names no image, such as 'Scan 1'" in " ".join(capsys.readouterr().err.split())
    together = Folders("images", "images", mask_suffix="_m")
    for mask in (root / "masks").iterdir():
        mask.rename(root / "images" / f"{mask.stem}_m.png")
    assert len(together.read(root)) == 3
    (root / "images" / "scan 1.jpg").unlink()
    with pytest.raises(DataError, match=r"scan 1_m.png has no image"):
        together.read(root)
    with pytest.raises(DataError, match="set mask_suffix"):
        Folders("images", "images")


def test_loose_images_find_their_masks(tmp_path: Path) -> None:
    picture = np.zeros((4, 4), np.uint8)
    for name in ("normal/a.png", "normal/a_mask.PNG", "normal/a_mask_1.png", "other/b.png", "other/ab_mask.png"):
        layouts.save(tmp_path / name, picture)
    pages = [Image.fromarray(picture)] * 2
    pages[0].save(tmp_path / "other" / "p.tif", save_all=True, append_images=pages[1:])
    layouts.save(tmp_path / "other" / "p_frame1_mask.png", picture)
    as_sample = LooseSamples()
    found = {sample.id: sample for sample in map(as_sample, Inputs([str(tmp_path)]))}
    assert {name: [mask.name for mask in sample.masks] for name, sample in found.items()} == {
        "a": ["a_mask.PNG", "a_mask_1.png"],
        "b": [],
        "ab_mask": [],
        "p_frame0": [],
        "p_frame1": ["p_frame1_mask.png"],
    }
    assert [found[name].label for name in ("a", "b")] == ["normal", "unknown"]
    assert found["p_frame1"].frame == 1


def test_predict_and_explain_find_the_same_images(
    trained_run: TrainedRun, phantoms: Path, tmp_path: Path, bustseg: Bustseg
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    shutil.copy(phantoms / "benign" / "benign (1).png", folder)
    (folder / "link").symlink_to(phantoms / "malignant")
    (folder / "._benign (1).png").write_bytes(b"\0\5\26\7")
    images = 1 + sum("_mask" not in path.name for path in (phantoms / "malignant").iterdir())
    found = {}
    for verb, table in (("predict", "predictions.csv"), ("explain", "explain.csv")):
        code, out, err = bustseg(verb, folder, "--model", trained_run.checkpoint, "--out", folder / verb)
        assert code == 0, err
        assert "1 hidden" in out
        with (folder / verb / table).open() as file:
            found[verb] = {row["image"] for row in csv.DictReader(file)}
    assert found["predict"] == found["explain"]
    assert len(found["predict"]) == images
