"""A secondary capture: the picture with its outline, for viewers that do not support DICOM SEG."""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from bustseg import __version__
from bustseg.data.dicom import _anonymous_errors, _pydicom
from bustseg.deploy.dicom_seg import _PATIENT_AND_STUDY
from bustseg.disclaimer import WORDS

_STORAGE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage


def secondary_capture(source: Path, picture: np.ndarray, model: str, settings: str, frame: int | None = None) -> bytes:
    """The DICOM file of a picture; it contains the patient's identity, as the standard requires.

    The same source, picture, model and settings give the same unique identifiers.

    Args:
        source: the ultrasound file
        picture: ``uint8`` (H, W, 3) in RGB, with the outline
        model: digest of the model
        settings: everything else that the outline depends on
        frame: frame of the source, from 0, if it has several

    Raises:
        DataError: the file lacks data that must be repeated; the message quotes nothing from the file
    """
    pydicom = _pydicom()
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    with _anonymous_errors("a DICOM file's secondary capture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings quote values
        data = pydicom.dcmread(source, stop_before_pixels=True)

        drawn = hashlib.sha256(picture.tobytes()).hexdigest()

        def uid(what: str) -> str:
            return generate_uid(entropy_srcs=[str(data.SOPInstanceUID), drawn, model, settings, "capture", what])

        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = _STORAGE
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uid("instance")
        if "SpecificCharacterSet" in data:
            made.SpecificCharacterSet = data.SpecificCharacterSet
        for name in _PATIENT_AND_STUDY:
            setattr(made, name, data.get(name, ""))
        made.StudyInstanceUID = data.StudyInstanceUID
        made.SeriesInstanceUID = uid("series")
        made.SeriesNumber, made.InstanceNumber = 9001, 1
        made.Modality, made.ConversionType = "OT", "WSD"
        made.Manufacturer = made.ManufacturerModelName = "bustseg"
        made.SoftwareVersions = f"{__version__} {model[:12]}"
        made.SeriesDescription = "Outlines by bustseg (research only)"
        made.ImageComments = "Research only, not a medical device"
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.PatientOrientation = ""
        # the picture is that of the source, including any burned-in text
        made.BurnedInAnnotation = "NO" if str(data.get("BurnedInAnnotation") or "").strip().upper() == "NO" else "YES"
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID = data.SOPClassUID
        reference.ReferencedSOPInstanceUID = data.SOPInstanceUID
        if frame is not None:
            reference.ReferencedFrameNumber = frame + 1
        made.SourceImageSequence = [reference]
        made.Rows, made.Columns = picture.shape[:2]
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit, made.PixelRepresentation = 7, 0
        content = np.ascontiguousarray(picture).tobytes()
        made.PixelData = content + b"\0" * (len(content) % 2)
        made["PixelData"].VR = "OB"
        buffer = BytesIO()
        pydicom.dcmwrite(buffer, made, enforce_file_format=True)
        return buffer.getvalue()


def with_words(picture: np.ndarray) -> np.ndarray:
    """The picture with a strip below it for the disclaimer; nothing of the picture is covered."""
    scale = max(0.35, picture.shape[1] / 1600)
    strip = np.zeros((round(40 * scale) + 6, picture.shape[1], 3), np.uint8)
    where = (6, strip.shape[0] - 8)
    cv2.putText(strip, WORDS, where, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])
