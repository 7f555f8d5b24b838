"""Image files as ``uint8`` arrays, decoded in the same way everywhere."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from bustseg import bounds
from bustseg.bounds import LimitError
from bustseg.data import dicom
from bustseg.errors import DataError

_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# tags of TIFF 6.0; cameras use the one for orientation too
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 258, 262, 274, 281, 341
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
"""Orientation to counterclockwise quarter turns, and whether the image is mirrored after them."""
_FULL_SCALES = {1.0, *(2.0**bits - 1 for bits in range(8, 33))}
_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
_FORMATS = tuple(name for name in ("PNG", "JPEG", "TIFF", "BMP", "DIB", "WEBP", "GIF", "PPM") if name in Image.OPEN)
"""Formats that are tried, whatever the file's name; for others Pillow would start a program, such as Ghostscript."""

# Pillow warns of images that are refused here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for a damaged file; its TIFF reader assumes that tags exist and have the right type."""


@dataclass(frozen=True)
class Picture:
    """The content of an image file, as stored.

    Attributes:
        pixels: (H, W), or (H, W, 3) in RGB; ``uint8``, ``uint16``, ``int32`` or ``float32``
        alpha: opacity ``uint8`` (H, W), 0 where transparent; None for a file without an alpha channel
        top: level of white if the file states it; None where it follows from the type
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    top: float | None = None

    @property
    def white(self) -> float:
        """Level of white: as stated, else the highest value of 8- or 16-bit integers, and 1 for floats."""
        return self.top or {"u": 2.0 ** (8 * self.pixels.dtype.itemsize) - 1, "i": 255.0}.get(self.pixels.dtype.kind, 1)


def read_picture(path: Path, frame: int = 0) -> Picture:
    """Decode any PNG, JPEG, TIFF or BMP (1, L, LA, P, RGB, RGBA, 16 bits, 32-bit integers or floats).

    Pillow decodes, because OpenCV silently returns a part of a truncated file.

    Args:
        frame: position in a file that holds several images

    Raises:
        LimitError: more pixels than are decoded, see :mod:`bustseg.bounds`
        DataError: the file is missing, truncated or not an image
    """
    with _opened(path) as file:
        if frame:
            file.seek(frame)
        # of this page, since the pages before it may be smaller
        bounds.check_pixels(str(path), file.height, file.width)
        _check_scans(file, path)
        with bounds.room_for(file.height * file.width):
            return _decoded(file, path, frame)


def _decoded(file: Image.Image, path: Path, frame: int) -> Picture:
    deep, top = _is_deep_colour(file), _stated_white(file)
    file.load()
    image = ImageOps.exif_transpose(file)
    alpha = None
    if image.has_transparency_data and not image.mode.startswith("I"):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if deep:
        return Picture(_deep_colour(path, frame, file.getexif().get(_ORIENTATION, 1)), alpha)
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
        picture = Picture(pixels, alpha, top)
        # Pillow inverts images whose white is 0 only if they have 8 bits or fewer
        return replace(picture, pixels=_inverted(picture)) if _tag(file, _PHOTOMETRIC) == [0] else picture
    return Picture(np.asarray(image.convert("RGB" if image.mode in _COLOUR_MODES else "L")), alpha)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, open for as long as it is used.

    Raises:
        LimitError: it has far too many pixels
        DataError: it is missing, not a file, or cannot be read, even if this is noticed only while it is used
    """
    bounds.check_regular(path)
    Image.MAX_IMAGE_PIXELS = bounds.max_pixels()  # Pillow's own guard, which checks before it allocates
    try:
        _check_chunks(path)
        with Image.open(path, formats=_FORMATS) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise LimitError(
            f"{path} has more than {bounds.max_pixels() / 1e6:g} million pixels, which is the limit: make it smaller, "
            f"or allow more with {bounds.MEGAPIXELS}"
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{path} is not a readable image (corrupt or truncated): replace or remove it") from error


def _check_chunks(path: Path) -> None:
    """Refuse a PNG of so many chunks that going through them takes minutes, each time that it is opened.

    Raises:
        LimitError: it has more than :data:`bustseg.bounds.MAX_CHUNKS`
    """
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return
        for _ in range(bounds.MAX_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)  # its content, and a checksum
    raise LimitError(f"{path} has more than {bounds.MAX_CHUNKS:,} PNG chunks, which is the limit: save it again")


def _check_scans(file: Image.Image, path: Path) -> None:
    """Refuse a progressive JPEG with so many passes that decoding takes hours.

    Raises:
        LimitError: it has more than :data:`bustseg.bounds.MAX_SCANS`
    """
    if file.format not in ("JPEG", "MPO") or not (file.info.get("progressive") or file.info.get("progression")):
        return
    # the bytes of the picture data never look like the marker of a pass
    scans = path.read_bytes().count(b"\xff\xda")
    if scans > bounds.MAX_SCANS:
        raise LimitError(f"{path} has {scans} passes, and at most {bounds.MAX_SCANS} are decoded: save it again")


def count_pages(path: Path, animations: bool = False) -> int:
    """Images in a file: pages of a TIFF, else 1.

    Args:
        animations: count the frames of an animated PNG too

    Raises:
        LimitError: more than any scan has
        DataError: the file cannot be read
    """
    if animations and path.suffix.lower() == ".png":
        with _opened(path) as file:
            return int(getattr(file, "n_frames", 1))
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with _opened(path) as file:
        for number in range(1, bounds.MAX_FRAMES + 1):
            try:
                file.seek(number)
            except EOFError:
                return number
        bounds.check_frames(str(path), bounds.MAX_FRAMES + 1)
    return 1


def _tag(file: Image.Image, number: int) -> list[float]:
    """Numbers of a TIFF tag; empty where there is no such tag, or the file is not a TIFF."""
    value = getattr(file, "tag_v2", {}).get(number, ())
    return [float(one) for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Real)]


def _is_deep_colour(file: Image.Image) -> bool:
    """Whether a file has more than 8 bits per colour, of which Pillow would keep the upper 8."""
    if file.mode not in (*_COLOUR_MODES, "LA"):
        return False
    # a tile states how its bytes are packed, such as "RGB;16B"
    packed = any(";16" in str(tile[3]) for tile in getattr(file, "tile", ()))
    return packed or max(_tag(file, _BITS_PER_SAMPLE), default=8) > 8


def _deep_colour(path: Path, frame: int, orientation: int) -> np.ndarray:
    """Colours with all their bits, of a file that Pillow has found complete."""
    done, pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    if not done:
        raise DataError(f"{path} has more than 8 bits per colour in a form that cannot be read: store 8 bits")
    pixels = pages[0]
    if pixels.ndim == 3:  # OpenCV's order is blue, green, red
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., 2::-1]
    quarter_turns, mirrored = _TURNS.get(orientation, (0, False))
    pixels = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def _stated_white(file: Image.Image) -> float | None:
    """White level from a TIFF's tags: its bits, or a maximum of all ones (others describe the image, not the scale)."""
    bits = max(_tag(file, _BITS_PER_SAMPLE), default=0)
    if 8 < bits < 16:
        return 2.0**bits - 1
    maxima = (*_tag(file, _S_MAX_SAMPLE_VALUE), *_tag(file, _MAX_SAMPLE_VALUE))
    return next((value for value in maxima if value in _FULL_SCALES), None)


def _inverted(picture: Picture) -> np.ndarray:
    return (picture.white - picture.pixels).astype(picture.pixels.dtype)


def to_uint8(image: np.ndarray, white: float | None = None) -> np.ndarray:
    """Levels of any number type as ``uint8``, the same for arrays and for files.

    Booleans are black and white, ``uint16`` is scaled by its full range, other integers must fit in 8 bits, and floats
    must lie between 0 and 1.

    Args:
        image: any shape
        white: level that becomes 255; by default that of the type

    Raises:
        DataError: another type, values beyond its range, or 16 bits of which only the lower ones are used, as when 12
            bits were stored in 16 without a statement
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "uif":
        raise DataError(f"an image of type {image.dtype} cannot be used: give uint8, uint16 or floats from 0 to 1")
    low, high = image.min(), image.max()
    if white is not None:
        top, allowed = white, f"its levels must lie between 0 and {white:g}, which the file states as white"
    elif image.dtype.kind == "f":
        top, allowed = 1, "floats must lie between 0 and 1"
    elif image.dtype == np.uint16:
        top, allowed = 65535, ""
    else:
        top, allowed = 255, "integers must lie between 0 and 255 (or be uint16)"
    if not (low >= 0 and high <= top):  # also false for nan
        raise DataError(f"the image's values run from {low} to {high}: {allowed}")
    if top != 65535:
        return np.rint(image * (255 / top)).astype(np.uint8)
    if 0 < high < dicom.LEAST_WHITE:
        bits = max(8, int(high).bit_length())
        raise DataError(
            f"the brightest of the image's 16-bit levels is {high}, as when {bits} bits were stored in 16: "
            f"multiply its levels by {2 ** (16 - bits)}, or store 8 bits"
        )
    return (image >> 8).astype(np.uint8)


def read_native(path: Path, frame: int = 0) -> np.ndarray:
    """An image file as ``uint8``, (H, W) or for colour (H, W, 3) in RGB, whatever its type; see :func:`to_uint8`.

    Transparency is dropped. DICOM files are read by :func:`bustseg.data.dicom.read_frame`, the others by
    :func:`read_picture`.

    Args:
        frame: position in a file that holds several images

    Raises:
        DataError: the file is missing, truncated or not an image, or the meaning of its levels is unclear
    """
    if dicom.is_dicom(path):
        return dicom.read_frame(path, frame)
    picture = read_picture(path, frame)
    try:
        return to_uint8(picture.pixels, picture.top)
    except DataError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def read_grey(path: Path, frame: int = 0) -> np.ndarray:
    """An image file as grey ``uint8`` of shape (H, W); errors as in :func:`read_native`."""
    return to_grey(read_native(path, frame))


def to_grey(image: np.ndarray) -> np.ndarray:
    """``uint8`` (H, W) of an image (H, W) or (H, W, 3) in RGB."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def image_mode(path: Path) -> str | None:
    """Colour mode of an image file as Pillow names it; None for what Pillow does not read."""
    try:
        with _opened(path) as file:
            return file.mode
    except DataError:
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        DataError: the file is missing or not an image
    """
    with _opened(path) as file:
        return file.height, file.width
