"""Image files as ``uint8`` arrays, decoded in one way wherever they are read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from bustseg.data import dicom
from bustseg.errors import DataError

_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_native(path: Path, frame: int = 0) -> np.ndarray:
    """Read any PNG, JPEG or TIFF mode (1, L, LA, P, RGB, RGBA, 16 bit) as ``uint8``, (H, W) or for colour (H, W, 3).

    Transparency is dropped and 16 bits are scaled to 8. The decoder is Pillow's, because OpenCV's returns what it has
    of a truncated file without a word. DICOM files are read by :func:`bustseg.data.dicom.read_frame`.

    Args:
        frame: position in a file that holds several images

    Raises:
        DataError: the file is missing, truncated or not an image
    """
    if dicom.is_dicom(path):
        return dicom.read_frame(path, frame)
    try:
        with Image.open(path) as file:
            if frame:
                file.seek(frame)
            file.load()
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                return (np.asarray(image) >> 8).astype(np.uint8)
            return np.asarray(image.convert("RGB" if image.mode in _COLOUR_MODES else "L"))
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{path} is not a readable image (corrupt or truncated): replace or remove it") from error


def read_grey(path: Path, frame: int = 0) -> np.ndarray:
    """The same as grey ``uint8`` of shape (H, W); errors as in :func:`read_native`."""
    return to_grey(read_native(path, frame))


def to_grey(image: np.ndarray) -> np.ndarray:
    """``uint8`` (H, W) of an image (H, W) or (H, W, 3) in RGB."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def image_mode(path: Path) -> str | None:
    """Colour mode of an image file as Pillow names it; None for what Pillow does not read."""
    try:
        with Image.open(path) as file:
            return file.mode
    except _DECODER_ERRORS:
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        DataError: the file is missing or not an image
    """
    try:
        with Image.open(path) as file:
            return file.height, file.width
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{path} is not a readable image (corrupt or truncated): replace or remove it") from error
