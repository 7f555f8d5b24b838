"""Levels of every depth and type: files and arrays read alike, or are refused alike."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from bustseg.data.audit import audit
from bustseg.data.cache import load_cache
from bustseg.data.images import read_grey, read_native
from bustseg.data.mask_files import read_mask
from bustseg.data.sources import Folders
from bustseg.deploy.predictor import as_grey
from bustseg.errors import DataError
from bustseg.framing import Framing
from tests.data import layouts

GREY = np.arange(240, dtype=np.int64).reshape(12, 20)
"""Levels 0 to 239 of 255"""


def save_tiff(path: Path, array: np.ndarray, **tags: float) -> Path:
    """A TIFF with further tags, named by their numbers: ``tag_281=4095``."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[int(name.removeprefix("tag_"))] = value
    Image.fromarray(array).save(path, tiffinfo=directory)
    return path


READ_ALIKE = {
    "uint8": GREY.astype(np.uint8),
    "16 bits, all used": (GREY * 257).astype(np.uint16),
    "16 bits of black": np.zeros((12, 20), np.uint16),
    "int32 of 8 bits": GREY.astype(np.int32),
    "fractions": (GREY / 255).astype(np.float32),
}


@pytest.mark.parametrize("name", READ_ALIKE)
def test_a_file_reads_as_its_array_does(name: str, tmp_path: Path) -> None:
    array = READ_ALIKE[name]
    Image.fromarray(array).save(tmp_path / "image.tif")
    assert np.array_equal(as_grey(array), GREY if array.any() else 0 * GREY)
    assert np.array_equal(read_grey(tmp_path / "image.tif"), as_grey(array))


REFUSED_ALIKE = {
    "12 bits in 16": ((GREY * 16).astype(np.uint16), r"is 3824, as when 12 bits .*: multiply its levels by 16,"),
    "8 bits in 16": (GREY.astype(np.uint16), r"is 239, as when 8 bits .*: multiply its levels by 256,"),
    "14 bits in 16": ((GREY * 64).astype(np.uint16), r"is 15296, as when 14 bits .* by 4,"),
    "int32 of 16 bits": ((GREY * 257).astype(np.int32), "from 0 to 61423: integers must lie between 0 and 255"),
    "below zero": ((GREY - 5).astype(np.int32), "from -5 to 234"),
    "fractions of 255": (GREY.astype(np.float32), r"from 0\.0 to 239\.0: floats must lie between 0 and 1"),
    "not a number": (np.where(GREY == 7, np.nan, GREY / 255).astype(np.float32), "from nan to nan"),
    "infinite": (np.where(GREY == 7, np.inf, GREY / 255).astype(np.float32), r"from 0\.0 to inf"),
}


@pytest.mark.parametrize("name", REFUSED_ALIKE)
def test_levels_that_could_mean_anything_are_refused(name: str, tmp_path: Path) -> None:
    array, message = REFUSED_ALIKE[name]
    Image.fromarray(array).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=message) as of_array:
        as_grey(array)
    with pytest.raises(DataError) as of_file:
        read_grey(tmp_path / "image.tif")
    assert str(of_file.value) == f"{tmp_path / 'image.tif'} cannot be read as an image: {of_array.value}"
    assert "\n" not in str(of_file.value)


def test_a_files_own_word_decides(tmp_path: Path) -> None:
    twelve = (GREY * 4095 // 255).astype(np.uint16)
    for tag in ("tag_281", "tag_341"):  # MaxSampleValue, SMaxSampleValue
        assert np.array_equal(read_grey(save_tiff(tmp_path / "stated.tif", twelve, **{tag: 4095})), GREY)
    fractions = GREY.astype(np.float32)
    assert np.array_equal(read_grey(save_tiff(tmp_path / "stated.tif", fractions, tag_341=255.0)), GREY)
    # the brightest level of this one image is no scale
    with pytest.raises(DataError, match="as when 12 bits"):
        read_grey(save_tiff(tmp_path / "stated.tif", twelve, tag_281=int(twelve.max())))
    with pytest.raises(DataError, match="must lie between 0 and 255, which the file states as white"):
        read_grey(save_tiff(tmp_path / "stated.tif", (300 * GREY).astype(np.int32), tag_341=255))
    # PhotometricInterpretation 0: white is zero
    assert np.array_equal(
        read_grey(save_tiff(tmp_path / "white.tif", (GREY * 257).astype(np.uint16), tag_262=0)), 255 - GREY
    )


def packed_in_twelve_bits(levels: np.ndarray) -> bytes:
    """A little-endian TIFF of one strip whose levels take 12 bits each."""
    bits = "".join(f"{level:012b}" for level in levels.ravel())
    data = bytes(int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8))
    height, width = levels.shape
    entries = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries.append((279, len(data)))
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag > 272 else 3, 1, value) for tag, value in entries)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return header + data + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_twelve_packed_bits_are_scaled_by_twelve(tmp_path: Path) -> None:
    (tmp_path / "packed.tif").write_bytes(packed_in_twelve_bits(GREY * 4095 // 255))
    assert np.array_equal(read_grey(tmp_path / "packed.tif"), GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("alpha", [False, True])
def test_deep_colours_keep_their_bits(suffix: str, alpha: bool, tmp_path: Path) -> None:
    rgb = (np.dstack([GREY, GREY // 2, GREY // 3]) * 257).astype(np.uint16)
    path = str(tmp_path / f"deep.{suffix}")
    opaque = [np.full_like(rgb[..., 0], 65535)] if alpha else []
    cv2.imwrite(path, np.dstack([rgb[..., ::-1], *opaque]))
    assert np.array_equal(read_native(Path(path)), rgb >> 8)
    # 12 bits in 16: read by their upper 8 they would be black without a word
    cv2.imwrite(path, np.dstack([rgb[..., ::-1] >> 4, *opaque]))
    with pytest.raises(DataError, match="as when 12 bits were stored in 16"):
        read_native(Path(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colours_are_turned_as_others_are(orientation: int, tmp_path: Path) -> None:
    rgb = (np.dstack([GREY, GREY // 2, GREY // 3]) * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((rgb >> 8).astype(np.uint8)).save(tmp_path / "shallow.png", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1])
    content = (tmp_path / "deep.png").read_bytes()
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    (tmp_path / "deep.png").write_bytes(content[:33] + chunk + content[33:])
    assert np.array_equal(read_native(tmp_path / "deep.png"), read_native(tmp_path / "shallow.png"))


LESION = np.zeros((12, 20), bool)
LESION[3:8, 4:12] = True


def flat(colour: int) -> Image.Image:
    """One colour everywhere; the lesion is what is not transparent."""
    return Image.fromarray(np.dstack([np.full((12, 20, 3), colour), LESION * 255]).astype(np.uint8))


SOUND_MASKS: dict[str, Callable[[], Image.Image]] = {
    "8 bit": lambda: Image.fromarray((LESION * 255).astype(np.uint8)),
    "1 bit": lambda: Image.fromarray(LESION),
    "16 bit": lambda: Image.fromarray((LESION * 65535).astype(np.uint16)),
    "fractions": lambda: Image.fromarray(LESION.astype(np.float32)),
    "fractions of 255": lambda: Image.fromarray((LESION * 255).astype(np.float32)),
    "int32 of 16 bits": lambda: Image.fromarray((LESION * 65535).astype(np.int32)),
    "red": lambda: Image.fromarray(np.dstack([LESION * 255, LESION * 0, LESION * 0]).astype(np.uint8)),
    "drawn and transparent": lambda: Image.fromarray(np.dstack([LESION * 255] * 4).astype(np.uint8)),
}


@pytest.mark.parametrize("name", SOUND_MASKS)
def test_sound_masks_of_every_type(name: str, tmp_path: Path) -> None:
    SOUND_MASKS[name]().save(tmp_path / "mask.tif")
    mask = read_mask(tmp_path / "mask.tif")
    assert (mask.kind, mask.fault) == ("", "")
    assert np.array_equal(mask.lesion, LESION)
    assert set(np.unique(mask.levels)) == {0, 255}


FAULTY_MASKS = {
    "0/1, 8 bit": (lambda: Image.fromarray(LESION.astype(np.uint8)), "above 1 of 255", 0),
    "0/255, 16 bit": (lambda: Image.fromarray((LESION * 255).astype(np.uint16)), "above 255 of 65535", 0),
    "0/1, 16 bit": (lambda: Image.fromarray((LESION * 1).astype(np.uint16)), "above 1 of 65535", 0),
    "0/1, 32 bit": (lambda: Image.fromarray((LESION * 1).astype(np.int32)), "above 1 of 255", 0),
    "palette of dark colours": (lambda: palette_mask(), "above 60 of 255", 30),  # noqa: PLW0108 (it is defined below)
    "transparency, black": (lambda: flat(0), "drawing only in the transparency", None),
    "transparency, white": (lambda: flat(255), "drawing only in the transparency", None),
}


def palette_mask() -> Image.Image:
    image = Image.fromarray(LESION.astype(np.uint8)).convert("P")
    image.putdata(LESION.ravel().astype(int).tolist())
    image.putpalette([0, 0, 0, 60, 20, 0])
    return image


@pytest.mark.parametrize("name", FAULTY_MASKS)
def test_masks_that_would_read_as_empty_or_full_are_refused(name: str, tmp_path: Path) -> None:
    make, message, lesion_above = FAULTY_MASKS[name]
    root = layouts.folders(tmp_path / "data", n=4)
    for number in range(4):
        image, _ = layouts.picture(number, shape=LESION.shape)
        Image.fromarray(image).save(root / "images" / f"scan {number}.jpg")
        (root / "masks" / f"scan {number}.png").unlink()
        suffix = "tif" if "32 bit" in name else "png"
        make().save(root / "masks" / f"scan {number}.{suffix}")
    with pytest.raises(DataError, match=message) as caught:
        load_cache(Folders().read(root), Framing((32, 32)), tmp_path / "cache")
    assert "and 3 more" in str(caught.value)
    found = audit(Folders(), root)
    kind = "mask drawn in transparency" if "transparency" in name else "mask too dark to count"
    assert [(problem.kind, problem.wrong) for problem in found.problems] == [(kind, True)] * 4
    # what the message advises
    if lesion_above is not None:
        samples = Folders(lesion_above=lesion_above).read(root)
        assert all(np.array_equal(sample.read_mask(LESION.shape), LESION) for sample in samples)
        assert load_cache(samples, Framing(LESION.shape), tmp_path / "cache").masks.sum() == 4 * LESION.sum()


LEFT = LESION.copy()
"""One half of the lesion, the other being in another level or on another page."""
LEFT[:, 8:] = False
RIGHT = LESION & ~LEFT


def two_pictures() -> tuple[Image.Image, Image.Image]:
    first, second = (Image.fromarray((part * 255).astype(np.uint8)) for part in (LEFT, RIGHT))
    return first, second


PARTLY_READ = {
    "TIFF of two pages": (".tif", "mask of several pages", "holds 2 pictures"),
    "animated PNG": (".png", "mask of several pages", "holds 2 pictures"),
    "0/255/65535": (".png", "mask of several levels", "has the levels 255, 65535 beside 0"),
    "0/1/255": (".png", "mask of several levels", "has the levels 1, 255 beside 0"),
    "0/1/1e30": (".tif", "mask of several levels", "of which only those above"),
}


@pytest.mark.parametrize("name", PARTLY_READ)
def test_masks_of_which_a_part_would_be_lost_are_refused(name: str, tmp_path: Path) -> None:
    suffix, kind, words = PARTLY_READ[name]
    path = tmp_path / f"mask{suffix}"
    first, second = two_pictures()
    if "pages" in kind:
        first.save(path, save_all=True, append_images=[second])
    else:
        _, low, high = (float(level) for level in name.split("/"))
        dtype = np.float32 if suffix == ".tif" else np.uint16 if high > 255 else np.uint8
        Image.fromarray((LEFT * low + RIGHT * high).astype(dtype)).save(path)
    mask = read_mask(path)
    assert mask.kind == kind
    assert words in mask.fault
    if "levels" in kind:  # what the message advises
        assert np.array_equal(read_mask(path, lesion_above=0).lesion, LESION)
        assert read_mask(path, lesion_above=0).kind == ""


def test_smoothed_outlines_and_the_noise_of_jpeg_are_no_levels_of_their_own(tmp_path: Path) -> None:
    large = cv2.resize((LESION * 255).astype(np.uint8), (190, 130), interpolation=cv2.INTER_LINEAR)
    for quality in (20, 60, 95):
        Image.fromarray(large).save(tmp_path / f"{quality}.jpg", quality=quality)
        assert read_mask(tmp_path / f"{quality}.jpg").kind == ""
    for size in ((40, 24), (60, 36), (190, 130)):
        small = cv2.resize((LESION * 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
        Image.fromarray(small).save(tmp_path / "smooth.png")
        assert read_mask(tmp_path / "smooth.png").kind == ""


def test_a_mask_of_no_numbers_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.where(LESION, np.nan, 0).astype(np.float32)).save(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="levels that are not numbers"):
        read_mask(tmp_path / "mask.tif")
    with pytest.raises(DataError, match="lesion_above is -1"):
        Folders(lesion_above=-1)


def data_set(
    root: Path, change_mask: Callable[[np.ndarray], np.ndarray], change_image: Callable[[np.ndarray], np.ndarray]
) -> Path:
    for number in range(12):
        image, mask = layouts.picture(number)
        layouts.save(root / "images" / f"{number}.png", change_image(image))
        layouts.save(root / "masks" / f"{number}.png", change_mask(mask))
    return root


def as_it_is(array: np.ndarray) -> np.ndarray:
    return array


UNUSABLE = {
    "empty masks": (np.zeros_like, as_it_is, {"masks without a lesion"}, "12 of 12 masks read as empty"),
    "full masks": (np.ones_like, as_it_is, {"masks without a background"}, "12 of 12 masks cover the whole border"),
    "inverted masks": (np.invert, as_it_is, {"masks without a background"}, "12 of 12 masks cover the whole border"),
    "12 of 16 bits, cut": (
        as_it_is,
        lambda image: (image >> 4).astype(np.uint8),
        {"images nearly black", "nearly black image"},
        "12 of 12 images are nearly black",
    ),
    "beyond white": (
        as_it_is,
        lambda image: 240 + image // 18,
        {"images nearly white", "nearly white image"},
        "12 of 12 images are nearly white",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_data_set_that_nothing_can_be_learnt_from_is_refused(name: str, tmp_path: Path) -> None:
    change_mask, change_image, kinds, message = UNUSABLE[name]
    root = data_set(tmp_path / "data", change_mask, change_image)
    for _ in range(2):  # decoded now, and from the cache
        with pytest.raises(DataError, match=message):
            load_cache(Folders().read(root), Framing((32, 32)), tmp_path / "cache")
    found = audit(Folders(), root)
    assert {problem.kind for problem in found.wrong} == kinds
    assert all("\n" not in problem.message for problem in found.problems)


def test_images_without_a_lesion_may_be_many_where_they_are_called_normal(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", np.zeros_like, as_it_is)
    (root / "labels.csv").write_text("image,label\n" + "".join(f"{number},normal\n" for number in range(12)))
    source = Folders(labels="labels.csv")
    assert not load_cache(source.read(root), Framing((32, 32)), tmp_path / "cache").masks.any()
    assert audit(source, root).wrong == []


def test_a_lesion_class_with_an_empty_mask_stops_a_fit(tmp_path: Path) -> None:
    root = data_set(tmp_path / "data", as_it_is, as_it_is)
    layouts.save(root / "masks" / "3.png", np.zeros(layouts.SHAPE, np.uint8))
    # where nobody knows the class there may be no lesion
    load_cache(Folders().read(root), Framing((32, 32)), tmp_path / "cache")
    (root / "labels.csv").write_text("image,label\n3,benign\n")
    with pytest.raises(DataError, match=r"masks/3\.png is empty but 3 is benign: draw the lesion, correct the class"):
        load_cache(Folders(labels="labels.csv").read(root), Framing((32, 32)), tmp_path / "cache")


def test_lesions_that_vanish_at_the_networks_size_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for number in range(12):
        image, _ = layouts.picture(number)
        mask = np.zeros(layouts.SHAPE, bool)
        mask[20:22, 20 : 22 + 10 * (number % 2)] = True
        layouts.save(root / "images" / f"{number}.png", image)
        layouts.save(root / "masks" / f"{number}.png", mask)
    load_cache(Folders().read(root), Framing(layouts.SHAPE), tmp_path / "cache")
    assert capsys.readouterr().err == ""
    load_cache(Folders().read(root), Framing((24, 32)), tmp_path / "cache")
    load_cache(Folders().read(root), Framing((12, 16)), tmp_path / "cache")
    assert "6 of 12 lesions vanish at 16x12" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"12 of 12 lesions vanish at 8x6: raise data.image_size"):
        load_cache(Folders().read(root), Framing((6, 8)), tmp_path / "cache")
