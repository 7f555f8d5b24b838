"""DICOM ultrasound files as a scanner writes them: a banner with the patient's name above the scanned region."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

NAME, ID, BIRTH = "Zywicka^Janetta", "PID4711X", "19610203"
SECRETS = ("Zywicka", "Janetta", ID, BIRTH)
BANNER = 20  # rows above the region
LEFT = 12  # columns beside it


def region(shape: tuple[int, int], spacing_cm: tuple[float, float] = (0.008, 0.01), **changes: object) -> Dataset:
    """Region of ``shape`` (H, W) below the banner; ``spacing_cm`` as (row, column)."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = LEFT, BANNER
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = LEFT + shape[1] - 1, BANNER + shape[0] - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaY, item.PhysicalDeltaX = spacing_cm
    for name, value in changes.items():
        setattr(item, name, value)
    return item


def screen(image: np.ndarray) -> np.ndarray:
    """The scanner's screen around an image (H, W): the name in white letters, black margins."""
    picture = np.zeros((image.shape[0] + BANNER + 4, image.shape[1] + LEFT + 8), np.uint8)
    cv2.putText(picture, "DOE", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)
    picture[BANNER : BANNER + image.shape[0], LEFT : LEFT + image.shape[1]] = image
    return picture


def dataset(
    pixels: np.ndarray, photometric: str = "MONOCHROME2", regions: list[Dataset] | None = None, frames: int = 1
) -> Dataset:
    """Uncompressed file of ``pixels`` (H, W), (H, W, 3), or with ``frames`` first."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality = "US"
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, ID, BIRTH
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    data.PhotometricInterpretation = photometric
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    if regions:
        data.SequenceOfUltrasoundRegions = Sequence(regions)
    return data


def write(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def as_jpeg(data: Dataset, pixels: np.ndarray) -> Dataset:
    """The same file with JPEG baseline pixels, by an encoder of its own."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    if pixels.ndim == 3:
        data.PhotometricInterpretation = "YBR_FULL_422"
    return data
