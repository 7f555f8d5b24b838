"""Ultrasound in DICOM files: frames as ``uint8``, the scanned region, the size of a pixel.

Nothing that tells who a patient is leaves this file: persons, studies and files appear under a keyed hash
(:func:`pseudonym`), and no message quotes a file's content or its name.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from bustseg.errors import DataError

SUFFIXES = (".dcm", ".dicom")

_TWO_DIMENSIONAL, _TISSUE, _CENTIMETRES = 1, 1, 3  # DICOM PS3.3, C.8.5.5.1
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax, in the file's head
_LEAST_SIDE = 16  # pixels; a smaller region is a colour bar or a ruler
_HEADER = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "StudyInstanceUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BurnedInAnnotation",
    "PixelSpacing",
    "SequenceOfUltrasoundRegions",
)
_PIXEL_TAGS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
_PALETTE_TAGS = tuple(
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
)


@dataclass(frozen=True)
class Header:
    """What is used of a DICOM file beside its pixels.

    Attributes:
        file: pseudonym of the file (of its SOP instance)
        patient: pseudonym of the patient, or of the study where no patient is named; None without either
        frames: number of images
        shape: (rows, columns) of each
        box: the scanned region as (top, left, height, width), where the file names one
        spacing: size of a pixel in mm as (row, column), where the file names it
        burned_in: the file says that its pixels show text that may name the patient; None where it says nothing
    """

    file: str
    patient: str | None
    frames: int
    shape: tuple[int, int]
    box: tuple[int, int, int, int] | None
    spacing: tuple[float, float] | None
    burned_in: bool | None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or without a suffix by the mark in its head."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    # names such as 1.2.840.113619 have no suffix either
    if suffix and not suffix[1:].isdigit():
        return False
    return has_mark(path)


def has_mark(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_deflated(path: Path) -> bool:
    """Whether a DICOM file says that its data set is deflated, which unfolds a small file to any size in memory."""
    try:
        with path.open("rb") as file:
            return _DEFLATED in file.read(4096)
    except OSError:
        return False


def pseudonym(text: str) -> str:
    """Twelve hex digits that stand for an identifier, and cannot be traced back without this user's key.

    The key is ``BUSTSEG_SALT``, or a random one that is made once in the user's configuration folder (readable by the
    user alone). The same key gives the same names on several machines.
    """
    key = os.environ.get("BUSTSEG_SALT") or _own_key(Path(platformdirs.user_config_dir("bustseg")) / "dicom_salt")
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:12]


@cache
def _own_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # whole at once, so that a process that reads it in the same moment gets all of it
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)
    return path.read_text()


@cache
def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DataError("reading DICOM files needs pydicom: pip install 'bustseg[dicom]'") from error
    # its warnings quote values, such as names that break a rule
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?$")
    warnings.filterwarnings("ignore", module=r"bustseg\.data\.dicom$")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


@contextmanager
def _anonymous_errors(what: str) -> Iterator[None]:
    """Errors of the decoders quote paths and values: say only what kind they are."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        hint = ""
        if "decompress" in str(error) or "plugin" in str(error):
            hint = ", or its compression needs a decoder: pip install 'bustseg[dicom]'"
        raise DataError(f"{what} cannot be read: it is damaged or no image ({type(error).__name__}){hint}") from None


def read_header(path: Path) -> Header:
    """Read what is needed of a file without decoding its pixels.

    Raises:
        DataError: no DICOM image; the message does not name the file
    """
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file"):
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
        shape = (int(data.Rows), int(data.Columns))
        box, spacing = _region(data, shape)
        if spacing is None and data.get("PixelSpacing"):
            row, column = (float(value) for value in data.PixelSpacing)
            spacing = (row, column) if row > 0 and column > 0 else None
        person = str(data.get("PatientID") or "")
        if not person and data.get("PatientName"):
            person = f"{data.PatientName}{data.get('PatientBirthDate') or ''}"
        person = person or str(data.get("StudyInstanceUID") or "")
        return Header(
            file=pseudonym(str(data.get("SOPInstanceUID") or path)),
            patient=pseudonym(person) if person else None,
            frames=int(data.get("NumberOfFrames") or 1),
            shape=shape,
            box=box,
            spacing=spacing,
            burned_in={"YES": True, "NO": False}.get(str(data.get("BurnedInAnnotation") or "").strip().upper()),
        )


def _region(data: Any, shape: tuple[int, int]) -> tuple[tuple[int, int, int, int] | None, tuple[float, float] | None]:
    """Box and pixel size (mm) of the largest region that shows tissue, by SequenceOfUltrasoundRegions."""
    best: tuple[tuple[int, int, int, int], Any] | None = None
    for tissue in (True, False):  # a region of flow counts where none is called tissue
        for region in data.get("SequenceOfUltrasoundRegions") or ():
            if int(region.get("RegionSpatialFormat", -1)) != _TWO_DIMENSIONAL:
                continue
            if tissue and int(region.get("RegionDataType", -1)) != _TISSUE:
                continue
            left, top = max(int(region.RegionLocationMinX0), 0), max(int(region.RegionLocationMinY0), 0)
            # the last column and row belong to the region
            right = min(int(region.RegionLocationMaxX1) + 1, shape[1])
            bottom = min(int(region.RegionLocationMaxY1) + 1, shape[0])
            box = (top, left, bottom - top, right - left)
            if min(box[2:]) >= _LEAST_SIDE and (best is None or box[2] * box[3] > best[0][2] * best[0][3]):
                best = (box, region)
        if best is not None:
            break
    if best is None:
        return None, None
    box, region = best
    units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
    spacing = None
    if all(unit is not None and int(unit) == _CENTIMETRES for unit in units):
        row, column = (abs(float(region.get(f"PhysicalDelta{axis}", 0))) * 10 for axis in "YX")
        spacing = (row, column) if row > 0 and column > 0 else None
    return box, spacing


def read_frame(path: Path, frame: int = 0) -> np.ndarray:
    """One image of a DICOM file as ``uint8``, (H, W) or for colour (H, W, 3) in RGB, not cropped.

    MONOCHROME1 is inverted, YBR and palette colours become RGB, more than 8 bits are rescaled (by the file's window,
    else by the bits that are stored).

    Raises:
        DataError: a damaged file, no such frame, or a compression without its decoder; the message names no file
    """
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file"):
        image = pydicom.Dataset()
        tags = [*_PIXEL_TAGS, *_PALETTE_TAGS]
        pixels = pydicom.pixels.pixel_array(path, ds_out=image, specific_tags=tags, index=frame)
        kind = str(image.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, image)
            return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
        if pixels.ndim == 3:
            bits = int(image.BitsStored)
            return pixels.astype(np.uint8) if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)
        grey = _to_eight_bits(pydicom, pixels, image)
        return 255 - grey if kind == "MONOCHROME1" else grey


def _to_eight_bits(pydicom: Any, pixels: np.ndarray, image: Any) -> np.ndarray:
    bits, signed = int(image.BitsStored), bool(image.get("PixelRepresentation", 0))
    if bits <= 8 and not signed:
        return pixels.astype(np.uint8)
    if image.get("WindowWidth") is not None:
        values = pydicom.pixels.apply_modality_lut(pixels, image)
        values = pydicom.pixels.apply_windowing(values, image).astype(np.float64)
        low, high = _window_range(image, bits, signed)
    else:
        values = pixels.astype(np.float64)
        low = -(2.0 ** (bits - 1)) if signed else 0.0
        high = low + 2.0**bits - 1
    return np.clip(np.rint((values - low) * 255 / (high - low)), 0, 255).astype(np.uint8)


def _window_range(image: Any, bits: int, signed: bool) -> tuple[float, float]:
    """Range that windowing spreads its result over: all values that the stored bits can hold, rescaled."""
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    high = low + 2.0**bits - 1
    slope, intercept = float(image.get("RescaleSlope", 1) or 1), float(image.get("RescaleIntercept", 0) or 0)
    return low * slope + intercept, high * slope + intercept


def __getattr__(name: str) -> Any:
    # configurations and checkpoints of earlier versions name the source by this module
    if name == "DICOMFolder":
        return importlib.import_module("bustseg.data.sources").DICOMFolder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
