"""The HTTP interface: right answers, and for whatever else comes in a 4xx that says why."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from bustseg.deploy.predictor import Predictor
from bustseg.disclaimer import NOTICE
from bustseg.errors import DataError, UserError
from bustseg.framing import Framing, Resize
from bustseg.serve.app import create_app
from bustseg.serve.command import address_of
from bustseg.serve.guard import host_name
from bustseg.serve.settings import Settings
from bustseg.serve.shapes import from_run_lengths, polygons, run_lengths
from tests.data import dicoms
from tests.serve.serving import Running, as_png, scene

pytestmark = pytest.mark.usefixtures("sealed")

Start = Callable[..., Running]
BASE = "http://127.0.0.1:8080"


@pytest.fixture
def client(predictor: Predictor, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(corrections=tmp_path / "corrections", max_bytes=4_000_000, max_pixels=1_000_000, max_frames=6)
    with TestClient(create_app(predictor, settings, "dark"), base_url=BASE, raise_server_exceptions=False) as client:
        yield client


def send(client: Any, *contents: bytes, **query: Any) -> Any:
    files = [("files", (f"scan{k}.png", content)) for k, content in enumerate(contents)]
    return client.post("/predict", files=files, params=query)


def filled(shapes: list[dict[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    """Mask of polygons, by another way than the one that made them."""
    mask = np.zeros(shape, np.uint8)
    for one in shapes:
        own, ring = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        cv2.fillPoly(own, [np.array(one["outer"], np.int32)], 1)
        for hole in one["holes"]:
            inside = np.zeros(shape, np.uint8)
            cv2.fillPoly(inside, [np.array(hole, np.int32)], 1)
            cv2.polylines(ring, [np.array(hole, np.int32)], True, 1)
            own[(inside == 1) & (ring == 0)] = 0
        mask |= own
    return mask


def test_an_image_has_the_mask_that_predict_gives_in_every_form(client: TestClient, predictor: Predictor) -> None:
    image = scene()
    answer = send(client, as_png(image), mask=["polygons", "rle", "png"])
    assert answer.status_code == 200
    body = answer.json()
    assert body["notice"] == answer.headers["x-notice"] == NOTICE
    assert body["model"] == predictor.digest[:12]
    (found,) = body["results"]
    expected = predictor(image)
    assert found["area_px"] == expected.area_px == int((image < 100).sum())
    assert found["confidence"] == pytest.approx(expected.confidence)
    assert found["lesion_probability"] == pytest.approx(expected.lesion_probability)
    assert found["reasons"] == list(expected.look_at_this)
    assert found["area_mm2"] is None
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
    assert np.array_equal(png // 255, expected.mask)
    assert np.array_equal(from_run_lengths(**found["rle"]), expected.mask)
    assert np.array_equal(filled(found["polygons"], image.shape), expected.mask)


def test_presence_is_the_calibrated_probability_and_not_the_highest_of_a_pixel(
    calibrated: Predictor, client: TestClient
) -> None:
    contents = as_png(scene()), as_png(np.full((96, 128), 180, np.uint8))
    with TestClient(create_app(calibrated), base_url=BASE) as asked:
        for content, logit in zip(contents, (8.0, -8.0), strict=True):
            (found,) = send(asked, content).json()["results"]
            presence = 1 / (1 + np.exp(1 - 0.5 * logit))
            assert found["presence"] == pytest.approx(presence)
            assert found["lesion_probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
            id = asked.post("/uploads", files={"file": ("a.png", content)}).json()["id"]
            assert asked.get(f"/uploads/{id}/0").json()["presence"] == pytest.approx(presence)
    (found,) = send(client, contents[0]).json()["results"]
    assert found["presence"] is None, "this model is not calibrated for it, and nothing stands in for it"


def test_several_files_answer_in_their_order_and_a_broken_one_does_not_spoil_the_rest(client: TestClient) -> None:
    answer = send(client, as_png(scene()), b"no image", as_png(scene(top=0, left=0, side=32)), mask="none")
    assert answer.status_code == 200
    good, bad, other = answer.json()["results"]
    assert [good["area_px"], other["area_px"]] == pytest.approx([48 * 48, 32 * 32], rel=0.01)
    assert (bad["file"], bad["area_px"]) == ("scan1.png", None)
    assert "not an image" in bad["error"]
    assert good["polygons"] is None


def test_a_threshold_of_the_request_is_used_and_one_out_of_range_refused(client: TestClient) -> None:
    image = scene()
    image[24:72, 32:56] = 99  # probability 0.525
    assert send(client, as_png(image)).json()["results"][0]["area_px"] > 48 * 40
    assert send(client, as_png(image), threshold=0.6).json()["results"][0]["area_px"] < 48 * 30
    assert send(client, as_png(image), threshold=1.5).status_code == 422


def test_masks_of_dicom_lie_on_the_whole_picture_and_areas_are_in_mm2(client: TestClient, tmp_path: Path) -> None:
    picture = dicoms.screen(scene())
    data = dicoms.dataset(picture, regions=[dicoms.region((96, 128))])
    content = dicoms.write(data, tmp_path / "a.dcm").read_bytes()
    answer = send(client, content, mask="rle")
    (found,) = answer.json()["results"]
    expected = np.zeros(picture.shape, np.uint8)
    top, left = dicoms.BANNER + 24, dicoms.LEFT + 32
    expected[top : top + 48, left : left + 48] = 1
    assert np.array_equal(from_run_lengths(**found["rle"]), expected)
    assert found["area_mm2"] == pytest.approx(48 * 48 * 0.08 * 0.1)
    assert not any(secret in answer.text for secret in dicoms.SECRETS)


def test_frames_pages_and_clips_have_an_answer_each(client: TestClient, tmp_path: Path) -> None:
    frames = np.stack([scene(), scene(top=0, left=0, side=32), np.full((96, 128), 180, np.uint8)])
    loop = dicoms.write(dicoms.dataset(frames, regions=None, frames=3), tmp_path / "loop.dcm").read_bytes()
    pages = io.BytesIO()
    Image.fromarray(frames[0]).save(
        pages, "TIFF", save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]]
    )
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96), False)
    for frame in frames:
        writer.write(frame)
    writer.release()
    for content in (loop, pages.getvalue(), clip.read_bytes()):
        results = send(client, content, mask="none").json()["results"]
        assert [one["frame"] for one in results] == [0, 1, 2]
        assert [one["frames"] for one in results] == [3, 3, 3]
        assert [one["area_px"] for one in results] == pytest.approx([48 * 48, 32 * 32, 0], rel=0.08)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 7)),
        np.ones((5, 7)),
        np.array([[0, 1], [1, 0]]),
        np.pad(np.ones((3, 3)) - np.eye(3), 2),
        (np.random.default_rng(0).random((40, 30)) > 0.5),
    ],
)
def test_run_lengths_and_polygons_give_the_mask_back(mask: np.ndarray) -> None:
    mask = mask.astype(np.uint8)
    assert np.array_equal(from_run_lengths(**run_lengths(mask)), mask)
    assert np.array_equal(filled(polygons(mask), mask.shape), mask)


def test_run_lengths_are_cocos() -> None:
    # pycocotools' own example: column by column, zeros first
    assert run_lengths(np.array([[0, 0, 1], [1, 0, 1]], np.uint8)) == {"size": [2, 3], "counts": [1, 1, 2, 2]}
    assert run_lengths(np.array([[1, 0]], np.uint8))["counts"] == [0, 1, 1]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_that_claims(width: int, height: int) -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )


def unfolding(kind: str) -> Any:
    """DICOM of 96 x 128 whose compressed frame claims 5000 x 5000."""
    data, buffer = dicoms.dataset(scene()), io.BytesIO()
    Image.new("L", (5000, 5000)).save(buffer, kind)
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if kind == "JPEG" else JPEG2000Lossless
    return data


def hostile(folder: Path) -> dict[str, bytes]:
    """Files that broke, or would have broken, readers of images."""
    noise = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    good = as_png(noise)
    data = dicoms.dataset(scene())
    plain = dicoms.write(data, folder / "plain.dcm").read_bytes()
    short = dicoms.dataset(scene())
    short.Rows, short.Columns = 60000, 60000
    frames = dicoms.dataset(scene())
    frames.NumberOfFrames = 2_000_000_000
    tall = dicoms.dataset(scene())
    tall.Rows = 0
    region = dicoms.dataset(scene(), regions=[dicoms.region((96, 128), RegionLocationMaxX1=2**31 - 1)])
    deflated = plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    pages = io.BytesIO()
    tiny = [Image.new("L", (1, 1)) for _ in range(20)]
    tiny[0].save(pages, "TIFF", save_all=True, append_images=tiny[1:])
    return {
        "empty": b"",
        "one byte": b"\x89",
        "truncated png": good[:2000],
        "truncated jpeg": as_png(noise, "JPEG")[:3000],
        "flipped bits": good[:60] + b"\xff\xff\xff" + good[63:],
        "png bomb": png_that_claims(60000, 60000),
        "png of no size": png_that_claims(0, 0),
        "png with too many pixels": as_png(np.zeros((1001, 1000), np.uint8)),
        "text that calls itself png": b"\x89PNG\r\n\x1a\n" + b"<script>alert(1)</script>" * 10,
        "jpeg marker only": b"\xff\xd8\xff\xe0" + os.urandom(500),
        "tiff loop": b"II*\x00\x08\0\0\0\0\0\x08\0\0\0" * 10,
        "too many pages": pages.getvalue(),
        "bmp noise": b"BM" + os.urandom(400),
        "zip": b"PK\x03\x04" + os.urandom(400),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
        "gif": b"GIF89a" + os.urandom(100),
        "dicom head only": plain[:140],
        "dicom truncated": plain[: len(plain) // 2],
        "dicom larger than its pixels": dicoms.write(short, folder / "short.dcm").read_bytes(),
        "dicom of two billion frames": dicoms.write(frames, folder / "frames.dcm").read_bytes(),
        "dicom of no rows": dicoms.write(tall, folder / "tall.dcm").read_bytes(),
        "dicom with a region beyond": dicoms.write(region, folder / "region.dcm").read_bytes(),
        "dicom deflated": deflated,
        "dicom that unfolds": dicoms.write(unfolding("JPEG"), folder / "jpeg.dcm").read_bytes(),
        "dicom that unfolds more": dicoms.write(unfolding("JPEG2000"), folder / "jpeg2000.dcm").read_bytes(),
        "dicom noise": b"\0" * 128 + b"DICM" + os.urandom(3000),
        "mp4 noise": b"\0\0\0\x18ftypisom" + os.urandom(2000),
        "avi noise": b"RIFF\0\0\0\0AVI " + os.urandom(2000),
        "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "webm noise": b"\x1aE\xdf\xa3" + os.urandom(2000),
        "png of many chunks": good[:33] + png_chunk(b"tEXt", b"a\0b") * 100_001 + good[33:],
        "png whose text unfolds": good[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + good[33:],
        "png whose profile unfolds": good[:33] + png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**27))) + good[33:],
    }


def test_hostile_files_get_a_4xx_that_names_no_path(
    client: TestClient, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    allowed_to_work = {"flipped bits", "dicom with a region beyond"}
    uploads = client.app.state.service.uploads.folder  # type: ignore[attr-defined]
    files = hostile(tmp_path)
    record_property("cases", 2 * len(files))
    for name, content in files.items():
        for answer in (send(client, content), client.post("/uploads", files={"file": ("a/../b\n.png", content)})):
            if name not in allowed_to_work:
                assert answer.status_code in (413, 422), (name, answer.status_code, answer.text)
                assert answer.json()["error"], name
            assert answer.status_code < 500, name
            assert str(uploads) not in answer.text, name
            assert "upload." not in answer.text, name
    assert send(client, as_png(scene())).status_code == 200
    assert {path for path in uploads.iterdir() if path.is_dir()} <= {
        one.folder
        for one in client.app.state.service.uploads._known.values()  # type: ignore[attr-defined]
    }, "a refused file was left behind"


def test_a_frame_larger_than_its_header_is_refused_before_it_is_decoded(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bustseg.data.dicom.read_frame", lambda *_: pytest.fail("it was decoded"))
    for kind in ("JPEG", "JPEG2000"):
        answer = send(client, dicoms.write(unfolding(kind), tmp_path / f"{kind}.dcm").read_bytes())
        assert (answer.status_code, "larger than its header" in answer.json()["error"]) == (422, True)


def test_too_large_requests_are_refused_with_and_without_a_length(client: TestClient) -> None:
    assert send(client, b"\0" * 5_000_000).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(50):
            yield b"\0" * 100_000
        yield b"\r\n--x--\r\n"

    answer = client.post("/predict", content=chunks(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


def test_bodies_without_files_have_a_limit_of_their_own(predictor: Predictor) -> None:
    with TestClient(create_app(predictor, Settings(max_json_bytes=10_000)), base_url=BASE) as client:
        assert send(client, as_png(np.random.default_rng(0).integers(0, 255, (120, 120), np.uint8))).status_code == 200
        where = f"/uploads/{'0' * 32}/0/correction"
        assert client.post(where, content=b"[" + b"1," * 10_000).status_code == 413
        assert client.post(where, content=iter([b"[" + b"1," * 10_000])).status_code == 413


def test_a_mask_that_claims_any_size_is_refused_before_it_is_expanded(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bustseg.serve.service.from_run_lengths", lambda *_: pytest.fail("it was expanded"))
    content = dicoms.write(dicoms.dataset(scene()), tmp_path / "a.dcm").read_bytes()
    id = client.post("/uploads", files={"file": ("a.dcm", content)}).json()["id"]
    rle = {"size": [100_000, 100_000], "counts": [10**10]}
    correction = {"verdict": "accepted", "rle": rle, "no_text": True}
    for path, wish in (
        (f"{id}/0/correction", correction),
        (f"{id}/segmentation", {"masks": [{"frame": 0, "rle": rle}]}),
    ):
        answer = client.post(f"/uploads/{path}", json=wish)
        assert (answer.status_code, "100000x100000" in answer.json()["error"]) == (422, True), path


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_heat_map_covers_the_image_and_not_its_padding(
    client: TestClient, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, resize: Resize
) -> None:
    monkeypatch.setattr(predictor, "framing", Framing(predictor.image_size, resize))
    wide = np.hstack([scene(), scene()])
    id = client.post("/uploads", files={"file": ("a.png", as_png(wide))}).json()["id"]
    heat = Image.open(io.BytesIO(client.get(f"/uploads/{id}/0/heat").content))
    rows, columns = predictor.framing.window((wide.shape[0], wide.shape[1]))
    assert (heat.height, heat.width) == (rows.stop - rows.start, columns.stop - columns.start)
    assert (heat.height < predictor.image_size[0]) == (resize == "letterbox")


def test_heat_maps_hold_up_no_other_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service, hold = client.app.state.service, threading.Event()  # type: ignore[attr-defined]
    monkeypatch.setattr(service, "_heat", lambda item: hold.wait(60) and b"")
    id = client.post("/uploads", files={"file": ("a.png", as_png(scene()))}).json()["id"]
    with ThreadPoolExecutor(6) as pool:
        heats = [pool.submit(client.get, f"/uploads/{id}/0/heat") for _ in range(5)]
        try:
            while service.working < len(heats):
                time.sleep(0.01)
            assert pool.submit(send, client, as_png(scene())).result(timeout=20).status_code == 200
        finally:
            hold.set()
        assert {heat.result().status_code for heat in heats} == {200}


@pytest.mark.parametrize(
    ("content", "type_"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"garbage", "multipart/form-data; boundary=x"),
        (b"--x\r\n" * 1000, "multipart/form-data; boundary=x"),
        (b"garbage", "multipart/form-data"),
        (b"{}", "application/json"),
        (b"files=1", "application/x-www-form-urlencoded"),
    ],
)
def test_malformed_forms_get_a_4xx(client: TestClient, content: bytes, type_: str) -> None:
    answer = client.post("/predict", content=content, headers={"content-type": type_})
    assert answer.status_code in (400, 422), answer.text


def test_other_names_of_the_server_and_other_sites_are_refused(client: TestClient) -> None:
    image = {"files": ("a.png", as_png(scene()))}

    def status(path: str = "/predict", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if path == "/predict":
            return client.post(path, files=image, headers=named).status_code
        return client.get(path, headers=named).status_code

    assert status() == 200
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080", "10.0.0.5:1", "LOCALHOST."):
        assert status(host=host) == 200, host
    # a name that now points here: DNS rebinding
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::1", "localhost:x", "a b"):
        assert status(host=host) == 421, host
        assert status("/model", host=host) == 421, host
    assert status(origin=BASE) == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8081", "https://localhost"):
        assert status(origin=origin) == 403, origin
    assert status(sec_fetch_site="cross-site") == 403
    assert status(sec_fetch_site="same-site") == 403
    assert status(sec_fetch_site="same-origin") == 200
    assert status("/model", sec_fetch_site="cross-site", sec_fetch_mode="no-cors") == 403
    twice = [("Origin", "http://evil.example"), ("Origin", BASE)]
    assert client.get("/model", headers=twice).status_code == 400
    # a link on another page may open this one
    assert status("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate") == 200
    answer = client.options("/predict", headers={"origin": BASE, "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("header", "name"),
    [("a:80", "a"), ("A.", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", None), ("[::1]x", None), ("a:b", None)],
)
def test_host_headers(header: str, name: str | None) -> None:
    assert host_name(header) == name


def test_paths_lead_nowhere_else(client: TestClient) -> None:
    for path in (
        "/page/../settings.py",
        "/page/%2e%2e/settings.py",
        "/page/..%2f..%2fcli.py",
        "/page//etc/passwd",
        "/../../etc/passwd",
        "/uploads/..%2f..%2fetc/0",
        "/uploads/" + "0" * 32 + "/0",
        "/uploads/" + "0" * 31 + "G/0",
        "/page/index.html%00.js",
    ):
        answer = client.get(path)
        assert answer.status_code in (404, 422), path
        assert "root:" not in answer.text


def test_with_a_token_everything_but_the_page_asks_for_it(predictor: Predictor) -> None:
    token = "a token of this test only"
    settings = Settings(host="0.0.0.0", token=token)
    with TestClient(create_app(predictor, settings), base_url="http://192.168.1.7:8080") as client:
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code == 200
        for path in ("/model", "/metrics", "/openapi.json", "/uploads/" + "0" * 32):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.get(path, headers={"authorization": f"Bearer {token}x"}).status_code == 401
            assert client.get(path, headers={"authorization": f"bearer {token}é".encode()}).status_code == 401
        assert client.get("/model", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert (
            client.get("/model", headers={"host": "ward.hospital", "authorization": f"Bearer {token}"}).status_code
            == 421
        )


def test_an_address_that_others_reach_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "ward.hospital"):
        with pytest.raises(UserError, match="token"):
            Settings(host=host)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        Settings(host=host)
    with pytest.raises(UserError, match="16 characters"):
        Settings(token="short")
    for token in ("a token of this t\u00ebst only", "a token of this test\nonly", "a token of this test only "):
        with pytest.raises(UserError, match="header"):
            Settings(token=token)


def test_the_printed_address_carries_any_token() -> None:
    token = "a+token & of=this#test%only"
    fragment = urlsplit(address_of("127.0.0.1", 8080, token)).fragment
    assert parse_qs(fragment) == {"token": [token]}


def test_every_answer_says_what_this_is_and_is_not_for_other_sites(client: TestClient) -> None:
    for path in ("/", "/health", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-notice"] == NOTICE
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
    assert NOTICE in client.get("/openapi.json").json()["info"]["description"]
    assert client.get("/nothing").json()["notice"] == NOTICE


def test_the_network_answers_the_page_and_keeps_its_files_for_a_while(client: TestClient, predictor: Predictor) -> None:
    image = scene()
    made = client.post("/uploads", files={"file": ("scan.png", as_png(image))})
    assert made.status_code == 201
    where = f"/uploads/{made.json()['id']}"
    assert client.get(where).json()["frames"] == 1
    shown = client.get(f"{where}/0").json()
    assert (shown["width"], shown["height"], shown["area_px"]) == (128, 96, 48 * 48)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(client.get(f"{where}/0/picture").content))), image)
    answer = client.get(f"{where}/0/logits")
    size = int(answer.headers["x-height"]), int(answer.headers["x-width"])
    logits = np.frombuffer(answer.content, "<f4").reshape(size)
    assert np.array_equal(logits, predictor.logits([predictor.prepare(image)])[0, 0])
    assert client.get("/model").json()["explanation"] == "Occlusion"
    heat = np.asarray(Image.open(io.BytesIO(client.get(f"{where}/0/heat").content)))
    inside = predictor.prepare(image) < 100  # the dark square is the lesion
    assert heat.shape == size
    assert heat.max() == 255
    assert heat[inside].mean() > 3 * heat[~inside].mean(), "the outline rests on the lesion"
    assert client.get(f"{where}/1").status_code == 404
    folder = client.app.state.service.uploads.get(made.json()["id"]).folder  # type: ignore[attr-defined]
    assert folder.is_dir()
    assert client.delete(where).status_code == 200
    assert not folder.exists()
    assert client.get(where).status_code == client.delete(where).status_code == 404


def test_an_image_of_the_page_passes_the_network_once_whatever_is_asked_of_it(client: TestClient) -> None:
    def passed() -> float:
        line = next(one for one in client.get("/metrics").text.splitlines() if one.startswith("bustseg_images_total"))
        return float(line.split()[1])

    image = scene()
    where = f"/uploads/{client.post('/uploads', files={'file': ('a.png', as_png(image))}).json()['id']}"
    image[24:72, 32:56] = 99  # probability 0.525
    other = f"/uploads/{client.post('/uploads', files={'file': ('b.png', as_png(image))}).json()['id']}"
    assert client.get(f"{where}/0").json()["area_px"] == 48 * 48
    assert client.get(f"{where}/0/logits").status_code == 200
    assert passed() == 1
    areas = [client.get(f"{other}/0", params={"threshold": cut}).json()["area_px"] for cut in (0.5, 0.6)]
    assert areas[0] > 48 * 40
    assert areas[1] < 48 * 30
    assert passed() == 2, "each image has its own logits"
    client.delete(where)
    assert client.get(f"{where}/0").status_code == 404
    assert not [key for key in client.app.state.service._seen if key[0] in where]  # type: ignore[attr-defined]


def test_a_pass_that_fails_is_tried_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"/uploads/{client.post('/uploads', files={'file': ('a.png', as_png(scene()))}).json()['id']}/0"
    with monkeypatch.context() as broken:
        broken.setattr("bustseg.serve.service.read_item", lambda *_: (_ for _ in ()).throw(DataError("not now")))
        assert client.get(where).status_code == 422
    assert client.get(where).json()["area_px"] == 48 * 48


def test_uploads_go_when_they_are_old_or_too_many(predictor: Predictor) -> None:
    content = as_png(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    with TestClient(create_app(predictor, Settings(keep_bytes=3 * len(content))), base_url=BASE) as client:
        ids = [client.post("/uploads", files={"file": ("a.png", content)}).json()["id"] for _ in range(5)]
        assert [client.get(f"/uploads/{id}").status_code for id in ids] == [404, 404, 200, 200, 200]
        folder = client.app.state.service.uploads.folder  # type: ignore[attr-defined]
        uploads = client.app.state.service.uploads  # type: ignore[attr-defined]
        uploads.get(ids[-1]).used -= 4000
        uploads.tidy()
        assert [client.get(f"/uploads/{id}").status_code for id in ids[2:]] == [200, 200, 404]
    assert not folder.exists(), "files of clients outlive the server"


def test_figures_for_prometheus(client: TestClient) -> None:
    send(client, as_png(scene()))
    client.get("/nothing/at/all")
    client.get("/", headers={"host": "evil.example"})
    text = client.get("/metrics").text
    assert 'bustseg_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'bustseg_requests_total{path="refused",status="421"} 1.0' in text
    assert "bustseg_images_total 1.0" in text
    assert "/nothing" not in text, "paths of strangers would fill the memory"


def test_200_clients_at_once_get_the_right_answer_or_are_told_to_wait(
    start: Start, record_property: Callable[[str, object], None]
) -> None:
    record_property("cases", 200)
    running = start(max_requests=16)
    images = [scene(top=8 * k, left=8 * k, side=16 + 4 * k) for k in range(8)]
    contents = [as_png(image) for image in images]

    async def all_of_them() -> list[tuple[int, httpx.Response]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as client:

            async def one(k: int) -> tuple[int, httpx.Response]:
                files = {"files": ("a.png", contents[k % 8])}
                for _ in range(200):
                    answer = await client.post("/predict?mask=none", files=files)
                    if answer.status_code != 429:
                        break
                    assert answer.headers["retry-after"]
                    await asyncio.sleep(0.05)
                return k, answer

            return await asyncio.gather(*map(one, range(200)))

    for k, answer in asyncio.run(all_of_them()):
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["area_px"] == pytest.approx(int((images[k % 8] < 100).sum()), rel=0.1)
    text = httpx.get(f"{running.url}/metrics").text
    assert 'path="/predict",status="5' not in text


def test_images_of_several_clients_pass_the_network_together(predictor: Predictor) -> None:
    from bustseg.serve.batching import Batcher, Busy

    sizes: list[int] = []
    gate = threading.Event()

    def logits(images: list[np.ndarray]) -> np.ndarray:
        gate.wait(10)
        return np.stack([image.astype(np.float32)[None] for image in images])

    batcher = Batcher(logits, 4, 9, lambda size, seconds: sizes.append(size))
    first = batcher.submit(np.zeros((2, 2)))
    while batcher.waiting:
        time.sleep(0.001)
    others = [batcher.submit(np.full((2, 2), k)) for k in range(1, 10)]
    with pytest.raises(Busy):
        batcher.submit(np.zeros((2, 2)))
    others[0].cancel()
    gate.set()
    assert first.result(5).max() == 0
    assert [one.result(5).max() for one in others[1:]] == list(range(2, 10))
    batcher.close()
    assert sizes == [1, 4, 4]


def test_an_error_of_the_network_reaches_its_clients_and_nobody_else() -> None:
    from bustseg.serve.batching import Batcher

    def logits(images: list[np.ndarray]) -> np.ndarray:
        if images[0].max() > 0:
            raise RuntimeError("broken")
        return np.zeros((len(images), 1, 2, 2), np.float32)

    batcher = Batcher(logits, 4, 8)
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(np.ones((2, 2))).result(5)
    assert batcher.submit(np.zeros((2, 2))).result(5).shape == (1, 2, 2)
    batcher.close()


def test_slow_and_broken_clients_hold_nobody_up(start: Start) -> None:
    running = start(body_seconds=0.5, max_requests=4)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    ).encode()
    slow = []
    for _ in range(3):
        slow.append(socket.create_connection(("127.0.0.1", running.port)))
        slow[-1].sendall(head)
    for _ in range(20):  # gone in the middle of a request, or of its first line
        for part in (head, b"POST /pre", b"\x16\x03\x01\x02", b"GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", running.port)) as broken:
                broken.sendall(part)
    answer = httpx.post(f"{running.url}/predict", files={"files": ("a.png", as_png(scene()))})
    assert answer.status_code in (200, 429)
    for one in slow:
        one.settimeout(10)
        assert one.recv(100).startswith(b"HTTP/1.1 408")
        one.close()
    until = time.monotonic() + 10
    while httpx.get(f"{running.url}/health").json()["requests"]:
        assert time.monotonic() < until, "a client that went away still counts"
        time.sleep(0.05)
    assert httpx.post(f"{running.url}/predict", files={"files": ("a.png", as_png(scene()))}).status_code == 200


def test_a_request_beyond_the_limit_is_told_so_before_its_body_is_read(start: Start) -> None:
    running = start(max_requests=1, body_seconds=5)
    with socket.create_connection(("127.0.0.1", running.port)) as first:
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nContent-Length: 9\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        first.sendall(head.encode())
        until = time.monotonic() + 5
        while not httpx.get(f"{running.url}/health").json()["requests"]:
            assert time.monotonic() < until
            time.sleep(0.01)
        answer = httpx.post(f"{running.url}/predict", files={"files": ("a.png", as_png(scene()))})
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert httpx.get(f"{running.url}/model").status_code == 200


@pytest.mark.slow
def test_requests_made_from_the_openapi_document(
    start: Start, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """schemathesis: whatever the document allows or forbids, the answer is one that it names, and never a 5xx."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    running = start(corrections=tmp_path / "corrections")
    image = {"file": ("a.png", as_png(scene()))}
    known = httpx.post(f"{running.url}/uploads", files=image).json()["id"]
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    wanted = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    )
    tried = 0

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        nonlocal tried
        tried += 1
        if case.method.upper() != "DELETE" and (case.path_parameters or {}).get("id"):
            case.path_parameters["id"] = known
        case.call_and_validate(checks=wanted)

    for result in schema.get_all_operations():
        operation = result.ok()
        strategy = operation.as_strategy()
        from hypothesis import given

        given(strategy)(run)()
    assert tried > 200
    record_property("cases", tried)
    record_property("by", f"schemathesis {version('schemathesis')}")
    assert httpx.post(f"{running.url}/predict", files={"files": ("a.png", as_png(scene()))}).status_code == 200


def test_the_command_refuses_what_cannot_work(bustseg: Callable[..., tuple[int, str, str]], dark: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = bustseg("serve", "--model", dark, "--port", port)
        assert (code, "--port" in err) == (2, True)
    code, _, err = bustseg("serve", "--model", dark, "--port", 70000)
    assert (code, "65535" in err) == (2, True)
    code, _, err = bustseg("serve", "--model", "nowhere", "--port", 0)
    assert (code, "nowhere" in err) == (2, True)
    code, _, err = bustseg("serve", "--model", dark, "--threshold", 2)
    assert (code, "from 0 to 1" in err) == (2, True)
