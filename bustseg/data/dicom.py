"""Ultrasound in DICOM files: frames as ``uint8``, the scanned region, the size of a pixel.

Nothing that identifies a patient leaves this module: persons, studies and files appear under a keyed hash
(:func:`pseudonym`), and no message quotes a file's content or its name.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import math
import os
import secrets
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs

from bustseg import bounds
from bustseg.data.files import IMAGE_SUFFIXES
from bustseg.errors import DataError

SUFFIXES = (".dcm", ".dicom")

_TWO_DIMENSIONAL, _TISSUE, _CENTIMETRES = 1, 1, 3  # DICOM PS3.3, C.8.5.5.1
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax, in the file's head
_LEAST_SIDE = 16  # pixels; a smaller region is a colour bar or a ruler
_HEADER = (
    "SOPClassUID",
    "Modality",
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
_ULTRASOUND_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    # multi-frame and single-frame classes with their retired versions, and volumes
    for number in ("3", "3.1", "6", "6.1", "6.2")
)
_SCREENSHOT_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("7", "7.1", "7.2", "7.3", "7.4")
)  # secondary capture, of any modality
_DIRECTORY = "1.2.840.10008.1.3.10"
_ULTRASOUND = ("US", "IVUS")
# fmt: off
_OTHER_MODALITIES = frozenset({
    "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CR", "CT", "CTPROTOCOL", "DMS", "DG", "DOC", "DX", "ECG", "EEG", "EMG",
    "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "KER", "KO", "LEN", "LS", "M3D", "MG", "MR", "NM",
    "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "PA", "PLAN", "POS", "PR", "PT", "PX", "REG",
    "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT",
    "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "TG", "VA", "XA", "XAPROTOCOL", "XC",
})  # PS3.3, C.7.3.1.1.1, except ultrasound and "other"; any other value tells nothing
# fmt: on
_PIXEL_TAGS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")
_COLOUR_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
)
_PALETTE_TAGS = tuple(
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
)


LEAST_WHITE = 2**14
"""A 16-bit image without any level as bright as this (a quarter of white) holds fewer bits than it seems to."""


@dataclass(frozen=True)
class Header:
    """The parts of a DICOM file's header that are used.

    Attributes:
        file: pseudonym of the file (of its SOP instance)
        patient: pseudonym of the patient, or of the study where no patient is named; None without either
        frames: number of images
        shape: (rows, columns) of each
        box: the scanned region as (top, left, height, width), if the file has one
        spacing: size of a pixel in mm as (row, column), if the file has it
        burned_in: whether the file says that its pixels show text that may name the patient; None where it does not say
        declared: whether the file says that it is ultrasound; if not, it says nothing, as some screen captures do
    """

    file: str
    patient: str | None
    frames: int
    shape: tuple[int, int]
    box: tuple[int, int, int, int] | None
    spacing: tuple[float, float] | None
    burned_in: bool | None
    declared: bool = True


class NotUltrasound(DataError):
    """A valid DICOM file of another kind, with nothing to outline.

    Attributes:
        kind: its modality, or DICOMDIR, or the name of its class in the standard; never free text from the file
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"a DICOM file is not an ultrasound image ({kind})")
        self.kind = kind


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the mark in its header unless it has a picture's suffix."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (suffix not in IMAGE_SUFFIXES and has_mark(path))


def has_mark(path: Path) -> bool:
    """Whether a file starts with the DICOM mark, whatever its name; names such as 1.2.840.113619 have no suffix."""
    try:
        if not path.is_file():  # reading a pipe would wait forever
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_deflated(path: Path) -> bool:
    """Whether a DICOM file says that its data set is deflated: a small file could then expand to any size in memory."""
    try:
        with path.open("rb") as file:
            return _DEFLATED in file.read(4096)
    except OSError:
        return False


def check_codestreams(path: Path, frame: int | None = None) -> tuple[int, int]:
    """Refuse compressed frames that are larger than the header says, before a decoder allocates memory for them.

    A JPEG of three megabytes can expand to gigabytes; decoders allocate what its own header claims and compare
    afterwards.

    Args:
        path: the file
        frame: position of the frame to check; all frames when not given

    Returns:
        Rows and columns of each frame, according to the header.

    Raises:
        LimitError: the header itself exceeds the limits, see :mod:`bustseg.bounds`
        DataError: one of the frames is larger than Rows x Columns, or has no readable header
    """
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file"), path.open("rb") as file:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns", "NumberOfFrames"])
        shape, frames = (int(data.Rows), int(data.Columns)), _frames(data)
        bounds.check_pixels("a DICOM file", *shape, frames=frames)
        syntax = data.file_meta.TransferSyntaxUID
        if not syntax.is_encapsulated or str(syntax) == _RLE:  # run-length coding is decoded to the header's size
            return shape
        file.seek(12, os.SEEK_CUR)  # tag, representation and length of the element
        streams = (
            pydicom.encaps.generate_frames(file, number_of_frames=frames)
            if frame is None
            else [pydicom.encaps.get_frame(file, frame, number_of_frames=frames)]
        )
        for stream in streams:
            found = codestream_shape(stream)
            if found is None or found[0] > shape[0] or found[1] > shape[1]:
                raise DataError("a DICOM file cannot be read: a frame is larger than its header says")
        return shape


def codestream_shape(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream claims; None where it has no such header.

    Source: ITU-T T.81, B.2.2 (frame header); T.87, C.2.2; T.800, A.5.1 (SIZ).
    """
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 1024)  # a JP2 file's boxes may come before
    if siz >= 0:
        if len(frame) < siz + 24:
            return None
        right, bottom, left, top = (int.from_bytes(frame[siz + k : siz + k + 4], "big") for k in (8, 12, 16, 20))
        return bottom - top, right - left
    at = 2
    if frame[:2] != b"\xff\xd8":
        return None
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def pseudonym(text: str) -> str:
    """Twelve hex digits that replace an identifier, and cannot be traced back without this user's key.

    The key is ``BUSTSEG_SALT``, or a random one that is created once in the user's configuration folder (readable only
    by the user). The same key gives the same names on several machines.
    """
    key = os.environ.get("BUSTSEG_SALT") or _own_key(Path(platformdirs.user_config_dir("bustseg")) / "dicom_salt")
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()[:12]


@cache
def _own_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # written elsewhere and moved, so that another process never reads a part of it
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
    # its warnings quote values, such as invalid names
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?$")
    warnings.filterwarnings("ignore", module=r"bustseg\.data\.dicom$")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


@contextmanager
def _anonymous_errors(what: str) -> Iterator[None]:
    """Replace the errors of decoders, which quote paths and values, by messages that only name the kind of error."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        hint = ""
        if "decompress" in str(error) or "plugin" in str(error):
            hint = ", or its compression needs a decoder: pip install 'bustseg[dicom]'"
        raise DataError(
            f"{what} cannot be read: it is damaged or not an image ({type(error).__name__}){hint}"
        ) from None


def read_header(path: Path) -> Header:
    """Read the used parts of a file's header without decoding its pixels.

    An optional element that is malformed counts as absent and affects nothing else: a region, the spacing.

    Raises:
        NotUltrasound: a file of another kind
        DataError: not a readable DICOM file; the message does not name it
    """
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file"):
        _check_file(pydicom, path)
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
        declared = _is_declared(pydicom, data)
        shape = (int(data.Rows), int(data.Columns))
        if min(shape) < 1:
            raise DataError("a DICOM file cannot be read: its image has no pixels")
        bounds.check_pixels("a DICOM file", *shape, frames=_frames(data))
        box, spacing = _region(data, shape)
        person = _text(data, "PatientID")
        if not person and (name := _text(data, "PatientName")):
            person = name + _text(data, "PatientBirthDate")
        person = person or _text(data, "StudyInstanceUID")
        return Header(
            file=pseudonym(_text(data, "SOPInstanceUID") or str(path)),
            patient=pseudonym(person) if person else None,
            frames=_frames(data),
            shape=shape,
            box=box,
            spacing=spacing or _pixel_spacing(data),
            burned_in={"YES": True, "NO": False}.get(_text(data, "BurnedInAnnotation").strip().upper()),
            declared=declared,
        )


def _is_declared(pydicom: Any, data: Any) -> bool:
    """Whether a file says that it is ultrasound; False where it does not say.

    Raises:
        NotUltrasound: its class or its modality says that it is something else
    """
    meta = getattr(data, "file_meta", {})
    kind = pydicom.uid.UID((_text(data, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")).strip())
    modality = _text(data, "Modality").strip().upper()
    if kind == _DIRECTORY:
        raise NotUltrasound("DICOMDIR")
    if modality in _OTHER_MODALITIES:
        raise NotUltrasound(modality)
    of_standard = kind.name != kind
    if of_standard and kind not in _ULTRASOUND_CLASSES | _SCREENSHOT_CLASSES:
        raise NotUltrasound(str(kind.name))
    if kind and kind not in _ULTRASOUND_CLASSES and "Rows" not in data:
        raise NotUltrasound("an object without an image")
    return kind in _ULTRASOUND_CLASSES or modality in _ULTRASOUND


def _text(data: Any, keyword: str) -> str:
    """An element as text; empty where it is absent or cannot be read."""
    try:
        return str(data.get(keyword) or "")
    except Exception:  # pydicom converts values on access, and raises many kinds of error
        return ""


def _number(data: Any, keyword: str) -> float | None:
    """The first number of an element; None where it is absent, empty or malformed."""
    try:
        value = data.get(keyword)
        found = float(value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value)
    except Exception:  # as above
        return None
    return found if math.isfinite(found) else None


def _frames(data: Any) -> int:
    """Number of images in a file."""
    return max(int(_number(data, "NumberOfFrames") or 1), 1)


def _pixel_spacing(data: Any) -> tuple[float, float] | None:
    """PixelSpacing as (row, column) in mm; None where it is absent or not valid."""
    try:
        row, column = (float(value) for value in data.get("PixelSpacing"))
    except Exception:  # as above
        return None
    return (row, column) if 0 < row < math.inf and 0 < column < math.inf else None


def _region(data: Any, shape: tuple[int, int]) -> tuple[tuple[int, int, int, int] | None, tuple[float, float] | None]:
    """Box and pixel size (mm) of the largest region that shows tissue, by SequenceOfUltrasoundRegions."""
    try:
        regions = list(data.get("SequenceOfUltrasoundRegions") or ())
    except Exception:  # as above
        return None, None
    boxes = [(box, region) for region in regions if (box := _box(region, shape)) is not None]
    # where no region is marked as tissue, regions of flow count
    tissue = [pair for pair in boxes if _number(pair[1], "RegionDataType") == _TISSUE] or boxes
    if not tissue:
        return None, None
    box, region = max(tissue, key=lambda pair: pair[0][2] * pair[0][3])
    units = [_number(region, f"PhysicalUnits{axis}Direction") for axis in "YX"]
    row, column = (10 * abs(_number(region, f"PhysicalDelta{axis}") or 0) for axis in "YX")
    return box, (row, column) if units == [_CENTIMETRES] * 2 and row > 0 and column > 0 else None


def _box(region: Any, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A two-dimensional region as (top, left, height, width) within the picture; None for other and malformed ones."""
    edges = [_number(region, f"RegionLocation{edge}") for edge in ("MinY0", "MinX0", "MaxY1", "MaxX1")]
    if _number(region, "RegionSpatialFormat") != _TWO_DIMENSIONAL:
        return None
    if None in (*edges, _number(region, "RegionDataType")):
        return None
    first_row, first_column, last_row, last_column = (int(edge or 0) for edge in edges)
    top, left = max(first_row, 0), max(first_column, 0)
    # the last column and row belong to the region
    height, width = min(last_row + 1, shape[0]) - top, min(last_column + 1, shape[1]) - left
    return (top, left, height, width) if min(height, width) >= _LEAST_SIDE else None


def read_frame(path: Path, frame: int = 0) -> np.ndarray:
    """One image of a DICOM file as ``uint8``, (H, W) or for colour (H, W, 3) in RGB, not cropped.

    MONOCHROME1 is inverted, YBR and palette colours become RGB, more than 8 bits are rescaled (by the file's window,
    else by its stored bits). Where the declared colours contradict the compressed stream, the stream counts.

    Raises:
        DataError: a damaged file, no such frame, or a compression whose decoder is missing; the message names no file
    """
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file"):
        deflated = _check_file(pydicom, path)
        height, width = check_codestreams(path, frame)
        with bounds.room_for(height * width):
            return _frame(pydicom, path, frame, deflated)


def _frame(pydicom: Any, path: Path, frame: int, deflated: bool) -> np.ndarray:
    image = pydicom.Dataset()
    tags = [*_PIXEL_TAGS, *_PALETTE_TAGS]
    colours = _colours(pydicom, path)
    kind = colours["photometric_interpretation"]
    try:
        if deflated:  # pydicom would find no pixels in such a file
            raise ValueError
        pixels = pydicom.pixels.pixel_array(path, ds_out=image, specific_tags=tags, index=frame, **colours)
    except ValueError:
        image = pydicom.dcmread(path)
        unreadable = "NumberOfFrames" in image and _number(image, "NumberOfFrames") is None
        if not unreadable and not deflated:
            raise
        if unreadable:
            del image.NumberOfFrames  # pydicom would read it although the number is given, and fail
        pixels = pydicom.pixels.pixel_array(image, index=frame, **colours)
    if kind == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, image)
        return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3:
        bits = int(image.BitsStored)
        return pixels.astype(np.uint8) if bits <= 8 else (pixels >> (bits - 8)).astype(np.uint8)
    grey = _to_eight_bits(pydicom, pixels, image)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _check_file(pydicom: Any, path: Path) -> bool:
    """Refuse anything that is not a file, and a deflated data set that expands to more than any scan has.

    Returns:
        Whether the data set is deflated.

    Raises:
        DataError: it is refused
    """
    bounds.check_regular(path, "a DICOM input")
    if not is_deflated(path):
        return False
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)  # noqa: SLF001 (listed in tests/test_private_parts.py)
        unfold, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := file.read(1 << 16):
            while packed:
                size += len(unfold.decompress(packed, 1 << 24))
                packed = unfold.unconsumed_tail
                if size > bounds.MAX_DEFLATED_BYTES:
                    raise bounds.LimitError(
                        f"a DICOM file expands to more than the {bounds.MAX_DEFLATED_BYTES:,} bytes that are "
                        "read: store it without deflation"
                    )
    return True


def _colours(pydicom: Any, path: Path) -> dict[str, Any]:
    """Options for reading a file's pixels with pydicom, which replace what the file declares."""
    with path.open("rb") as file:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_COLOUR_TAGS))
        syntax = data.file_meta.TransferSyntaxUID
        samples, colour = int(_number(data, "SamplesPerPixel") or 1), _text(data, "PhotometricInterpretation").upper()
        frames = _frames(data)
        if syntax.is_encapsulated:
            components, held = _of_stream(_stream_head(file))
            samples = components or samples
        else:
            held = None
            # half of the colour values are missing, unless the length shows that all are there
            whole = int(data.Rows) * int(data.Columns) * 3 * frames
            if colour == "YBR_FULL_422" and samples == 3 and _pixels_length(file, syntax) >= whole:
                held = "YBR_FULL"
    if samples == 1 and colour not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        colour = "MONOCHROME2"
    elif samples == 3 and held is not None:
        colour = held
    elif samples == 3 and colour not in ("RGB", "YBR_FULL", "YBR_FULL_422"):
        # decoders give RGB for the transforms of JPEG 2000; JPEG without a statement holds luminance and chrominance
        colour = "YBR_FULL" if syntax in (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit) else "RGB"
    return {
        "samples_per_pixel": samples,
        "photometric_interpretation": colour,
        "planar_configuration": int(_number(data, "PlanarConfiguration") or 0),
        "number_of_frames": frames,
    }


def _pixels_length(file: BinaryIO, syntax: Any) -> int:
    """Bytes of the native pixels whose element begins here; 0 where this is unknown."""
    order = "<" if syntax.is_little_endian else ">"
    element = file.read(12)
    if len(element) < 12:
        return 0
    start, kind = (4, "I") if syntax.is_implicit_VR else (8, "I") if element[4:6] in (b"OB", b"OW") else (6, "H")
    return int(struct.unpack_from(order + kind, element, start)[0])


def _stream_head(file: BinaryIO) -> bytes:
    """The beginning of the first compressed frame of the pixels whose element begins here; empty without one."""
    file.seek(12, os.SEEK_CUR)  # tag, representation and length of the element
    for table in (True, False):  # the table of offsets comes first
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"\xfe\xff\x00\xe0":
            return b""
        length = struct.unpack("<I", head[4:])[0]
        if not table:
            return file.read(min(length, 1 << 16))
        file.seek(length, os.SEEK_CUR)
    return b""


def _of_stream(stream: bytes) -> tuple[int | None, str | None]:
    """Number of components of a compressed frame, and the meaning of its three; None for what it does not say."""
    try:
        if stream[:2] == b"\xff\xd8":
            return _of_jpeg(stream)
        if stream[:4] == b"\xff\x4f\xff\x51":
            return _of_jpeg_2000(stream)
    except (IndexError, struct.error):  # truncated: decoding will report it
        pass
    return None, None


def _of_jpeg(stream: bytes) -> tuple[int | None, str | None]:
    """The same of JPEG and JPEG-LS: by Adobe's marker, the components' names, JFIF's marker and halved colours."""
    place, jfif, adobe = 2, False, None
    while stream[place] == 0xFF:
        marker, length = stream[place + 1], struct.unpack_from(">H", stream, place + 2)[0]
        content = stream[place + 4 : place + 2 + length]
        if marker == 0xE0 and content.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and content.startswith(b"Adobe") and len(content) > 11:
            adobe = content[11]
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of the frame
            components = [content[start : start + 3] for start in range(6, 6 + 3 * content[5], 3)]
            if len(components) != 3:
                return len(components), None
            names, factors = bytes(part[0] for part in components), {part[1] for part in components}
            if names.upper() == b"RGB" or adobe == 0:
                return 3, "RGB"
            return 3, "YBR_FULL" if adobe == 1 or jfif or len(factors) > 1 else None
        place += 2 + length
    return None, None


def _of_jpeg_2000(stream: bytes) -> tuple[int | None, str | None]:
    """The same of JPEG 2000: with a transform of components in it, decoding gives RGB whatever the file declares."""
    components, place = struct.unpack_from(">H", stream, 40)[0], 4 + struct.unpack_from(">H", stream, 4)[0]
    while stream[place] == 0xFF and stream[place + 1] not in (0x90, 0xD9):
        if stream[place + 1] == 0x52:  # coding style: progression order, layers (2 bytes), transform
            return components, "RGB" if components == 3 and stream[place + 8] else None
        place += 2 + struct.unpack_from(">H", stream, place + 2)[0]
    return components, None


def _to_eight_bits(pydicom: Any, pixels: np.ndarray, image: Any) -> np.ndarray:
    if pixels.dtype.kind == "f":
        raise DataError("a DICOM file cannot be read: its levels are fractions, and it does not say which is white")
    bits, signed = int(image.BitsStored), bool(image.get("PixelRepresentation", 0))
    if bits <= 8 and not signed:
        return pixels.astype(np.uint8)
    values = pixels.astype(np.float64)
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    high = low + 2.0**bits - 1
    windowed = False
    if _has_window(image):
        with suppress(Exception):
            rescaled = pydicom.pixels.apply_modality_lut(pixels, image)
            values = pydicom.pixels.apply_windowing(rescaled, image).astype(np.float64)
            low, high = _window_range(image, bits, signed)
            windowed = True
    if pixels.dtype == np.uint16 and bits == 16 and not windowed and 0 < (brightest := int(pixels.max())) < LEAST_WHITE:
        raise DataError(
            f"a DICOM file cannot be read: the brightest of its 16-bit levels is {brightest}, as where fewer bits were "
            "stored than it says, and it has no window: give it BitsStored or a window"
        )
    return np.clip(np.rint((values - low) * 255 / (high - low)), 0, 255).astype(np.uint8)


def _has_window(image: Any) -> bool:
    """Whether a file says what is black and what is white; a window or a scale that is malformed says nothing."""
    if "RescaleSlope" in image and not _number(image, "RescaleSlope"):
        return False
    if "RescaleIntercept" in image and _number(image, "RescaleIntercept") is None:
        return False
    return (_number(image, "WindowWidth") or 0) >= 1 and _number(image, "WindowCenter") is not None


def _window_range(image: Any, bits: int, signed: bool) -> tuple[float, float]:
    """Output range of windowing: all values that the stored bits can hold, rescaled."""
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    high = low + 2.0**bits - 1
    slope, intercept = _number(image, "RescaleSlope") or 1, _number(image, "RescaleIntercept") or 0
    return low * slope + intercept, high * slope + intercept


def __getattr__(name: str) -> Any:
    # configurations and checkpoints of earlier versions refer to the source in this module
    if name == "DICOMFolder":
        return importlib.import_module("bustseg.data.sources").DICOMFolder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
