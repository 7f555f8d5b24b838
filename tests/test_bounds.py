"""Small files that unfold to gigabytes, or never end: refused by name, before memory or time is spent."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bustseg import bounds
from bustseg.bounds import (
    LimitError,
    check_archive,
    check_pixels,
    check_regular,
    check_values,
    is_number,
    read_yaml,
    room_for,
)
from bustseg.data import dicom
from bustseg.data.images import count_pages, image_size, read_native
from bustseg.data.inputs import Inputs
from bustseg.data.sources.base import read_table
from bustseg.errors import DataError, UserError, in_one_line
from bustseg.trust import check_config
from tests.data.dicoms import as_jpeg, dataset, write

Bustseg = Callable[..., tuple[int, str, str]]


def png_of_zeros(path: Path, width: int, height: int) -> Path:
    """A whole and valid grey PNG of one colour, made without its pixels ever being in memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj(9)
    body = b"".join(pack.compress(bytes(width + 1)) for _ in range(height)) + pack.flush()
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand pixels, so that tests need no large files."""
    monkeypatch.setenv(bounds.MEGAPIXELS, "0.1")


@pytest.mark.parametrize(("width", "height"), [(6000, 5000), (12_000, 9_000), (200_000, 200)])
def test_a_png_that_unfolds_to_gigabytes(tmp_path: Path, width: int, height: int) -> None:
    path = png_of_zeros(tmp_path / "bomb.png", width, height)
    assert path.stat().st_size < 200_000
    start = time.process_time()
    with pytest.raises(LimitError, match=r"more than 24 million|at most 24 million") as refusal:
        read_native(path)
    assert bounds.MEGAPIXELS in str(refusal.value)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("width", "height"), [(70_000, 1), (1, 70_000), (2_000_000, 1)])
def test_an_image_too_long_to_be_written(tmp_path: Path, width: int, height: int, bustseg: Bustseg) -> None:
    path = png_of_zeros(tmp_path / "long.png", width, height)
    with pytest.raises(LimitError, match="at most 65500 on a side"):
        read_native(path)
    code, _, err = bustseg("predict", path, "--out", tmp_path / "out")
    assert code == 2
    assert "65500 on a side" in err


def test_memory_that_is_not_there_is_said_in_one_line() -> None:
    assert in_one_line(MemoryError("Unable to allocate 703. MiB"))[1] == 2


def tiff_of_two_pages(path: Path) -> tuple[bytearray, int, int]:
    """A TIFF's content, and where the tags of each page begin."""
    page = Image.new("L", (8, 8), 9)
    page.save(path, save_all=True, append_images=[page])
    content = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, first)[0]
    second = struct.unpack_from("<I", content, first + 2 + 12 * count)[0]
    return content, first, second


def test_a_tiff_whose_second_page_has_no_size(tmp_path: Path) -> None:
    content, _, second = tiff_of_two_pages(tmp_path / "a.tif")
    struct.pack_into("<H", content, second, 0)  # no tags at all
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DataError, match="not a readable image"):
        count_pages(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "webp.png"])
@pytest.mark.usefixtures("small_limit")
def test_every_format_has_the_limit_and_it_can_be_raised(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    Image.new("RGB", (400, 300), 77).save(path, "WEBP" if name == "webp.png" else None)
    with pytest.raises(LimitError, match=r"400x300 pixels, and at most 0\.1 million"):
        read_native(path)
    monkeypatch.setenv(bounds.MEGAPIXELS, "0.12")
    assert read_native(path).shape == (300, 400, 3)
    assert image_size(path) == (300, 400)


@pytest.mark.parametrize("value", ["", "many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(bounds.MEGAPIXELS, value)
    with pytest.raises(UserError, match="give a number of millions"):
        check_pixels("x", 1, 1)


@pytest.mark.usefixtures("small_limit")
def test_a_large_page_behind_small_ones(tmp_path: Path) -> None:
    small, large = Image.new("L", (8, 8)), Image.new("L", (400, 300))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[small, large], compression="tiff_deflate")
    assert count_pages(tmp_path / "a.tif") == 3
    assert read_native(tmp_path / "a.tif", 1).shape == (8, 8)
    with pytest.raises(LimitError):
        read_native(tmp_path / "a.tif", 2)


def test_a_tiff_of_more_pages_than_any_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Image.new("L", (8, 8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 6)
    monkeypatch.setattr(bounds, "MAX_FRAMES", 5)
    with pytest.raises(LimitError, match="at most 5 are read from one file"):
        count_pages(tmp_path / "a.tif")
    (item,) = Inputs([str(tmp_path / "a.tif")], tmp_path / "out")
    assert "at most 5" in item.error


def test_pages_in_a_circle(tmp_path: Path) -> None:
    content, first, second = tiff_of_two_pages(tmp_path / "a.tif")
    more = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<I", content, second + 2 + 12 * more, first)  # after the second the first again
    (tmp_path / "a.tif").write_bytes(content)
    start = time.process_time()
    assert count_pages(tmp_path / "a.tif") == 2
    assert time.process_time() - start < 5


def test_a_jpeg_of_thousands_of_passes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]
    (tmp_path / "fine.jpg").write_bytes(content)
    (tmp_path / "a.jpg").write_bytes(content[:-2] + scan * 5000 + b"\xff\xd9")
    assert read_native(tmp_path / "fine.jpg").shape == (64, 64)
    with pytest.raises(LimitError, match="passes, and at most 200"):
        read_native(tmp_path / "a.jpg")


def test_formats_that_start_programs_are_not_tried(tmp_path: Path) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(RAN) (w) file closefile\n%%EOF\n"
    (tmp_path / "a.png").write_text(text)
    with pytest.raises(DataError, match="not a readable image"):
        read_native(tmp_path / "a.png")


@pytest.mark.usefixtures("small_limit")
def test_dicom_headers_and_streams(tmp_path: Path) -> None:
    plain = dataset(np.zeros((300, 400), np.uint8))
    with pytest.raises(LimitError, match="a DICOM file has 400x300"):
        dicom.read_header(write(plain, tmp_path / "a.dcm"))
    with pytest.raises(LimitError):
        dicom.read_frame(tmp_path / "a.dcm")
    # the header tells of a small image, and the stream of a large one
    hidden = as_jpeg(dataset(np.zeros((16, 16), np.uint8)), np.zeros((300, 400), np.uint8))
    write(hidden, tmp_path / "b.dcm")
    assert dicom.read_header(tmp_path / "b.dcm").shape == (16, 16)
    with pytest.raises(DataError, match="larger than its header says"):
        dicom.read_frame(tmp_path / "b.dcm")


def test_a_dicom_file_that_claims_a_billion_frames(tmp_path: Path) -> None:
    data = dataset(np.zeros((16, 16), np.uint8))
    data.NumberOfFrames = 1_000_000_000
    write(data, tmp_path / "a.dcm")
    (item,) = Inputs([str(tmp_path / "a.dcm")], tmp_path / "out")
    assert "claims to hold 1000000000 images" in item.error
    assert "a.dcm" not in item.error


def test_a_deflated_dicom_file_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    data = dataset(np.zeros((1000, 1000), np.uint8))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = write(data, tmp_path / "a.dcm")
    assert path.stat().st_size < 20_000
    assert dicom.read_frame(path).shape == (1000, 1000)
    monkeypatch.setattr(bounds, "MAX_DEFLATED_BYTES", 500_000)
    for read in (dicom.read_header, dicom.read_frame):
        with pytest.raises(LimitError, match="expands to more than the 500,000 bytes"):
            read(path)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    at_once, most = 0, 0

    def work() -> None:
        nonlocal at_once, most
        with room_for(bounds.LARGE), room_for(bounds.LARGE):  # also from within
            at_once += 1
            most = max(most, at_once)
            time.sleep(0.01)
            at_once -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_large_image_gets_the_same_prediction(
    tmp_path: Path, bustseg: Bustseg, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones are read twice instead of waiting in memory for their turn."""
    image = next((phantoms / "malignant").glob("*).png"))
    assert bustseg("predict", image, "--out", "small")[0] == 0
    monkeypatch.setattr("bustseg.deploy.predict.LARGE", 1)
    monkeypatch.setattr("bustseg.bounds.LARGE", 1)
    assert bustseg("predict", image, "--out", "large")[0] == 0
    for kind in ("masks", "overlays"):
        (one,), (other,) = (list(Path(folder, kind).iterdir()) for folder in ("small", "large"))
        assert one.read_bytes() == other.read_bytes()


def test_pipes_devices_and_sockets(tmp_path: Path, bustseg: Bustseg) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")  # relative: such names are short
        (tmp_path / "link.png").symlink_to("/dev/zero")
        for name in ("pipe.png", "pipe.dcm", "pipe", "s.png", "link.png", "/dev/zero", "/dev/null"):
            for read in (read_native, check_regular, image_size):
                with pytest.raises(DataError, match=r"is a (pipe|socket|device), not a file"):
                    read(tmp_path / name)
            code, _, err = bustseg("predict", tmp_path / name, "--out", "out")
            assert code == 2
            assert ", not a file" in err
        for command in (
            ("fit", "--config", "pipe"),
            ("sweep", "--config", "pipe"),
            ("reproduce", "--table", "pipe"),
            ("test", "--ckpt_path", "pipe"),
            ("predict", "x.png", "--model", "pipe", "--out", "o"),
            ("explain", tmp_path / "pipe.png", "--model", "pipe", "--out", "o"),
            ("data", "check", "pipe"),
            ("data", "fetch", "dest", "--archive", "pipe"),
            ("data", "split", "pipe"),
            ("ensemble", "pipe", "pipe", "--out", "x.ckpt"),
            ("compare", "pipe", "pipe"),
            ("bench", "pipe"),
            ("export", "pipe", "--out", "o"),
        ):
            code, out, err = bustseg(*command)
            assert code == 2, (command, out, err)
            assert "Traceback" not in err
    # beside images a pipe is no image, and the others are read
    Image.new("L", (32, 32), 90).save("image.png")
    assert bustseg("predict", tmp_path, "--out", "out")[0] == 0
    assert len(list(Path("out/masks").iterdir())) == 1


YAMLS = {
    "billion laughs": "\n".join(
        ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    ),
    "billion merges": "\n".join(
        ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))]
    ),
    "itself": "a: &a [*a]",
    "deep": "[" * 5000 + "]" * 5000,
    "deep and open": "{a: " * 5000,
    "many": "[" + "x," * 120_000 + "]",
    "long": "x: " + "y" * 3_000_000,
    "control characters": "a: \x00",
    "python objects": "!!python/object/apply:os.system ['echo seen > RAN']",
    "a date that is none": "a: 2021-99-99",
    "a number without end": "a: 1" + "0" * 9000,
    "an unhashable key": "? [a]\n: b",
    "not closed": "a: [1",
    "no mapping": "- 1",
    "empty": "",
}


BOMB = (
    "{a: &a [x, x, x, x, x, x, x, x], "
    + ", ".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True))
    + "}"
)
"""Two million values in five hundred letters."""


def test_options_and_texts_in_configurations_that_never_end(phantoms: Path, bustseg: Bustseg) -> None:
    start = time.process_time()
    Path("x.yaml").write_text(yaml.safe_dump({"data": {"source": BOMB}}))
    for command in (
        ("data", "check", phantoms, "--source", BOMB),
        ("fit", "--config", "quickstart", "--model.network", BOMB),
        ("fit", "--config", "quickstart", f"--model.network={BOMB}"),
        ("summary", "--config", "x.yaml"),
    ):
        code, _, err = bustseg(*command)
        assert code == 2, err
        assert "when its aliases are written out" in " ".join(err.split())
    with pytest.raises(UserError, match="aliases are written out"):
        check_config({"model": {"network": {"class_path": "torch.nn.Identity", "init_args": {"x": BOMB}}}}, "x.ckpt")
    assert time.process_time() - start < 20
    for harmless in ("a & b * c", "R&D/*.png", "{a: &x 1, b: *x}", "--data.root=/a&b/*"):
        bounds.check_text(harmless)


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_configurations_that_never_end(text: str, bustseg: Bustseg) -> None:
    Path("x.yaml").write_text(text)
    start = time.process_time()
    for command in (("fit",), ("sweep",), ("summary",), ("reproduce", "--table", "x.yaml")):
        code, _, err = bustseg(*command, *(("--config", "x.yaml") if len(command) == 1 else ()))
        assert code == 2, err
        assert "x.yaml" in err
        assert "Traceback" not in err
    assert time.process_time() - start < 20
    assert not Path("RAN").exists()
    assert not Path("mlruns").exists()


def test_values_are_counted_as_often_as_they_are_written_out() -> None:
    check_values({"a": [1, {"b": (2, {3})}]}, "x")
    shared = ["x"]
    check_values([shared] * 5_000, "x")
    with pytest.raises(LimitError):
        check_values([[shared] * 1000] * 1000, "x")


def test_what_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(DataError, match="not valid YAML"):
        read_yaml(tmp_path / "x.yaml")


def test_a_table_that_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(3_000_000))
    monkeypatch.setattr(bounds, "MAX_TABLE_BYTES", 1_000_000)
    with pytest.raises(LimitError, match="expands to 3,000,000 bytes"):
        read_table(tmp_path / "a.xlsx", "the table")
    (tmp_path / "a.csv").write_bytes(bytes(1_000_001))
    with pytest.raises(LimitError, match="1,000,001 bytes"):
        read_table(tmp_path / "a.csv", "the table")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="a pipe"):
        read_table(tmp_path / "pipe.csv", "the table")
    (tmp_path / "b.xlsx").write_bytes(b"PK no archive")
    check_archive(tmp_path / "b.xlsx", 1, "a table")
    with pytest.raises(DataError, match="cannot read the table"):
        read_table(tmp_path / "b.xlsx", "the table")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("place", ["header", "row"])
def test_a_table_of_a_million_columns(tmp_path: Path, mark: str, place: str) -> None:
    """Pandas takes minutes for them."""
    wide, row = mark.join(["x"] * 1_000_000), mark.join("ab")
    (tmp_path / "a.csv").write_text(f"{wide}\n{row}\n" if place == "header" else f"{row}\n{wide}\n")
    start = time.process_time()
    with pytest.raises(LimitError, match="1,000,000 columns, and a table at most 2,000"):
        read_table(tmp_path / "a.csv", "the table")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("value", [0, -3, 0.5, 1e308, True])
def test_a_number_is_what_a_float_holds(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, "1", None, [1]])
def test_other_values_are_no_numbers(value: Any) -> None:
    assert not is_number(value)
