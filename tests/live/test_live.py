"""`bustseg live`: the newest frame, never an old one; what is dropped is counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.live.app import create_app
from bustseg.live.stream import Frames, Latest, Live, predictors_of
from bustseg.serve.settings import Settings
from tests.deploy.dark_model import write_dark_model
from tests.live.moving import frame, write_clip

pytestmark = pytest.mark.usefixtures("sealed")

Bustseg = Callable[..., tuple[int, str, str]]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "scan.avi", [frame(k % 20) for k in range(40)], rate=100)


class Slow:
    """A backend that takes its time."""

    name = "slow"

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def __call__(self, images: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        return self.inner(images)


def finished(live: Live) -> None:
    until = time.monotonic() + 30
    while not live.shown.ended:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_room_for_one_thing() -> None:
    room: Latest[str] = Latest()
    assert room.after(0, timeout=0) is None
    room.put("a")
    room.put("b")
    assert room.dropped == 1
    assert room.after(0) == (2, "b")
    assert room.after(2, timeout=0.01) is None
    room.put("c")
    assert room.dropped == 1, "what was taken is not dropped"
    assert room.after(2) == (3, "c")
    room.put("d")
    assert room.take() == (4, "d")
    assert room.take(timeout=0.01) is None, "each is taken once"
    waiting = threading.Thread(target=lambda: room.after(4))
    waiting.start()
    room.end()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_slow_network_drops_frames_and_never_shows_an_old_one(clip: Path, dark: Path) -> None:
    predictor = Predictor(dark, threads=1)
    predictor.backend = Slow(predictor.backend, 0.05)
    live = Live(Frames(str(clip)), [predictor])
    live.start()
    delays = []
    number = 0
    while (found := live.shown.after(number, timeout=10)) is not None:
        number, shown = found
        delays.append(shown.milliseconds)
    live.stop()
    assert live.read == 40
    assert live.drawn + live.dropped == 40
    assert live.dropped > 15, "the clip has a hundred frames a second, the network takes a twentieth of one"
    # at most one frame is under way, so that a picture is as old as one frame takes, not as the queue is long
    assert np.median(delays[2:]) < 1000
    assert max(delays) < 40 * 50


def test_two_workers_share_the_frames_and_never_go_back(clip: Path, dark: Path) -> None:
    predictors = [Predictor(dark, threads=1) for _ in range(2)]
    for predictor, seconds in zip(predictors, (0.02, 0.05), strict=True):
        predictor.backend = Slow(predictor.backend, seconds)
    live = Live(Frames(str(clip)), predictors, smooth=0.1)
    live.start()
    areas, number = [], 0
    while (found := live.shown.after(number, timeout=10)) is not None:
        number, shown = found
        areas.append(shown.area_px)
    live.stop()
    assert live.drawn + live.dropped == live.read == 40
    assert live.drawn > 1, "a machine with other work shows few"
    assert min(areas) > 0


def test_a_fast_network_shows_what_the_frame_holds(clip: Path, dark: Path) -> None:
    live = Live(Frames(str(clip), pace=False), [Predictor(dark, threads=1)])
    live.start()
    finished(live)
    found = live.shown.after(0)
    assert found is not None
    _, shown = found
    assert shown.area_px == pytest.approx(48 * 48, rel=0.12)
    picture = cv2.imdecode(np.frombuffer(shown.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (96, 128, 3)
    assert live.read == 40
    assert live.error == ""


def test_the_page_gets_the_newest_picture_and_learns_of_the_end(clip: Path, dark: Path) -> None:
    live = Live(Frames(str(clip), repeat=True), [Predictor(dark, threads=1)])
    with TestClient(create_app(live, Settings(), "dark"), base_url="http://127.0.0.1:8081") as client:
        live.start()
        first = client.get("/frame?after=0")
        assert (first.status_code, first.headers["content-type"]) == (200, "image/jpeg")
        second = client.get(f"/frame?after={first.headers['x-number']}")
        assert int(second.headers["x-number"]) > int(first.headers["x-number"])
        assert int(second.headers["x-read"]) >= int(second.headers["x-dropped"])
        assert client.get("/about").json()["model"] == "dark"
        assert "not a medical device" in client.get("/").text
        assert client.get("/frame", headers={"host": "evil.example"}).status_code == 421
        assert client.get("/frame", headers={"origin": "http://evil.example"}).status_code == 403
        live.stop()
        number = first.headers["x-number"]
        while (answer := client.get(f"/frame?after={number}")).status_code == 200:
            number = answer.headers["x-number"]
        assert answer.status_code == 410


def test_the_page_is_told_the_calibrated_presence(
    clip: Path, tmp_path: Path, predictor: Predictor, calibrated: Predictor
) -> None:
    empty = write_clip(tmp_path / "empty.avi", [np.full((96, 128), 180, np.uint8)] * 2)
    # sigmoid(0.5 * 8 - 1) and sigmoid(0.5 * -8 - 1); the highest probability of a pixel would be 1.00 and 0.00
    for path, model, presence in ((clip, calibrated, "0.95"), (empty, calibrated, "0.01"), (clip, predictor, "")):
        live = Live(Frames(str(path)), [model])
        with TestClient(create_app(live, Settings(), "dark"), base_url="http://127.0.0.1:8081") as client:
            live.start()
            assert client.get("/frame?after=0").headers["x-presence"] == presence
            live.stop()


def test_a_model_that_cannot_leave_the_mirror_image_out_says_so(tmp_path: Path) -> None:
    folder = str(write_dark_model(tmp_path / "dark", flip=True))
    assert predictors_of(folder)
    with pytest.raises(UserError, match="--format openvino"):
        predictors_of(folder, mirror=False)


def test_an_error_of_the_network_ends_it_and_is_said(clip: Path, dark: Path) -> None:
    predictor = Predictor(dark, threads=1)

    def broken(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("broken")

    predictor.backend = broken  # type: ignore[assignment]
    live = Live(Frames(str(clip)), [predictor])
    live.start()
    finished(live)
    assert "broken" in live.error
    live.stop()


def test_the_page_leaves_the_log_handlers_of_other_libraries_alone(clip: Path, dark: Path, bustseg: Bustseg) -> None:
    class Handler(logging.Handler):
        closed = False

        def close(self) -> None:
            self.closed = True
            super().close()

    handler = Handler()  # such as absl's, which closes what it writes to
    code, _, err = bustseg("live", "--device", clip, "--model", dark, "--port", 0, "--repeat", "--seconds", 0.5)
    assert code == 0, err
    assert not handler.closed


def test_the_command(clip: Path, dark: Path, bustseg: Bustseg, tmp_path: Path) -> None:
    code, out, err = bustseg("live", "--device", clip, "--model", dark, "--no-page", "--no-pace")
    assert code == 0, err
    assert "of 40 dropped" in out
    assert "not a medical device" in out
    code, out, err = bustseg("live", "--device", clip, "--model", dark, "--port", 0, "--repeat", "--seconds", 1.5)
    assert code == 0, err
    assert "http://127.0.0.1:" in out
    assert "frames/s" in out
    for device in ("97", tmp_path / "missing.mp4"):
        code, _, err = bustseg("live", "--device", device, "--model", dark)
        assert (code, str(device) in err) == (2, True)
    (tmp_path / "no.mp4").write_text("no video")
    assert bustseg("live", "--device", tmp_path / "no.mp4", "--model", dark)[0] == 2
    with pytest.raises(UserError):
        Frames("98")
