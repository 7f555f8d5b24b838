"""`bustseg predict clip.mp4`: a row and an outlined picture for every frame."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bustseg.data.clips import Clip
from bustseg.deploy.clips import Smoother
from bustseg.errors import DataError
from tests.live.moving import frame, write_clip

pytestmark = pytest.mark.usefixtures("sealed")

Bustseg = Callable[..., tuple[int, str, str]]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_every_frame_has_its_row_and_its_picture(suffix: str, dark: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    frames = [frame(k) for k in range(21)] + [np.full((96, 128), 180, np.uint8)] * 4
    clip = write_clip(tmp_path / f"scan{suffix}", frames)
    out = tmp_path / "out"
    code, stdout, stderr = bustseg("predict", clip, "--model", dark, "--out", out)
    assert code == 0, stderr
    assert "not a medical device" in stdout
    rows = rows_of(out / "scan_frames.csv")
    assert [int(row["frame"]) for row in rows] == list(range(25))
    assert float(rows[10]["seconds"]) == pytest.approx(0.5)
    areas = [int(row["area_px"]) for row in rows]
    assert areas[1:21] == pytest.approx([48 * 48] * 20, rel=0.12)
    assert areas[21:] == [0] * 4
    assert 0 < float(rows[5]["confidence"]) <= 1
    assert rows[0]["look_at_this"] == "1", "it touches the border"
    head = json.loads((out / "scan_clip.json").read_text())
    assert (head["frames"], head["frames_with_lesion"], head["rate"]) == (25, 21, 20.0)
    assert "not a medical device" in head["notice"]
    written = list(Clip.open(out / "scan_outlined.mp4"))
    assert len(written) == 25
    orange = [(np.abs(one.astype(int) - [255, 159, 28]).sum(axis=2) < 160) for one in written]
    for k in (5, 15):
        _, columns = np.nonzero(orange[k])
        assert len(columns) > 60
        assert columns.min() == pytest.approx(2 * k, abs=4)
    assert orange[23].sum() < 10
    # done already
    code, stdout, _ = bustseg("predict", clip, "--model", dark, "--out", out)
    assert (code, "done already" in stdout) == (0, True)
    code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", out, "--smooth", 0.5)
    assert (code, "--overwrite" in stderr) == (2, True)
    assert bustseg("predict", clip, "--model", dark, "--out", out, "--smooth", 0.5, "--overwrite")[0] == 0
    assert not list(out.glob(".*")), "nothing half made is left"


def test_smoothing_is_an_exponential_mean_over_time() -> None:
    step = Smoother(0.5)
    assert step(np.zeros(3), 0.1).tolist() == [0, 0, 0]
    value = np.zeros(3)
    for _ in range(5):  # half a second in steps of a tenth, at 1
        value = step(np.ones(3), 0.1)
    assert value == pytest.approx(np.full(3, 1 - np.exp(-1)), rel=1e-5)
    assert Smoother(0)(np.ones(3), 0.1).tolist() == [1, 1, 1]


def test_a_flicker_is_smoothed_away(dark: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    empty = np.full((96, 128), 180, np.uint8)
    frames = [empty] * 10 + [np.where(frame(10) < 100, 80, 180).astype(np.uint8)] + [empty] * 10
    clip = write_clip(tmp_path / "flicker.avi", frames)
    for smooth, expected in ((0, 1), (0.5, 0)):
        bustseg("predict", clip, "--model", dark, "--out", tmp_path / str(smooth), "--smooth", smooth)
        rows = rows_of(tmp_path / str(smooth) / "flicker_frames.csv")
        assert sum(row["area_px"] != "0" for row in rows) == expected


def test_videos_beside_images_and_broken_ones(dark: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    from PIL import Image

    clip = write_clip(tmp_path / "good.avi", [frame(k) for k in range(5)])
    (tmp_path / "noise.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(range(256)) * 8)
    Image.fromarray(frame(10)).save(tmp_path / "image.png")
    out = tmp_path / "out"
    code, _, stderr = bustseg("predict", tmp_path / "image.png", clip, "--model", dark, "--out", out)
    assert code == 0, stderr
    assert (out / "predictions.csv").is_file()
    assert (out / "good_frames.csv").is_file()
    code, _, stderr = bustseg("predict", tmp_path / "noise.mp4", clip, "--model", dark, "--out", tmp_path / "b")
    assert (code, "noise.mp4 is not a readable video" in stderr) == (1, True)
    code, _, stderr = bustseg("predict", tmp_path / "noise.mp4", "--model", dark, "--out", tmp_path / "c")
    assert code == 2
    for option in (("--smooth", -1), ("--clip_format", "gif")):
        code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", tmp_path / "d", *option)
        assert (code, option[0] in stderr) == (2, True)


def test_a_file_that_is_no_video_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    for path in (tmp_path / "a.mp4", tmp_path / "missing.mp4"):
        with pytest.raises(DataError, match="not a readable video"):
            Clip.open(path)
