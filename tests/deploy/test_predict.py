"""`bustseg predict`: every input becomes a row, whatever happens; and no word of a patient."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bustseg.data.inputs import Inputs
from bustseg.deploy.output import COLUMNS, write_whole
from bustseg.deploy.predict import _ahead
from bustseg.disclaimer import WORDS
from bustseg.figures.colours import PREDICTION, rgb
from bustseg.masks import PostProcess
from bustseg.progress import StreamProgress
from tests.conftest import TrainedRun
from tests.data import dicoms
from tests.deploy.dark_model import write_dark_model

Bustseg = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSTSEG_SALT", "of this test")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dark_model(tmp_path_factory.mktemp("models") / "dark")


def scene(height: int = 96, width: int = 128, top: int = 24, left: int = 32, side: int = 48) -> np.ndarray:
    """Bright grey with a dark square, which by default lies on whole pixels of the network's grid of 64 x 64."""
    image = np.full((height, width), 180, np.uint8)
    image[top : top + side, left : left + side] = 20
    return image


def save(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def rows_by_name(out: Path) -> dict[str, dict[str, str]]:
    return {Path(row["image"]).name: row for row in table(out)}


def mask_of(out: Path, row: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(out / row["mask"]))


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def test_every_kind_of_image_in_one_run(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    grey = scene()
    scans = tmp_path / "scans"
    colour = np.dstack([grey, grey, grey])
    save(scans / "grey.png", grey)
    save(scans / "colour.png", colour)
    save(scans / "alpha.png", np.dstack([colour, grey]))
    save(scans / "deep.png", grey.astype(np.uint16) * 257)
    save(scans / "deep.tiff", grey.astype(np.uint16) * 257)
    save(scans / "plain.tif", grey)
    save(scans / "photo.JPG", grey, quality=95)
    save(scans / "bitmap.bmp", grey)
    save(scans / "sub" / "large.png", cv2.resize(grey, (512, 300)))
    save(scans / "sub" / "tiny.png", cv2.resize(grey, (9, 7)))
    other = scene(top=0, left=0)
    Image.fromarray(grey).save(scans / "pages.tif", save_all=True, append_images=[Image.fromarray(other)])
    save(scans / "busi (1).png", grey)
    save(scans / "busi (1)_mask.png", grey)
    save(scans / "busi (1)_mask_1.png", grey)
    save(scans / "lonely_mask.png", grey)
    (scans / "notes.txt").write_text("no image")
    (scans / ".hidden.png").write_text("no image")
    (scans / "broken.png").write_bytes((scans / "grey.png").read_bytes()[:90])
    (scans / "empty.jpg").touch()
    out = tmp_path / "out"
    code, stdout, stderr = bustseg("predict", scans, "--model", model, "--out", out, "--batch_size", 3)
    assert code == 1
    rows = table(out)
    assert len(rows) == 16
    bad = {Path(row["image"]).name for row in rows if row["error"]}
    assert bad == {"broken.png", "empty.jpg"}
    assert "2 images could not be read" in stderr
    assert "14 images" in stdout
    assert "not a medical device" in stdout
    truth = grey < 100
    for row in rows:
        if row["error"]:
            assert row["mask"] == row["confidence"] == row["area_px"] == ""
            continue
        name, mask = Path(row["image"]).name, mask_of(out, row)
        assert (mask.shape, mask.dtype) == ((int(row["height"]), int(row["width"])), np.uint8)
        assert set(np.unique(mask)) <= {0, 255}
        assert int(row["area_px"]) == (mask > 0).sum()
        page = other if row["frame"] == "1" else grey
        expected = cv2.resize(page, mask.shape[::-1]) < 100
        assert iou(mask > 0, expected) > (0.6 if name == "tiny.png" else 0.97), name
        overlay = np.asarray(Image.open(out / row["mask"].replace("masks/", "overlays/", 1)))
        assert overlay.shape == (*mask.shape, 3)
        assert (overlay == rgb(PREDICTION)).all(axis=2).any(), name
        assert row["notice"] == WORDS
    found = rows_by_name(out)
    assert [row["frame"] for row in rows if row["image"].endswith("pages.tif")] == ["0", "1"]
    assert found["large.png"]["mask"] == "masks/sub/large.png"
    row = found["grey.png"]
    assert (int(row["width"]), int(row["height"]), row["frame"]) == (128, 96, "")
    assert abs(int(row["area_px"]) - truth.sum()) < 100
    assert (row["components"], row["largest_component_px"]) == ("1", row["area_px"])
    # the darkest pixel: logit (100 - 20) / 10
    assert float(row["lesion_probability"]) == pytest.approx(1 / (1 + np.exp(-8)), abs=1e-4)
    assert (row["confidence"], row["area_mm2"], row["threshold"]) == ("", "", "0.5")
    assert (row["look_at_this"], row["reason"]) == ("0", "")
    assert [r["reason"] for r in rows if r["image"].endswith("pages.tif")] == ["", "touches the border"]
    head = json.loads((out / "predictions.json").read_text())
    assert head["summary"]["images"] == 14
    assert head["summary"]["errors"] == 2
    assert head["summary"]["passed_over"] == 4, "two masks, the text and the hidden file"
    assert head["model"]["digest"].startswith(row["model"])
    assert len(row["model"]) == 12
    assert "not a medical device" in head["notice"]
    assert set(head["columns"]) == set(row)
    assert not list(out.rglob("*.tmp"))


def test_the_python_call_gives_what_the_command_writes(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    from bustseg import Predictor

    image = scene(100, 90, 30, 20, 40)
    path = save(tmp_path / "scan.png", image)
    assert bustseg("predict", path, "--model", model, "--out", "out", "--probabilities", "--no-overlays")[0] == 0
    (row,) = table(Path("out"))
    found = Predictor(model)(image)
    assert np.array_equal(mask_of(Path("out"), row), found.mask * 255)
    levels = np.asarray(Image.open("out/probabilities/scan.png"))
    assert np.abs(levels / 65535 - found.probability).max() < 1e-5
    assert not Path("out/overlays").exists()
    assert row["mask"] == "masks/scan.png"
    import bustseg as package

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing


def test_a_checkpoint_predicts_too(trained_run: TrainedRun, phantoms: Path, bustseg: Bustseg) -> None:
    from bustseg import Predictor

    code, _, _ = bustseg("predict", phantoms, "--model", trained_run.run_id, "--out", "out", "--threshold", 0.4)
    assert code == 0
    rows = table(Path("out"))
    assert len(rows) == 30, "BUSI's masks are no images"
    predictor = Predictor(trained_run.checkpoint)
    for row in rows[::10]:
        expected = predictor(np.asarray(Image.open(row["image"])), threshold=0.4)
        assert np.array_equal(mask_of(Path("out"), row), expected.mask * 255)


def test_the_model_in_the_box_is_used_when_none_is_named(
    model: Path, tmp_path: Path, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "scan.png", scene())
    monkeypatch.setattr("bustseg.box.FOLDER", tmp_path / "empty")
    code, _, stderr = bustseg("predict", path, "--out", "out")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "no model in the box: name one with --model" in stderr
    monkeypatch.setattr("bustseg.box.FOLDER", model)
    assert bustseg("predict", path, "--out", "out")[0] == 0
    assert len(table(Path("out"))) == 1


def test_confidence_and_post_processing_come_from_the_model(tmp_path: Path, bustseg: Bustseg) -> None:
    image = scene()
    image[80:84, 100:104] = 20  # 16 of 12288 pixels
    path = save(tmp_path / "scan.png", image)
    own = {"postprocess": {"min_area_px_relative": 0.01}, "calibration": {"temperature": 4.0}, "threshold": 0.4}
    model = write_dark_model(tmp_path / "model", size=(96, 128), **own)
    assert bustseg("predict", path, "--model", model, "--out", "out")[0] == 0
    (row,) = table(Path("out"))
    assert (row["area_px"], row["components"], row["threshold"]) == (str(48 * 48), "1", "0.4")
    # logits 8 and -8, divided by 4
    inside, outside = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))
    total = inside * (48 * 48 + 16) + outside * (96 * 128 - 48 * 48 - 16)
    assert float(row["confidence"]) == pytest.approx(2 * inside * 48 * 48 / (total + 48 * 48), abs=1e-3)
    head = json.loads(Path("out/predictions.json").read_text())
    assert (head["calibration"], head["postprocess"]["keep"]) == ({"temperature": 4.0}, "all")


def test_an_export_carries_what_the_checkpoint_knows_of_its_masks(trained_run: TrainedRun, tmp_path: Path) -> None:
    from bustseg.deploy.export import describe
    from bustseg.framing import Framing
    from bustseg.runs.checkpoint import load_task

    task = load_task(trained_run.checkpoint)
    (tmp_path / "model.onnx").write_bytes(b"")
    arguments = (Framing((32, 32)), "onnx", "fp32", tmp_path / "model.onnx", tmp_path)
    own = {"postprocess": PostProcess(keep="largest").to_dict(), "calibration": {"temperature": 1.5}}
    assert not own.keys() & describe(task, *arguments).keys()
    assert task.record is not None
    task.postprocess = PostProcess(keep="largest")
    task.record = {**task.record, "calibration": own["calibration"]}
    assert own.items() <= describe(task, *arguments).items()


def test_equal_names_stay_apart(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    first, second = scene(), scene(top=5, left=5)
    a, b = save(tmp_path / "in/a/x.png", first), save(tmp_path / "in/b/x.png", second)
    save(tmp_path / "in/a/x.bmp", second)
    save(tmp_path / "in/a/X.jpg", second)
    bustseg("predict", a.parent, b, a, "--model", model, "--out", "out")
    rows = table(Path("out"))
    assert len(rows) == 4, "a/x.png was named twice"
    assert len({row["mask"].casefold() for row in rows}) == 4
    for row in rows:
        wanted = first if row["image"].endswith("a/x.png") else second
        assert iou(mask_of(Path("out"), row) > 0, wanted < 100) > 0.9, row["image"]
    masks = {row["image"]: row["mask"] for row in rows}
    # more inputs later, one at a time: nothing is overwritten, nothing done again
    bustseg("predict", b.parent, "--model", model, "--out", "out")
    other = save(tmp_path / "elsewhere/x.png", first)
    bustseg("predict", other, "--model", model, "--out", "out")
    later = {row["image"]: row["mask"] for row in table(Path("out"))}
    assert later == masks | {str(other): later[str(other)]}
    assert len(set(later.values())) == 5


def test_globs_folders_and_depth(model: Path, tmp_path: Path) -> None:
    for name in ("b2.png", "b10.png", "sub/c.png", "sub/deep/d.jpg", "sub/e.txt"):
        save(tmp_path / "in" / name, scene()) if not name.endswith("txt") else (tmp_path / "in" / name).write_text("")
    out = tmp_path / "in" / "out"

    def names(*given: str, recursive: bool = True) -> list[str]:
        return [item.name for item in Inputs([str(tmp_path / text) for text in given], out, recursive)]

    assert names("in") == ["b2", "b10", "sub/c", "sub/deep/d"]
    assert names("in", recursive=False) == ["b2", "b10"]
    assert names("in/b*.png") == ["b2", "b10"]
    assert names("in/**/*.png") == ["b2", "b10", "sub/c"]
    assert names("in/*/*.png") == ["sub/c"]
    assert names("in/s*") == ["sub/c", "sub/deep/d"]
    assert names("in/sub/c.png", "in/b2.png") == ["sub/c", "b2"]
    assert names("in/sub/c.png") == ["c"]
    # the output of a run is no input of the next, wherever it lies
    for folder in (out, tmp_path / "in" / "older"):
        save(folder / "masks" / "b2.png", scene())
    (tmp_path / "in" / "older" / "predictions.csv").write_text("image,frame,mask,width\n")
    assert names("in") == ["b2", "b10", "sub/c", "sub/deep/d"]
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert names("in") == ["b2", "b10", "sub/c", "sub/deep/d"]


def test_images_are_named_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in "abc":
        save(tmp_path / "in" / folder / "x.png", scene())
    inputs = Inputs([str(tmp_path / "in")], tmp_path / "out")
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr("os.scandir", lambda path: (listed.append(Path(path).name), scan(path))[1])
    stream = iter(inputs)
    assert next(stream).name == "a/x"
    assert listed == ["in", "a"]


def test_work_ahead_is_bounded_and_keeps_the_order() -> None:
    from concurrent.futures import ThreadPoolExecutor

    taken = 0

    def items():
        nonlocal taken
        while taken < 200:
            taken += 1
            yield taken

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item

    with ThreadPoolExecutor(4) as pool:
        results = []
        for result in _ahead(pool, work, items(), depth=10):
            results.append(result)
            assert taken - len(results) < 10
    assert results == list(range(1, 201))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "no image or folder at nowhere.png"),
        (["nowhere/*.png"], "matches nothing: there is no folder"),
        (["*.png"], r"\*.png holds or matches no image"),
        (["empty"], r"empty holds or matches no image \(png jpg"),
        (["scan.bmp", "--threshold", "1.5"], "the threshold is 1.5: give a value from 0 to 1"),
        (["scan.bmp", "--threshold", "nan"], "the threshold is nan"),
        (["scan.bmp", "--batch_size", "0"], "--batch_size is 0: give at least 1"),
        (["scan.bmp", "--workers", "-1"], "--workers is -1"),
        (["scan.bmp", "--model", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["scan.bmp", "--out", "scan.bmp"], "scan.bmp is a file: name a folder with --out"),
        (["folder", "--out", "folder"], "is also the output folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, model: Path, tmp_path: Path, bustseg: Bustseg
) -> None:
    save(tmp_path / "scan.bmp", scene())
    save(tmp_path / "folder" / "scan.png", scene())
    (tmp_path / "empty").mkdir()
    defaults = [
        text for option in (("--model", str(model)), ("--out", "out")) if option[0] not in arguments for text in option
    ]
    code, stdout, stderr = bustseg("predict", *arguments, *defaults)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert re.search(message, stderr)
    assert not Path("out/predictions.csv").exists()


def test_when_nothing_can_be_read_the_code_is_2(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("none")
    code, _, stderr = bustseg("predict", "in", "--model", model, "--out", "out")
    assert code == 2
    assert "1 image could not be read" in stderr
    assert len(table(Path("out"))) == 1


# --- interruption ---------------------------------------------------------------------------------------------------


def many(folder: Path, n: int, broken: tuple[int, ...] = ()) -> Path:
    for number in range(n):
        path = save(folder / f"{number}.png", scene(40, 50, 5 + number % 7, 6, 20))
        if number in broken:
            path.write_bytes(path.read_bytes()[:50])
    return folder


def test_a_run_goes_on_where_it_was_torn_off(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    scans = many(tmp_path / "in", 6, broken=(4,))
    out = tmp_path / "out"
    command = ("predict", scans, "--model", model, "--out", out)
    assert bustseg(*command)[0] == 1
    whole = (out / "predictions.csv").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    lines = whole.splitlines(keepends=True)
    # the last row torn in the middle, one mask missing, one cut off as a crash of the machine leaves it
    (out / "predictions.csv").write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    (out / "masks" / "1.png").unlink()
    (out / "masks" / "2.png").write_bytes((out / "masks" / "2.png").read_bytes()[:20])
    save(scans / "4.png", scene())  # and the broken file was mended
    code, stdout, _ = bustseg(*command)
    assert code == 0
    assert "2 images are already done" in stdout
    rows = table(out)
    assert sorted(Path(row["image"]).stem for row in rows) == list("012345")
    assert not any(row["error"] for row in rows)
    again = {path.stem for path, time_ in before.items() if path.stat().st_mtime_ns != time_}
    assert again == {"1", "2", "5"}, "what was done is left alone"
    # once more there is nothing to do, and the table stays as it is
    done = (out / "predictions.csv").read_bytes()
    assert bustseg(*command, "--resume")[0] == 0
    assert (out / "predictions.csv").read_bytes() == done


def test_a_table_with_a_field_without_end_is_gone_on_with(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    scans, out = many(tmp_path / "in", 3), tmp_path / "out"
    command = ("predict", scans, "--model", model, "--out", out)
    assert bustseg(*command)[0] == 0
    head, *rows = (out / "predictions.csv").read_bytes().splitlines(keepends=True)
    (out / "predictions.csv").write_bytes(b"".join([head, rows[0], b"x" * 200_000 + b"\n", *rows[1:]]))
    code, stdout, err = bustseg(*command)
    assert (code, err) == (0, "")
    assert "3 images are already done" in stdout
    assert (out / "predictions.csv").read_bytes() == b"".join([head, *rows])


@pytest.mark.slow
def test_200_images_survive_being_killed(model: Path, tmp_path: Path) -> None:
    scans = many(tmp_path / "in", 200, broken=(3, 77, 150))
    out = tmp_path / "out"
    # the parent of torch's import would be seen in the last line
    program = (
        "import sys; from bustseg.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, 'lightning' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "predict", scans, "--model", model, "--out", out, "--batch_size", "4"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "predictions.csv").is_file() and len((out / "predictions.csv").read_bytes().splitlines()) > 40:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len([row for row in table(out) if row["mask"] and not row["error"]])
    assert 30 <= done < 197
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == "False False", "an exported model needs no torch"
    rows = table(out)
    assert len(rows) == len({row["image"] for row in rows}) == 200
    assert sorted(int(Path(row["image"]).stem) for row in rows if row["error"]) == [3, 77, 150]
    assert len(list((out / "masks").iterdir())) == 197
    for row in rows[:60:7]:
        assert row["error"] or int(row["area_px"]) == (mask_of(out, row) > 0).sum()


def test_other_settings_in_the_same_folder_are_refused(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    scans = many(tmp_path / "in", 2)
    own = save(tmp_path / "out" / "masks" / "my own.png", scene())
    command = ("predict", scans, "--model", model, "--out", "out")
    assert bustseg(*command, "--no-overlays")[0] == 0
    other = write_dark_model(tmp_path / "other", size=(32, 32))
    for change, message in (
        (("--threshold", 0.3), r"another threshold (0.5, now 0.3)"),
        (("--model", other), "another model (dark"),
        ((), "predictions without overlays"),
    ):
        code, _, stderr = bustseg(*command, *change)
        assert (code, stderr.count("\n")) == (2, 1)
        assert message in stderr
    assert bustseg(*command, "--threshold", 0.3, "--overwrite")[0] == 0
    assert {row["threshold"] for row in table(Path("out"))} == {"0.3"}
    (scans / "1.png").unlink()
    assert bustseg(*command, "--overwrite")[0] == 0
    assert len(table(Path("out"))) == 1
    left = {path.name for path in (tmp_path / "out" / "masks").iterdir()}
    assert left == {"0.png", "my own.png"}, "what the old table did not name is the user's"
    assert own.exists()
    Path("out/predictions.json").unlink()
    assert "without its predictions.json" in bustseg(*command)[2]
    Path("out/predictions.json").write_text("{}")
    assert "cannot be read" in bustseg(*command)[2]
    assert bustseg(*command, "--overwrite", "--resume")[0] == 2


def test_a_full_disk_is_one_line_and_what_is_done_stays(
    model: Path, tmp_path: Path, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = many(tmp_path / "in", 30)
    command = ("predict", scans, "--model", model, "--out", "out", "--batch_size", 2, "--workers", 1, "--no-overlays")
    written = 0

    def full(path: Path, content: bytes) -> None:
        nonlocal written
        written += path.suffix == ".png"
        if written > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("bustseg.deploy.predict.write_whole", full)
        code, _, stderr = bustseg(*command)
    assert (code, stderr.count("\n")) == (2, 1)
    assert "20 images are done and kept" in stderr
    assert len(table(Path("out"))) == 20
    # the table's own disk, in the middle of a row
    with monkeypatch.context() as patch:
        write = os.write
        between = len(COLUMNS) - 1
        patch.setattr("os.write", lambda file, data: write(file, data[:10] if data.count(b",") >= between else data))
        code, _, stderr = bustseg(*command)
    assert (code, stderr.count("\n")) == (2, 1)
    assert len(Path("out/predictions.csv").read_bytes().splitlines()) == 21
    assert bustseg(*command)[0] == 0
    assert len(table(Path("out"))) == 30


def test_ctrl_c_says_how_to_go_on(
    model: Path, tmp_path: Path, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bustseg.deploy.output import Output

    scans = many(tmp_path / "in", 8)
    add, added = Output.add, 0

    def interrupted(self: Output, row: dict[str, Any]) -> None:
        nonlocal added
        added += 1
        if added > 5:
            raise KeyboardInterrupt
        add(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "add", interrupted)
        code, _, stderr = bustseg("predict", scans, "--model", model, "--out", "out")
    assert code == 130
    assert "5 images are done in out; the same command continues from there" in stderr
    assert bustseg("predict", scans, "--model", model, "--out", "out")[0] == 0
    assert len(table(Path("out"))) == 8


def test_two_runs_do_not_write_into_one_folder(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    from filelock import FileLock

    scans = many(tmp_path / "in", 1)
    Path("out").mkdir()
    with FileLock("out/.predictions.lock"):
        code, _, stderr = bustseg("predict", scans, "--model", model, "--out", "out")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "another process is writing predictions into out" in stderr


def test_names_of_every_kind_are_found_again(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    names = [
        'a, "b".png',
        "line\nbreak.png",
        "ümlaut ².png",
        "1²3.png",
        "x" * 240 + ".png",
        os.fsdecode(b"caf\xe9.png"),
    ]
    for name in names:
        save(tmp_path / "in" / "plain.png", scene()).rename(tmp_path / "in" / name)
    command = ("predict", tmp_path / "in", "--model", model, "--out", "out")
    assert bustseg(*command)[0] == 0
    done = table(Path("out"))
    assert {Path(row["image"]).name for row in done} == set(names)
    assert all(mask_of(Path("out"), row).any() for row in done)
    stdout = bustseg(*command)[1]
    assert f"{len(names)} images are already done" in stdout
    assert table(Path("out")) == done


# --- DICOM ----------------------------------------------------------------------------------------------------------

SHAPE = (64, 80)
NAME = "Zywicka_Janetta"


def study(root: Path) -> Path:
    """A still, a loop of three frames (no lesion in the second) and a damaged file, called after the patient."""
    folder = root / NAME
    still = scene(*SHAPE, 10, 20, 30)
    data = dicoms.dataset(dicoms.screen(still), regions=[dicoms.region(SHAPE)])
    dicoms.write(data, folder / f"{dicoms.ID}_still.dcm")
    loop = [scene(*SHAPE, 12, 20, 24), np.full(SHAPE, 180, np.uint8), scene(*SHAPE, 20, 30, 24)]
    data = dicoms.dataset(np.stack([dicoms.screen(image) for image in loop]), frames=3, regions=[dicoms.region(SHAPE)])
    dicoms.write(data, folder / f"{dicoms.ID}_loop")  # without a suffix
    (folder / f"{dicoms.ID}_damaged.dcm").write_bytes((folder / f"{dicoms.ID}_still.dcm").read_bytes()[:400])
    return folder


def whole(image: np.ndarray) -> np.ndarray:
    """Where an image's lesion is on the scanner's screen."""
    lesion = np.zeros(dicoms.screen(image).shape, bool)
    lesion[dicoms.BANNER : dicoms.BANNER + SHAPE[0], dicoms.LEFT : dicoms.LEFT + SHAPE[1]] = image < 100
    return lesion


def assert_no_patient(folder: Path, *texts: str) -> None:
    words = [word.encode() for word in dicoms.SECRETS]
    for path in folder.rglob("*"):
        assert not any(word in str(path.relative_to(folder)) for word in dicoms.SECRETS), path
        if path.is_file():
            assert not any(word in path.read_bytes() for word in words), path
    for text in texts:
        assert not any(word in text for word in dicoms.SECRETS), text


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_dicom_is_measured_and_the_patient_stays_unknown(
    debug: list[str], model: Path, tmp_path: Path, bustseg: Bustseg
) -> None:
    folder = study(tmp_path / "in")
    code, stdout, stderr = bustseg("predict", folder, "--model", model, "--out", "out", "--probabilities", *debug)
    assert code == 1
    rows = table(Path("out"))
    assert len(rows) == 5
    assert_no_patient(Path("out"), stdout, stderr)
    (broken,) = [row for row in rows if row["error"]]
    assert broken["image"].startswith("dicom ")
    assert "file 1 of the input, in natural order" in broken["error"]
    (still,) = [row for row in rows if row["frame"] == "" and not row["error"]]
    image = scene(*SHAPE, 10, 20, 30)
    screen = dicoms.screen(image)
    mask = mask_of(Path("out"), still)
    assert mask.shape == screen.shape == (int(still["height"]), int(still["width"])), "the input's own size"
    assert iou(mask > 0, whole(image)) > 0.9
    assert not (mask > 0)[~whole(np.zeros(SHAPE, np.uint8))].any(), "nothing outside the scanned region"
    # a pixel is 0.8 mm by 1 mm... in centimetres 0.008 by 0.01, so 0.08 mm by 0.1 mm
    assert float(still["area_mm2"]) == pytest.approx(int(still["area_px"]) * 0.008, abs=0.01)
    overlay = np.asarray(Image.open(Path("out") / still["mask"].replace("masks/", "overlays/", 1)))
    assert overlay.shape == (*SHAPE, 3), "the banner with the name is cut away"
    frames = [row for row in rows if row["frame"]]
    assert [row["frame"] for row in frames] == ["0", "1", "2"]
    assert [int(row["area_px"]) > 0 for row in frames] == [True, False, True]
    assert iou(mask_of(Path("out"), frames[2]) > 0, whole(scene(*SHAPE, 20, 30, 24))) > 0.9
    assert len({row["mask"] for row in frames}) == 3
    levels = np.asarray(Image.open(Path("out") / still["mask"].replace("masks/", "probabilities/", 1)))
    assert levels.shape == screen.shape
    # again: nothing but the damaged file
    assert "4 images are already done" in bustseg("predict", folder, "--model", model, "--out", "out")[1]


def test_a_picture_that_may_show_a_name_gets_no_overlay(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    screen = dicoms.screen(scene(*SHAPE, 10, 20, 30))
    for name, declared in (("unknown", None), ("text", "YES"), ("none", "NO")):
        data = dicoms.dataset(screen)
        if declared:
            data.BurnedInAnnotation = declared
        dicoms.write(data, tmp_path / "in" / f"{name}.dcm")
    assert bustseg("predict", "in", "--model", model, "--out", "out")[0] == 0
    rows = table(Path("out"))
    assert len(rows) == 3
    shown = [row for row in rows if (Path("out") / row["mask"].replace("masks/", "overlays/", 1)).exists()]
    assert len(shown) == 1, "only the picture that is declared free of text"
    hidden = [row for row in rows if row not in shown]
    assert all("text in the picture may name the patient" in row["reason"] for row in hidden)
    assert all(row["look_at_this"] == "1" and row["mask"] for row in hidden)


def test_the_same_dicom_twice_is_there_once(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    folder = study(tmp_path / "in")
    (folder / f"{dicoms.ID}_damaged.dcm").unlink()
    (tmp_path / "in" / "copy.dcm").write_bytes((folder / f"{dicoms.ID}_still.dcm").read_bytes())
    code, stdout, _ = bustseg("predict", "in", "--model", model, "--out", "out")
    assert code == 0
    assert "1 images were named more than once" in stdout
    assert len(table(Path("out"))) == 4


def test_two_dicom_files_of_one_identifier_are_both_tried(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    folder = tmp_path / "in"
    first, second = scene(*SHAPE, 10, 20, 30), scene(*SHAPE, 20, 30, 24)
    for number, image in enumerate((first, second), 1):
        data = dicoms.dataset(dicoms.screen(image), regions=[dicoms.region(SHAPE)])
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"  # as an anonymiser may leave it
        dicoms.write(data, folder / f"{number}.dcm")
    # a copy whose pixels are cut off comes first
    (folder / "0.dcm").write_bytes((folder / "1.dcm").read_bytes()[:-2000])
    code, _, stderr = bustseg("predict", folder, "--model", model, "--out", "out", "--dicom_seg")
    assert code == 1, stderr
    rows = table(Path("out"))
    assert [bool(row["error"]) for row in rows] == [True, False, False]
    assert len({row["image"] for row in rows}) == 3
    for row, image in zip(rows[1:], (first, second), strict=True):
        assert iou(mask_of(Path("out"), row) > 0, whole(image)) > 0.9
    import pydicom

    segments = [pydicom.dcmread(path).SOPInstanceUID for path in Path("out/segmentations").iterdir()]
    assert len(segments) == len(set(segments)) == 2
    # again: what is done is known by the same names
    assert "2 images are already done" in bustseg("predict", folder, "--model", model, "--out", "out")[1]
    assert {row["image"] for row in table(Path("out"))} == {row["image"] for row in rows}


OTHERS = {
    "ct": ("1.2.840.10008.5.1.4.1.1.2", "CT", True),
    "mammogram": ("1.2.840.10008.5.1.4.1.1.1.2", "MG", True),
    "segmentation": ("1.2.840.10008.5.1.4.1.1.66.4", "SEG", True),
    "report": ("1.2.840.10008.5.1.4.1.1.88.11", "SR", False),
    "presentation": ("1.2.840.10008.5.1.4.1.1.11.1", "PR", False),
    "DICOMDIR": ("1.2.840.10008.1.3.10", "", False),
}


def write_others(folder: Path) -> None:
    """Files of a study that are no ultrasound, with and without pixels."""
    for name, (kind, modality, pixels) in OTHERS.items():
        data = dicoms.dataset(scene(*SHAPE, 10, 20, 30))
        data.SOPClassUID, data.Modality = kind, modality
        data.file_meta.MediaStorageSOPClassUID = kind
        if not pixels:
            for element in ("PixelData", "Rows", "Columns"):
                delattr(data, element)
        dicoms.write(data, folder / (name if name == "DICOMDIR" else f"{name}.dcm"))


def test_what_is_no_ultrasound_is_passed_over(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    folder = tmp_path / "in"
    write_others(folder)
    command = ("predict", folder, "--model", model, "--out")
    code, stdout, stderr = bustseg(*command, "none")
    assert (code, stdout) == (2, "")
    assert stderr.strip() == (
        "error: no ultrasound image to predict: 6 DICOM files skipped, not ultrasound images: "
        "CT 1, DICOMDIR 1, MG 1, PR 1, SEG 1, SR 1"
    )
    image = scene(*SHAPE, 10, 20, 30)
    dicoms.write(dicoms.dataset(dicoms.screen(image), regions=[dicoms.region(SHAPE)]), folder / "us.dcm")
    screenshot = dicoms.dataset(image)
    screenshot.SOPClassUID = screenshot.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    screenshot.Modality = "OT"
    dicoms.write(screenshot, folder / "screenshot.dcm")
    code, stdout, stderr = bustseg(*command, "out")
    assert (code, stderr) == (0, "")
    assert "2 images in out" in stdout
    assert "6 DICOM files skipped, not ultrasound images: CT 1" in stdout
    rows = table(Path("out"))
    assert [row["error"] for row in rows] == ["", ""]
    unsure = [row for row in rows if "does not say that it is ultrasound" in row["reason"]]
    assert len(unsure) == 1
    assert unsure[0]["look_at_this"] == "1"
    summary = json.loads((Path("out") / "predictions.json").read_text())["summary"]
    assert summary["not_ultrasound"] == dict.fromkeys(("CT", "DICOMDIR", "MG", "PR", "SEG", "SR"), 1)
    # the same for files that a shell has listed
    assert bustseg("predict", *sorted(folder.iterdir()), "--model", model, "--out", "listed")[0] == 0


def test_dicom_seg_refers_to_its_source_and_holds_the_masks(model: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    import highdicom
    import pydicom

    folder = study(tmp_path / "in")
    command = ("predict", folder, "--model", model, "--out", "out")
    assert bustseg(*command)[0] == 1
    code, stdout, stderr = bustseg(*command, "--dicom_seg")  # asked for later: from the masks that are there
    assert code == 1
    assert "2 DICOM SEG files in segmentations/: they name the patients" in stdout
    files = list(Path("out/segmentations").iterdir())
    assert len(files) == 2
    assert not any(word in path.name for path in files for word in dicoms.SECRETS)
    rows = table(Path("out"))
    for source, frames in ((folder / f"{dicoms.ID}_still.dcm", 1), (folder / f"{dicoms.ID}_loop", 3)):
        original = pydicom.dcmread(source)
        (path,) = [one for one in files if _refers(pydicom.dcmread(one), original.SOPInstanceUID)]
        own = [row for row in rows if row["image"] == path.stem]
        masks = [mask_of(Path("out"), row) > 0 for row in own]
        assert len(masks) == frames
        seg = highdicom.seg.segread(path)
        assert seg.SOPClassUID == pydicom.uid.SegmentationStorage
        assert (seg.PatientName, seg.PatientID) == (dicoms.NAME, dicoms.ID), "as the standard requires"
        assert seg.StudyInstanceUID == original.StudyInstanceUID
        assert seg.SeriesInstanceUID != original.SeriesInstanceUID
        assert (seg.Rows, seg.Columns) == (original.Rows, original.Columns)
        if frames == 1:
            read = seg.get_pixels_by_source_instance([original.SOPInstanceUID])
        else:
            read = seg.get_pixels_by_source_frame(original.SOPInstanceUID, [1, 2, 3])
            plain = pydicom.dcmread(path).pixel_array  # by another reader: the frames with a lesion, in order
            assert np.array_equal(plain, np.stack([masks[0], masks[2]]))
        assert np.array_equal(read[..., 0], np.stack(masks))
        kind = {item.ReferencedSOPClassUID for item in _references(pydicom.dcmread(path))}
        assert kind == {original.SOPClassUID}
    for path in files:
        path.unlink()
    assert_no_patient(Path("out"), stdout, stderr)
    # with nothing done before, and an identifier that depends on source and model alone
    assert bustseg(*command, "--dicom_seg", "--overwrite")[0] == 1
    again = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in Path("out/segmentations").iterdir()}
    assert again.keys() == {path.name for path in files}
    for path in Path("out/segmentations").iterdir():
        path.unlink()
    bustseg(*command, "--dicom_seg")
    assert again == {path.name: pydicom.dcmread(path).SOPInstanceUID for path in Path("out/segmentations").iterdir()}


def _references(data: Any) -> list[Any]:
    return [item for series in data.ReferencedSeriesSequence for item in series.ReferencedInstanceSequence]


def _refers(data: Any, uid: str) -> bool:
    return uid in [item.ReferencedSOPInstanceUID for item in _references(data)]


def test_a_loop_with_a_frame_that_cannot_be_read_gets_no_seg(
    model: Path, tmp_path: Path, bustseg: Bustseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bustseg.data import dicom
    from bustseg.errors import DataError

    folder = study(tmp_path / "in")
    read = dicom.read_frame

    def damaged(path: Path, frame: int = 0) -> np.ndarray:
        if frame == 1:
            raise DataError("a DICOM file cannot be read: it is damaged")
        return read(path, frame)

    monkeypatch.setattr("bustseg.data.dicom.read_frame", damaged)
    bustseg("predict", folder, "--model", model, "--out", "out", "--dicom_seg")
    assert len(list(Path("out/segmentations").iterdir())) == 1, (
        "an unread frame must not look like one without a lesion"
    )
    monkeypatch.undo()


# --- progress -------------------------------------------------------------------------------------------------------


def test_progress_says_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = StreamProgress(every=30)
    for _ in range(10):
        progress.advance(worked=False)
    now += 20
    progress.advance()
    assert progress.text() == "11 images, 0.1 images/s"
    assert capsys.readouterr().err == "", "silence where nobody watches"
    progress.expect(99)
    progress.expect_more()
    for _ in range(39):
        progress.advance()
    # 40 in 20 seconds, 50 are left
    assert progress.text() == "50 of 100 images, 2.0 images/s, 0:25 left"
    now += 20
    progress.advance()
    assert capsys.readouterr().err == "51 of 100 images, 1.0 images/s, 0:48 left\n", "a line now and then"
    progress.expect(10000)
    # 41 in 40 seconds, 9950 are left: 9707 seconds
    assert progress.text().endswith("1.0 images/s, 2:41:47 left")


def test_the_order_of_looking_is_by_what_a_correction_can_gain(tmp_path: Path, bustseg: Bustseg) -> None:
    model = write_dark_model(tmp_path / "calibrated", calibration={"temperature": 2.0})
    scans, out = tmp_path / "scans", tmp_path / "out"
    faint = np.where(scene() < 100, 97, 180).astype(np.uint8)
    for name, image in (("a sure", scene()), ("b faint", faint), ("c none", np.full((96, 128), 240, np.uint8))):
        save(scans / f"{name}.png", image)
    (scans / "broken.png").write_text("no image")
    bustseg("predict", scans, "--model", model, "--out", out)
    with (out / "look_first.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert Path(rows[0]["image"]).name == "b faint.png"
    for row in rows:
        assert float(row["expected_worth"]) == pytest.approx(1 - float(row["confidence"]), abs=2e-4)
    worths = [float(row["expected_worth"]) for row in rows]
    assert worths == sorted(worths, reverse=True)
    # a later run orders the earlier rows too
    save(scans / "d fainter.png", np.where(scene() < 100, 99, 180).astype(np.uint8))
    bustseg("predict", scans, "--model", model, "--out", out)
    with (out / "look_first.csv").open(newline="") as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)][:2] == ["d fainter.png", "b faint.png"]
    # without calibration nothing stands in for a confidence
    bustseg("predict", scans, "--model", write_dark_model(tmp_path / "plain"), "--out", out, "--overwrite")
    assert not (out / "look_first.csv").exists()
