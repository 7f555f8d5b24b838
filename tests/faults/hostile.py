"""Hostile files for every reader, the same in every run: what a stranger's disk, or a stranger, may hand over.

A :class:`Case` is a file (or what pretends to be one) and the command that reads it. Bytes are drawn with a fixed seed,
values of configurations by hypothesis.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.data.dicoms import as_jpeg, dataset, region

SHAPE = (64, 80)
HUGE = 60_000
"""Side of an image that nobody has, in pixels."""

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Material:
    """What is whole, of which the hostile files are made.

    Attributes:
        phantoms: a data set in BUSI's layout
        checkpoint: of a fit on it
        exported: the same network as an exported folder
        table: one row per test image, as ``test`` writes it
        config: what the fit was made with, as plain types
    """

    phantoms: Path
    checkpoint: Path
    exported: Path
    table: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A hostile input and who reads it.

    Attributes:
        name: what it is
        make: writes it into the folder in which the command runs
        args: the command
    """

    name: str
    make: Make
    args: tuple[str, ...]


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """So many values of a strategy, the same each time."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found[:count]


# ------------------------------------------------------------------------------------------------------------- images


def grey(shape: tuple[int, int] = SHAPE, dtype: Any = np.uint8) -> np.ndarray:
    """An image (H, W) of noise around a dark disc."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inside = (rows - shape[0] / 2) ** 2 + (columns - shape[1] / 2) ** 2 < (min(shape) / 4) ** 2
    level = np.where(inside, 0.2, 0.6) + rng.normal(0, 0.05, shape)
    if np.dtype(dtype).kind == "f":
        return level.astype(dtype)
    return (level.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def pillow(format: str, mode: str = "L", **options: Any) -> bytes:
    """An image file as Pillow writes it; with ``frames`` of several images."""
    frames = options.pop("frames", 1)
    image = Image.fromarray(grey()).convert(mode)
    if frames > 1:
        options |= {"save_all": True, "append_images": [image.rotate(90 * k) for k in range(1, frames)]}
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def numpy_image(array: np.ndarray, format: str) -> bytes:
    """An image file of an array of any type that Pillow takes."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format)
    return buffer.getvalue()


def dicom(data: Dataset) -> bytes:
    """A DICOM file's bytes."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def changed(**values: Any) -> bytes:
    """A DICOM file whose header says what its pixels do not; ``...`` leaves an element out."""
    data = dataset(grey(), regions=[region((40, 60))])
    for name, value in values.items():
        if value is ...:
            del data[name]
        else:
            setattr(data, name, value)
    return dicom(data)


def transferred(uid: str) -> bytes:
    """A DICOM file of another transfer syntax."""
    data = dataset(grey())
    data.file_meta.TransferSyntaxUID = uid
    return dicom(data)


def exif(orientation: int) -> bytes:
    """A JPEG that is to be turned."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return pillow("JPEG", exif=tags)


@cache
def whole_images() -> dict[str, tuple[str, bytes]]:
    """Images of every format that is read: name to suffix and content."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 1000, zip=True)
    cine = dataset(np.stack([grey()] * 3), frames=3)
    return {
        "png": (".png", pillow("PNG")),
        "png rgb": (".png", pillow("PNG", "RGB", pnginfo=text)),
        "png alpha": (".png", pillow("PNG", "RGBA")),
        "png grey alpha": (".png", pillow("PNG", "LA")),
        "png palette": (".png", pillow("PNG", "P")),
        "png 1 bit": (".png", pillow("PNG", "1")),
        "png 16 bit": (".png", numpy_image(grey(dtype=np.uint16), "PNG")),
        "png animated": (".png", pillow("PNG", frames=3)),
        "jpeg": (".jpg", pillow("JPEG")),
        "jpeg progressive": (".jpg", pillow("JPEG", "RGB", progressive=True)),
        "jpeg cmyk": (".jpg", pillow("JPEG", "CMYK")),
        "jpeg turned": (".jpg", exif(6)),
        "tiff": (".tif", pillow("TIFF")),
        "tiff deflate": (".tif", pillow("TIFF", compression="tiff_deflate")),
        "tiff lzw": (".tif", pillow("TIFF", "RGB", compression="tiff_lzw")),
        "tiff pages": (".tiff", pillow("TIFF", frames=3)),
        "tiff 16 bit": (".tif", numpy_image(grey(dtype=np.uint16), "TIFF")),
        "tiff float": (".tif", numpy_image(grey(dtype=np.float32), "TIFF")),
        "tiff int32": (".tif", numpy_image(grey(dtype=np.int32), "TIFF")),
        "bmp": (".bmp", pillow("BMP", "RGB")),
        "bmp palette": (".bmp", pillow("BMP", "P")),
        "dicom": (".dcm", dicom(dataset(grey(), regions=[region((40, 60))]))),
        "dicom 16 bit": (".dcm", dicom(dataset(grey(dtype=np.uint16)))),
        "dicom jpeg": (".dcm", dicom(as_jpeg(dataset(np.dstack([grey()] * 3), "RGB"), np.dstack([grey()] * 3)))),
        "dicom implicit": (".dcm", transferred(ImplicitVRLittleEndian)),
        "dicom deflated": (".dcm", transferred(DeflatedExplicitVRLittleEndian)),
        "dicom cine": (".dcm", dicom(cine)),
    }


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Some bits turned over, anywhere."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 40)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def wrong_header(content: bytes, rng: random.Random) -> bytes:
    """Extreme values where sizes, counts and offsets are."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(4, min(256, len(changed) - 4))
        changed[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
    return bytes(changed)


def spliced(content: bytes, rng: random.Random) -> bytes:
    """A piece of the file in another place of it."""
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    place = rng.randrange(len(content))
    return content[:place] + content[start:end] * rng.randrange(1, 4) + content[place:]


MUTATIONS = (truncated, flipped, wrong_header, spliced)


def png_of(width: int, height: int, rows: int = 0, bits: int = 8, colour: int = 0, name: bytes = b"IDAT") -> bytes:
    """A PNG that claims a size, with so many rows of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pack = zlib.compressobj(9)
    row = bytes(width * bits * (1, 0, 3, 1, 2, 0, 4)[colour] // 8 + 1)
    body = b"".join(pack.compress(row) for _ in range(rows)) + pack.flush()
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(name, body) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG with a comment of 100 MB."""
    kind, content = b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9)
    part = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    whole = pillow("PNG")
    return whole[:33] + part + whole[33:]


def bmp_of(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 1, 1, 0, 0
    )


def tiff_of(*entries: tuple[int, int, int, int], next_offset: int = 0) -> bytes:
    """A TIFF of one directory: (tag, type, count, value) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", next_offset) + bytes(64)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    content = bytearray(pillow("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def nested_dicom(depth: int) -> bytes:
    """Sequences within sequences."""
    data = Dataset()
    data.PatientID = "1"
    for _ in range(depth):
        outer = Dataset()
        outer.RequestAttributesSequence = DicomSequence([data])
        data = outer
    whole = dataset(grey())
    whole.RequestAttributesSequence = DicomSequence([data])
    return dicom(whole)


def tiff_entries(width: int, height: int, **changes: int) -> list[tuple[int, int, int, int]]:
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273}
    tags |= {"samples": 277, "rows": 278, "bytes": 279}
    values = {"width": width, "height": height, "bits": 8, "compression": 1, "photometric": 1, "offset": 8}
    values |= {"samples": 1, "rows": height, "bytes": 64, **changes}
    return [(tags[name], 4, 1, value & 0xFFFFFFFF) for name, value in values.items()]


@cache
def odd_images() -> dict[str, tuple[str, bytes]]:
    """Files whose headers lie, and files that are hardly images."""
    region_of = {"RegionLocationMinX0": 2**31, "RegionLocationMaxX1": 2**32 - 1}
    far = dataset(grey(), regions=[region((40, 60), **region_of)])
    return {
        "nothing": (".png", b""),
        "one byte": (".jpg", b"\xff"),
        "text": (".png", b"no image\n"),
        "page": (".jpg", b"<html><body>404</body></html>"),
        "archive": (".png", b"PK\x03\x04" + bytes(60)),
        "script": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
        "noise": (".tif", random.Random(1).randbytes(5000)),
        "noise as dicom": (".dcm", bytes(128) + b"DICM" + random.Random(2).randbytes(5000)),
        "preamble alone": (".dcm", bytes(128) + b"DICM"),
        "no preamble": (".dcm", changed()[132:]),
        "png claims a huge size": (".png", png_of(HUGE, HUGE)),
        "png claims no width": (".png", png_of(0, 10)),
        "png of 2^31 columns": (".png", png_of(2**31 - 1, 1)),
        "png bomb": (".png", png_of(20_000, 20_000, rows=20_000)),
        "png bomb below the limit": (".png", png_of(4800, 4800, rows=4800)),
        "png bomb of 16 bit colour": (".png", png_of(4800, 4800, rows=4800, bits=16, colour=6)),
        "png of one row": (".png", png_of(2_000_000, 1, rows=1)),
        "png of one column": (".png", png_of(1, 2_000_000, rows=2_000_000)),
        "png of one pixel": (".png", png_of(1, 1, rows=1)),
        "png without pixels": (".png", png_of(64, 64, name=b"IDOT")),
        "png of fewer rows": (".png", png_of(64, 64, rows=3)),
        "png with a text bomb": (".png", text_bomb()),
        "bmp claims a huge size": (".bmp", bmp_of(HUGE, HUGE)),
        "bmp of negative height": (".bmp", bmp_of(64, -64)),
        "bmp of 2^31 rows": (".bmp", bmp_of(1, -(2**31))),
        "bmp of 7 bits": (".bmp", bmp_of(64, 64, bits=7)),
        "bmp run lengths": (".bmp", bmp_of(64, 64, bits=8, compression=1) + b"\xff\0" * 50),
        "tiff claims a huge size": (".tif", tiff_of(*tiff_entries(HUGE, HUGE))),
        "tiff of many samples": (".tif", tiff_of(*tiff_entries(64, 64, samples=60_000))),
        "tiff of 64 bits": (".tif", tiff_of(*tiff_entries(64, 64, bits=64))),
        "tiff whose next page is itself": (".tif", tiff_of(*tiff_entries(8, 8), next_offset=8)),
        "tiff beyond its end": (".tif", tiff_of(*tiff_entries(64, 64, offset=2**31, bytes=2**31))),
        "tiff of unknown compression": (".tif", tiff_of(*tiff_entries(64, 64, compression=34_712))),
        "tiff of jpeg that is none": (".tif", tiff_of(*tiff_entries(64, 64, compression=7))),
        "jpeg claims a huge size": (".jpg", jpeg_of(65_535, 65_535)),
        "jpeg claims no height": (".jpg", jpeg_of(64, 0)),
        "jpeg of fewer rows": (".jpg", jpeg_of(2000, 2000)),
        "tiff not a number": (".tif", numpy_image(np.full(SHAPE, np.nan, np.float32), "TIFF")),
        "tiff infinite": (".tif", numpy_image(np.full(SHAPE, np.inf, np.float32), "TIFF")),
        "dicom claims a huge size": (".dcm", changed(Rows=65_535, Columns=65_535)),
        "dicom of no rows": (".dcm", changed(Rows=0)),
        "dicom of a billion frames": (".dcm", changed(NumberOfFrames=10**9)),
        "dicom of -1 frames": (".dcm", changed(NumberOfFrames=-1)),
        "dicom of 64 bits": (".dcm", changed(BitsAllocated=64, BitsStored=64, HighBit=63)),
        "dicom of 1 bit": (".dcm", changed(BitsAllocated=1, BitsStored=1, HighBit=0)),
        "dicom of 200 samples": (".dcm", changed(SamplesPerPixel=200)),
        "dicom without pixels": (".dcm", changed(PixelData=...)),
        "dicom without rows": (".dcm", changed(Rows=...)),
        "dicom without class": (".dcm", changed(SOPClassUID=...)),
        "dicom of strange colours": (".dcm", changed(PhotometricInterpretation="YBR_ICT\\X")),
        "dicom region far away": (".dcm", dicom(far)),
        "dicom nested deeply": (".dcm", nested_dicom(150)),
        "dicom with strange letters": (".dcm", changed(SpecificCharacterSet="ISO_IR 9999", PatientName="\u0416")),
        "video of noise": (".mp4", random.Random(3).randbytes(5000)),
        "video header alone": (".avi", b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\x7fhdrl"),
    }


def video(path: Path, frames: int = 6) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, SHAPE[::-1])
    for _ in range(frames):
        writer.write(np.dstack([grey()] * 3))
    writer.release()


def _broken_video(path: Path, mutate: Callable[[bytes, random.Random], bytes], seed: int) -> None:
    video(path)
    path.write_bytes(mutate(path.read_bytes(), random.Random(seed)))


def _in_data_folder(content: bytes, suffix: str, phantoms: Path, beside: bool = True) -> Make:
    """A data set in BUSI's layout of which one image or one mask is hostile."""

    def make(folder: Path) -> None:
        shutil.copytree(phantoms, folder / "data")
        image = sorted((folder / "data" / "benign").glob("*).png"))[0]
        target = image if beside else image.with_name(f"{image.stem}_mask.png")
        target.unlink()
        target.with_suffix(suffix).write_bytes(content)

    return make


def _write(name: str, content: bytes) -> Make:
    return lambda folder: _written(folder / name, content)


def _written(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _odd_places() -> Iterator[tuple[str, Make, str]]:
    """What stands in place of a file, and names that are hard to handle: name, maker, what the command names."""
    good = pillow("PNG")

    def linked(folder: Path) -> None:
        (folder / "a.png").symlink_to("b.png")
        (folder / "b.png").symlink_to("a.png")

    def looped(folder: Path) -> None:
        (folder / "in" / "deeper").mkdir(parents=True)
        (folder / "in" / "deeper" / "up").symlink_to("../..", target_is_directory=True)
        (folder / "in" / "deeper" / "a.png").write_bytes(good)

    def bound(folder: Path) -> None:
        here = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("a.png")
        finally:
            os.chdir(here)

    def denied(folder: Path) -> None:
        (folder / "a.png").write_bytes(good)
        (folder / "a.png").chmod(0)

    def deep(folder: Path) -> None:
        inner = folder / "in" / "/".join(["d" * 50] * 30)
        inner.mkdir(parents=True)
        (inner / "a.png").write_bytes(good)

    yield "a pipe", lambda folder: os.mkfifo(folder / "a.png"), "a.png"
    yield "a pipe among images", lambda folder: (os.mkfifo(folder / "a.png"), _written(folder / "b.png", good))[0], "."
    yield "a device", lambda folder: (folder / "a.png").symlink_to("/dev/zero"), "a.png"
    yield "a terminal", lambda folder: (folder / "a.png").symlink_to("/dev/tty"), "a.png"
    yield "a socket", bound, "a.png"
    yield "a folder called as an image", lambda folder: (folder / "a.png").mkdir(), "a.png"
    yield "links in a circle", linked, "a.png"
    yield "a link to nothing", lambda folder: (folder / "a.png").symlink_to("gone.png"), "a.png"
    yield "folders in a circle", looped, "in"
    yield "a file that may not be read", denied, "a.png"
    yield "a very deep folder", deep, "in"
    yield "a name of several lines", _write("a\nerror: b\n.png", good), "a\nerror: b\n.png"
    yield "a name that is no text", lambda folder: _written(folder / os.fsdecode(b"\xff\xfe.png"), good), "."
    yield "a name of markup", _write("[red]a[/red].png", good), "[red]a[/red].png"
    yield "a name of an escape", _write("a\x1b[31m.png", good), "."
    yield "a name like an option", _write("--out.png", good), "./--out.png"
    yield "a name of a pattern", _write("a[0-9]*.png", good), "a[0-9]*.png"
    yield "a long name", _write("x" * 250 + ".png", good), "."
    yield "a formula as a name", _write("=cmd|' /C calc'!A0.png", good), "."
    yield "nothing there", lambda folder: None, "a.png"
    yield "an empty folder", lambda folder: (folder / "in").mkdir(), "in"
    yield "the memory of this machine", lambda folder: (folder / "a.png").symlink_to("/proc/self/mem"), "a.png"


def images(material: Material) -> list[Case]:
    """About two hundred images, DICOM files and cines."""
    predict = ("--out", "out")
    readers: tuple[tuple[str, ...], ...] = (
        ("predict", "{}", *predict),
        ("explain", "{}", "--model", str(material.checkpoint), *predict),
    )
    cases = []
    for number, (name, (suffix, content)) in enumerate(whole_images().items()):
        for count, mutate in enumerate((*MUTATIONS, flipped)):
            hostile = mutate(content, random.Random(100 * number + count))
            title = f"{name} {mutate.__name__} {count}"
            if count == 4:  # as a part of a data set
                make = _in_data_folder(hostile, suffix, material.phantoms, beside=number % 2 == 0)
                cases.append(Case(f"{title} in data", make, ("data", "check", "data")))
                continue
            words = readers[count % 2 if number % 2 else 0]
            args = tuple(f"a{suffix}" if word == "{}" else word for word in words)
            cases.append(Case(title, _write(f"a{suffix}", hostile), args))
    for number, (name, (suffix, content)) in enumerate(odd_images().items()):
        args = tuple(f"a{suffix}" if word == "{}" else word for word in readers[number % 3 == 2])
        cases.append(Case(name, _write(f"a{suffix}", content), args))
    for number, mutate in enumerate(MUTATIONS):
        make = lambda folder, mutate=mutate, number=number: _broken_video(folder / "a.avi", mutate, number)  # noqa: E731
        cases.append(Case(f"video {mutate.__name__}", make, ("predict", "a.avi", *predict)))
    for number, (name, make, word) in enumerate(_odd_places()):
        args = tuple(word if part == "{}" else part for part in readers[number % 2])
        cases.append(Case(name, make, args))
    options = ("--config", "{tiny}", "--data.root", "data", "--trainer.max_epochs", "1")
    for name in ("png claims a huge size", "nothing", "png of fewer rows", "text"):
        for beside, what in ((True, "image"), (False, "mask")):
            content = odd_images()[name][1]
            cases.append(
                Case(
                    f"fit on an {what}: {name}",
                    _in_data_folder(content, ".png", material.phantoms, beside),
                    ("fit", *options),
                )
            )
    return cases


# ------------------------------------------------------------------------------------------- checkpoints and exports

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(
        [
            *(
                "",
                "../../x",
                "/etc/passwd",
                "~",
                "os.system",
                "builtins.exec",
                "torch.nn.Linear",
                "a.b.c",
                "{",
                "\0",
                "null",
            ),
            *(10**18, -(10**18), 1e308, -0.0, 2**63, [], {}, [[]], {"class_path": "os.system"}, {"class_path": None}),
            *(
                {"class_path": "subprocess.run", "init_args": {"args": ["touch", "RAN"]}},
                [None],
                "x" * 10_000,
                "\ud800",
            ),
        ]
    ),
)


def keys_of(config: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every value in nested mappings and lists, branches among them."""
    found = [prefix] if prefix else []
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        found += keys_of(value, (*prefix, key))
    return found


def with_value(config: Any, path: Sequence[Any], value: Any) -> Any:
    """A copy with another value at a path; ``...`` leaves it out."""
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return config


class Lure:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


def _repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """A checkpoint's archive with its parts changed; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            if (content := change(item.filename, old.read(item))) is not None:
                new.writestr(item.filename, content)


def _saved(content: Any) -> Make:
    return lambda folder: torch.save(content, folder / "a.ckpt")


def _checkpoint_cases(material: Material) -> Iterator[tuple[str, Make]]:
    whole = material.checkpoint.read_bytes()
    content = torch.load(material.checkpoint, map_location="cpu", weights_only=True)
    rng = random.Random(4)
    config = content["bustseg"]["config"]
    paths = keys_of(config)
    values = drawn(odd_values, 24)
    for number, value in enumerate(values):
        path = (
            paths[rng.randrange(len(paths))] if number % 3 else rng.choice([path for path in paths if len(path) == 2])
        )
        name = f"stored {'.'.join(map(str, path))} is {str(value)[:20]!r} {number}"
        yield name, _saved({**content, "bustseg": {**content["bustseg"], "config": with_value(config, path, value)}})
    for key in ("bustseg", "state_dict", "epoch", "callbacks", "pytorch-lightning_version"):
        for value in (5, None):
            yield f"{key} is {value}", _saved({**content, key: value})
    state = content["state_dict"]
    first = next(iter(state))
    yield "no weights", _saved({**content, "state_dict": {}})
    yield "weights of other shape", _saved({**content, "state_dict": {**state, first: torch.zeros(3, 3)}})
    yield "weights that are no tensors", _saved({**content, "state_dict": dict.fromkeys(state, "x")})
    nans = {
        name: torch.full_like(value, float("nan")) if value.is_floating_point() else value
        for name, value in state.items()
    }
    yield "weights that are no numbers", _saved({**content, "state_dict": nans})
    yield "a weight of a trillion", _saved({**content, "state_dict": {**state, first: torch.zeros(1).expand(10**12)}})
    yield "an unknown weight", _saved({**content, "state_dict": {**state, "x" * 5000: torch.zeros(1)}})
    yield "a lure inside", _saved({**content, "hyper_parameters": Lure()})
    yield "a lure alone", _saved(Lure())
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    yield "nested deeply", _saved({**content, "bustseg": {**content["bustseg"], "config": deep}})
    shared: Any = ["x"] * 9
    for _ in range(12):
        shared = [shared] * 9
    yield "billion laughs", _saved({**content, "bustseg": {**content["bustseg"], "config": {"model": shared}}})
    for number, mutate in enumerate((truncated, flipped, spliced)):
        yield f"checkpoint {mutate.__name__}", _write("a.ckpt", mutate(whole, random.Random(number)))
    pickles = {"pickle of noise": random.Random(5).randbytes(3000), "no pickle": None, "pickle that ends": b"\x80\x02."}
    for name, data in pickles.items():
        change = lambda part, old, data=data: data if part.endswith("data.pkl") else old  # noqa: E731
        yield name, lambda folder, change=change: _repacked(material.checkpoint, folder / "a.ckpt", change)


def _export(material: Material, change: Callable[[Path, dict[str, Any]], Any]) -> Make:
    """A copy of the exported folder; ``change`` may touch files and returns what ``bustseg.json`` is to hold."""

    def make(folder: Path) -> None:
        shutil.copytree(material.exported, folder / "model")
        file = folder / "model" / "bustseg.json"
        new = change(folder / "model", json.loads(file.read_text()))
        if isinstance(new, bytes):
            file.write_bytes(new)
        elif new is not None:
            file.write_text(json.dumps(new))

    return make


def _with_file(folder: Path, metadata: dict[str, Any], content: bytes) -> dict[str, Any]:
    """Put other bytes in the model's place, with the checksum that they have."""
    name = metadata["model"]
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {**metadata, "files": {**metadata["files"], name: entry}}


def _exported_cases(material: Material) -> Iterator[tuple[str, Make]]:
    metadata = json.loads((material.exported / "bustseg.json").read_text())
    paths = [path for path in keys_of(metadata) if path[0] not in ("versions", "checks")]
    rng = random.Random(6)
    for number, value in enumerate(drawn(odd_values, 16)):
        path = paths[rng.randrange(len(paths))]
        name = f"exported {'.'.join(map(str, path))} is {str(value)[:20]!r} {number}"
        yield name, _export(material, lambda folder, old, path=path, value=value: with_value(old, path, value))
    for key in ("files", "model", "input", "threshold", "format"):
        yield f"exported without {key}", _export(material, lambda folder, old, key=key: with_value(old, [key], ...))
    for name in ("../../model.onnx", "/etc/passwd", "", ".", "a/../model.onnx", "model.onnx\0"):
        yield f"exported model {name!r}", _export(material, lambda folder, old, name=name: {**old, "model": name})
    yield "exported without checksums", _export(material, lambda folder, old: {**old, "files": {}})
    yield (
        "exported with other bytes",
        _export(material, lambda folder, old: (folder / old["model"]).write_bytes(b"x") and None),
    )
    model = (material.exported / metadata["model"]).read_bytes()
    for number, mutate in enumerate((truncated, flipped, wrong_header)):
        content = mutate(model, random.Random(number))
        yield (
            f"exported network {mutate.__name__}, with its checksum",
            _export(material, lambda folder, old, content=content: _with_file(folder, old, content)),
        )
    yield (
        "exported network of noise",
        _export(material, lambda folder, old: _with_file(folder, old, random.Random(8).randbytes(4000))),
    )
    for name, text in {
        "empty": b"",
        "list": b"[]",
        "nested": b"[" * 50_000,
        "no text": b"\xff\xfe{",
        "nan": b"NaN",
    }.items():
        yield f"exported metadata: {name}", _export(material, lambda folder, old, text=text: text)


def models(material: Material) -> list[Case]:
    """About eighty checkpoints and exported folders."""
    image = str(sorted((material.phantoms / "malignant").glob("*).png"))[0])
    predict = ("predict", image, "--out", "out", "--model")
    verbs = (
        (*predict, "a.ckpt"),
        ("test", "--ckpt_path", "a.ckpt", "--trainer.accelerator", "cpu"),
        ("explain", image, "--out", "out", "--model", "a.ckpt"),
        ("fit", "--ckpt_path", "a.ckpt", "--trainer.max_epochs", "1"),
        ("export", "a.ckpt", "--format", "onnx", "--out", "out"),
        ("ensemble", "a.ckpt", str(material.checkpoint), "--out", "out.ckpt"),
    )
    cases = [Case(name, make, verbs[n % len(verbs)]) for n, (name, make) in enumerate(_checkpoint_cases(material))]
    return [*cases, *(Case(name, make, (*predict, "model")) for name, make in _exported_cases(material))]


# ---------------------------------------------------------------------------------------------------- configurations

TEXTS = {
    "aliases": "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
    "merges": "\n".join(
        ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))]
    ),
    "itself": "data: &a [*a]",
    "nested": "data: " + "[" * 5000 + "]" * 5000,
    "nested and open": "{a: " * 5000,
    "many values": "data: [" + "x," * 100_000 + "]",
    "objects": "!!python/object/apply:os.system ['touch RAN']",
    "a new object": "data: !!python/object/new:os.system ['touch RAN']",
    "tabs": "data:\n\t- 1",
    "two documents": "data: {}\n---\nmodel: {}\n",
    "a key twice": "data: {image_size: 32}\ndata: {image_size: 64}\n",
    "an unhashable key": "? [a]\n: b",
    "a list": "- 1\n- 2\n",
    "a number": "5",
    "a date that is none": "a: 2021-99-99",
    "a number without end": "seed_everything: 1" + "0" * 9000,
    "sixties": "seed_everything: 1:59:59:59:59:59:59",
    "unknown key": "data: {imagesize: 32}",
    "an included file": "data: {root: !include /etc/passwd}",
    "a variable": "data: {root: '${oc.env:HOME}'}",
}

CLASSES = (
    *(
        "os.getcwd",
        "builtins.print",
        "torch.nn.Module",
        "torch.nn.Linear",
        "bustseg.models",
        "bustseg.models.",
        ".",
        "",
    ),
    *(
        "bustseg.models.Nope",
        "nope.Nope",
        "FusionUNet.x",
        "torch.nn.Conv2d",
        "bustseg.data.datamodule.UltrasoundDataModule",
    ),
)


def configs(material: Material) -> list[Case]:
    """About seventy configs and sweeps."""
    cases = []
    end = ("--data.root", str(material.phantoms), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    verbs: tuple[tuple[str, ...], ...] = (
        ("fit", "--config", "a.yaml", *end),
        ("summary", "--config", "a.yaml"),
        ("cv", "--config", "a.yaml", "--folds", "2", *end),
        ("sweep", "--config", "a.yaml"),
        ("reproduce", "--table", "a.yaml", *end),
    )
    for number, (name, text) in enumerate(TEXTS.items()):
        cases.append(Case(f"config: {name}", _write("a.yaml", text.encode()), verbs[number % len(verbs)]))
    for name, content in {
        "bytes": bytes(range(256)),
        "utf-16": "data: {}".encode("utf-16"),
        "zeros": bytes(1000),
    }.items():
        cases.append(Case(f"config of {name}", _write("a.yaml", content), verbs[0]))
    config = {key: value for key, value in material.config.items() if key in ("model", "data", "trainer", "tracking")}
    for name in CLASSES:
        with_class = with_value(config, ["model", "network"], {"class_path": name})
        make = _write("a.yaml", yaml.safe_dump(with_class).encode())
        cases.append(Case(f"config: network {name!r}", make, verbs[len(cases) % 3]))
    rng = random.Random(7)
    paths = [path for path in keys_of(config) if path[-1] not in ("max_epochs", "root", "devices", "num_nodes")]
    for number, value in enumerate(drawn(odd_values, 20)):
        path = paths[rng.randrange(len(paths))]
        text = yaml.safe_dump(with_value(config, path, value))
        name = f"config: {'.'.join(map(str, path))} is {str(value)[:20]!r} {number}"
        cases.append(Case(name, _write("a.yaml", text.encode(errors="surrogatepass")), verbs[number % 2]))
    sweep = {
        "config": "fit.yaml",
        "space": {"model.optimizer.init_args.lr": [1e-3]},
        "sampler": "grid",
        "objective": "val/dice_lesion",
        "direction": "maximize",
    }
    paths = keys_of(sweep)
    for number, value in enumerate(drawn(odd_values, 16)):
        path = paths[number % len(paths)]
        text = yaml.safe_dump(with_value(sweep, path, value)).encode(errors="surrogatepass")

        def make(folder: Path, text: bytes = text) -> None:
            _written(folder / "a.yaml", text)
            (folder / "fit.yaml").write_text(yaml.safe_dump(config))

        name = f"sweep: {'.'.join(map(str, path))} is {str(value)[:20]!r} {number}"
        cases.append(Case(name, make, ("sweep", "--config", "a.yaml", *end)))
    return cases


# ------------------------------------------------------------------------------------------------------------- tables


def _cells(text: str, number: int, value: str, rng: random.Random) -> str:
    """The table with another value in some cell of one of its columns."""
    lines = [line.split(",") for line in text.splitlines()]
    column = number % len(lines[0])
    lines[rng.randrange(1, len(lines))][column] = value
    return "\n".join(",".join(line) for line in lines) + "\n"


ODD_CELLS = (
    "nan",
    "inf",
    "-1",
    "1e400",
    "x",
    "",
    "=1+1",
    "\0",
    '"',
    "../../etc/passwd",
    "9" * 400,
    "\x1b[31m",
    "\u202e",
)


def odd_tables(text: str) -> Iterator[tuple[str, bytes]]:
    """A table, damaged in the ways in which tables are."""
    head, *rows = text.splitlines()
    yield "latin-1", (text + rows[0].replace("1", "\xfc", 1) + "\n").encode("latin-1")
    yield "utf-16", text.encode("utf-16")
    yield "zeros", text.encode().replace(b",", b",\0", 3)
    yield "a huge field", f"{head}\n{'x' * 3_000_000}{rows[0]}\n".encode()
    yield "a quote that stays open", f'{head}\n"{rows[0]}\n'.encode()
    yield "columns twice", f"{head},{head}\n{rows[0]},{rows[0]}\n".encode()
    yield "a row twice", (text + rows[0] + "\n").encode()
    yield "rows of other length", f"{head}\n{rows[0]},,,,\n{rows[0].split(',')[0]}\n".encode()
    yield "a header alone", f"{head}\n".encode()
    yield "nothing", b""
    yield "another header", f"a,b\n{rows[0]}\n".encode()
    yield "a million columns", ("x," * 1_000_000 + "\n").encode()
    yield "a workbook", b"PK\x03\x04" + bytes(100)


def tables(material: Material) -> list[Case]:
    """About fifty CSV files: splits, labels, lists, groups and tables of scores."""
    cases = []
    images = [path.stem for path in sorted(material.phantoms.glob("*/*).png"))]
    split = "image,subset\n" + "".join(f"{name},{('train', 'val', 'test')[n % 3]}\n" for n, name in enumerate(images))
    scores = material.table.read_text()
    groups = "image,group\n" + "".join(f"{name},{n // 2}\n" for n, name in enumerate(images))
    labels = "image,label,patient\n" + "".join(f"{n},benign,{n // 2}\n" for n in range(4))
    fit = ("fit", "--config", "{tiny}", "--data.root", str(material.phantoms), "--trainer.max_epochs", "1")
    source = "{class_path: Folders, init_args: {labels: ../a.csv}}"

    def with_folders(content: bytes) -> Make:
        def make(folder: Path) -> None:
            for part in ("images", "masks"):
                (folder / "data" / part).mkdir(parents=True)
                for number in range(4):
                    array = grey() if part == "images" else ((grey() < 100) * 255).astype(np.uint8)
                    Image.fromarray(array).save(folder / "data" / part / f"{number}.png")
            (folder / "a.csv").write_bytes(content)

        return make

    readers: dict[str, tuple[str, Callable[[bytes], Make], tuple[str, ...]]] = {
        "split": (split, lambda content: _write("a.csv", content), (*fit, "--data.split", "a.csv")),
        "scores": (scores, lambda content: _write("a.csv", content), ("compare", "a.csv", str(material.table))),
        "groups": (
            groups,
            lambda content: _write("a.csv", content),
            ("compare", str(material.table), str(material.table.parent), "--groups", "a.csv"),
        ),
        "labels": (labels, with_folders, ("data", "check", "data", "--source", source)),
        "list": (
            groups,
            lambda content: _write("a.csv", content),
            (
                "data",
                "split",
                str(material.phantoms),
                "--scheme",
                "curated",
                "--curated_list",
                "a.csv",
                "--out",
                "s.csv",
            ),
        ),
        "checked split": (
            split,
            lambda content: _write("a.csv", content),
            ("data", "split", str(material.phantoms), "--check", "a.csv"),
        ),
    }
    names = list(readers)
    for number, (kind, _) in enumerate(odd_tables(split)):
        for reader in (names[number % 6], names[(number + 1) % 6], names[(number + 3) % 6]):
            text, make, args = readers[reader]
            content = dict(odd_tables(text))[kind]
            cases.append(Case(f"{reader}: {kind}", make(content), args))
    rng = random.Random(9)
    for number, value in enumerate(ODD_CELLS):
        reader = "scores" if number % 2 else names[number % 6]
        text, make, args = readers[reader]
        with suppress(UnicodeEncodeError):
            content = _cells(text, number, value, rng).encode()
            cases.append(Case(f"{reader}: a cell {value[:12]!r}", make(content), args))
    return cases
