"""`bustseg predict clip.mp4`: a row and an outlined picture for every frame."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from bustseg.data import clips
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
    assert (code, "already done" in stdout) == (0, True)
    code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", out, "--smooth", 0.5)
    assert (code, "--overwrite" in stderr) == (2, True)
    assert bustseg("predict", clip, "--model", dark, "--out", out, "--smooth", 0.5, "--overwrite")[0] == 0
    assert not list(out.glob(".*")), "nothing half made is left"


class Capture:
    """A file whose clock shows what it is told to, in seconds."""

    def __init__(self, rate: float, clock: Sequence[float]) -> None:
        self.rate, self.left, self.now = rate, list(clock), 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not self.left:
            return False, None
        self.now = self.left.pop(0)
        return True, np.zeros((96, 128, 3), np.uint8)

    def get(self, what: int) -> float:
        known = {cv2.CAP_PROP_FRAME_HEIGHT: 96, cv2.CAP_PROP_FRAME_WIDTH: 128, cv2.CAP_PROP_FPS: self.rate}
        return {**known, cv2.CAP_PROP_POS_MSEC: 1000 * self.now}.get(what, 0.0)

    def release(self) -> None:
        pass


def test_frames_have_the_time_of_the_files_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0, 0.05, 0.1, 0.35, 0.35, 0.2, 0.3, 100]  # it varies, stands still, goes back, and leaps
    monkeypatch.setattr(clips, "_capture", lambda path: Capture(20, clock))
    times = [at for at, _ in Clip.open(Path("a.mp4")).timed()]
    assert times == pytest.approx([0, 0.05, 0.1, 0.35, 0.4, 0.45, 0.55, 0.6])


@pytest.mark.parametrize(
    ("told", "clock", "rate"),
    [(1000, [0, 0.04, 0.08, 0.12], 25), (0, [0, 0.1, 0.2], 10), (90000, [0, 0, 0], 25), (30, [0, 1, 2], 30)],
)
def test_a_rate_that_is_the_tick_of_a_clock_is_not_believed(
    told: float, clock: list[float], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "_capture", lambda path: Capture(told, clock))
    assert Clip.open(Path("a.webm")).rate == pytest.approx(rate)


def test_a_clip_of_varying_rate_keeps_its_time(dark: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed (Debian: apt-get install ffmpeg)")
    clip = tmp_path / "scan.mp4"
    picked = "select='lt(n,10)+not(mod(n,5))'"  # half a second of 20 frames a second, and of 4 from then on
    source = ["-f", "lavfi", "-i", "testsrc=size=128x96:rate=20:duration=2", "-vf", picked, "-vsync", "vfr"]
    subprocess.run([ffmpeg, "-loglevel", "error", *source, "-c:v", "mpeg4", clip], check=True)
    code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", tmp_path / "out")
    assert code == 0, stderr
    rows = rows_of(tmp_path / "out" / "scan_frames.csv")
    wanted = [*(0.05 * k for k in range(10)), *(0.25 * k for k in range(2, 8))]
    assert [float(row["seconds"]) for row in rows] == pytest.approx(wanted, abs=0.002)
    written = Clip.open(tmp_path / "out" / "scan_outlined.mp4")
    assert len(list(written)) / written.rate == pytest.approx(1.75 + 1 / written.rate, abs=0.1)


def test_an_unreadable_clip_is_named_as_it_is(dark: Path, tmp_path: Path, bustseg: Bustseg) -> None:
    clip = tmp_path / "[red]scan[/x].mp4"  # not to be taken for Rich's markup
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"no video")
    code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", tmp_path / "out")
    assert code == 2
    assert "error: " in stderr
    assert "[red]scan[/x].mp4" in stderr


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
    code, stdout, _ = bustseg("predict", tmp_path, "--model", dark, "--out", tmp_path / "folder")
    assert code == 0
    assert "2 video (name it to have it predicted)" in stdout, "nothing is left out without a word"
    code, _, stderr = bustseg("predict", tmp_path / "noise.mp4", clip, "--model", dark, "--out", tmp_path / "b")
    assert (code, "noise.mp4 is not a readable video" in stderr) == (1, True)
    code, _, stderr = bustseg("predict", tmp_path / "noise.mp4", "--model", dark, "--out", tmp_path / "c")
    assert code == 2
    for option in (("--smooth", -1), ("--clip_format", "gif")):
        code, _, stderr = bustseg("predict", clip, "--model", dark, "--out", tmp_path / "d", *option)
        assert (code, option[0] in stderr) == (2, True)


def test_a_file_that_is_no_video_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "head.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(range(256)) * 8)
    for name in ("a.mp4", "missing.mp4", "empty.mp4", "head.mp4"):
        with pytest.raises(DataError, match="not a readable video"):
            Clip.open(tmp_path / name)
    assert capfd.readouterr().err == "", "FFmpeg and OpenCV say nothing of their own"
