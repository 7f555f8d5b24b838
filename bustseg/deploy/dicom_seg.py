"""Masks as DICOM segmentation objects (SEG) that a PACS or viewer overlays on their source images.

The standard requires a SEG to repeat the patient's and study's data of its source, so this is the only output that
identifies a patient, and it is written only on request.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bustseg import __version__
from bustseg.data.dicom import _anonymous_errors, _number, _pydicom, read_header
from bustseg.errors import DataError, UserError

_PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PLACE = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")


def check() -> None:
    """Raises a UserError where highdicom is not installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UserError("writing DICOM SEG needs highdicom: pip install 'bustseg[dicom]'") from error


def segmentation(source: Path, masks: Sequence[np.ndarray], model: str, settings: str) -> bytes:
    """The DICOM file of a SEG for one ultrasound file.

    For a loop, frames without a lesion are not stored, except the last: readers assume that a source has no frames
    after the last stored one. The same source, masks, model and settings give the same unique identifiers.

    Args:
        source: the DICOM file that the masks belong to
        masks: a mask (H, W) of 0 and 1 of the whole picture for each of its frames
        model: digest of the model
        settings: everything else that the masks depend on

    Raises:
        DataError: the file lacks data that a SEG must repeat; the message quotes nothing from the file
        UserError: highdicom is not installed
    """
    check()
    import highdicom
    from highdicom.seg import SegmentationTypeValues
    from pydicom.uid import UltrasoundImageStorage, generate_uid

    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    pydicom = _pydicom()
    with _anonymous_errors("a DICOM file's segmentation"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings quote values
        data = pydicom.dcmread(source, stop_before_pixels=True)
        _mend(data, read_header(source).spacing)
        kind, loop = data.SOPClassUID, "NumberOfFrames" in data
        if loop:
            # highdicom accepts several frames only if they have positions in space, which frames of a loop do not have
            data.SOPClassUID = UltrasoundImageStorage
            del data.NumberOfFrames

        drawn = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in masks)).hexdigest()

        def uid(what: str) -> str:
            # includes the drawing, since other files may have the same identifier
            return generate_uid(entropy_srcs=[str(data.SOPInstanceUID), drawn, model, settings, what])

        segment = highdicom.seg.Segmentation(
            source_images=[data],
            pixel_array=masks[0].astype(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_lesion(model)],
            series_instance_uid=uid("series"),
            series_number=9000,
            sop_instance_uid=uid("instance"),
            instance_number=1,
            manufacturer="bustseg",
            manufacturer_model_name="bustseg",
            software_versions=__version__,
            device_serial_number=model[:12],
            content_label="LESION",
            content_description="Research only, not a medical device",
            series_description="Lesions by bustseg (research only)",
            omit_empty_frames=False,
        )
        if loop:
            _spread(segment, masks, kind)
        buffer = BytesIO()
        segment.save_as(buffer)
        return buffer.getvalue()


def _lesion(model: str) -> Any:
    """The description of the segment and of its algorithm, in the codes of the standard."""
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    return SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="bustseg", family=codes.DCM.ArtificialIntelligence, version=f"{__version__} {model[:12]}"
        ),
        anatomic_regions=[codes.SCT.Breast],
    )


def _mend(data: Any, spacing: tuple[float, float] | None) -> None:
    """Repair a source's header so that a SEG can repeat it: optional elements that are malformed are emptied.

    Args:
        data: the header
        spacing: size of a pixel in mm as (row, column); None when unknown

    Raises:
        DataError: an identifier is missing, without which nothing can refer to the file
    """
    from pydicom.valuerep import DA, TM

    missing = [name for name in _NEEDED if not data.get(name)]
    if missing:
        raise DataError(f"the file lacks {', '.join(missing)}, which a SEG must repeat")
    for name in _PATIENT_AND_STUDY:  # type 2: required, may be empty
        if name not in data:
            setattr(data, name, "")
    for names, check_value in (
        (("PatientBirthDate", "StudyDate"), DA),
        (("StudyTime",), TM),
        (("PatientSex",), {"": 0, "M": 0, "F": 0, "O": 0}.__getitem__),
    ):
        for name in names:
            try:
                check_value(data[name].value or "")
            except (ValueError, KeyError, TypeError):
                data[name].value = ""
    if spacing is not None:
        data.PixelSpacing = list(spacing)
        # readers expect a thickness wherever there is a pixel size; a picture has none, so the pixel's side is used
        thickness = _number(data, "SliceThickness")
        data.SliceThickness = thickness if thickness and thickness > 0 else min(spacing)
    else:
        data.pop("PixelSpacing", None)
    # an incomplete position in the patient is dropped
    if spacing is None or not all(data.get(name) for name in _PLACE):
        for name in _PLACE:
            data.pop(name, None)


def _spread(segment: Any, masks: Sequence[np.ndarray], kind: str) -> None:
    """Extend a SEG of the first frame to a SEG of a loop, with a frame for each frame that has a lesion.

    Each refers to its frame of the source, and frames are ordered by their position in time (PS3.3, C.7.6.16.2.2.1 and
    C.7.6.17): ultrasound loops have no position in space that could order them.
    """
    from pydicom.pixels import pack_bits

    stored = [index for index, mask in enumerate(masks) if mask.any() or index == len(masks) - 1]
    first = segment.PerFrameFunctionalGroupsSequence[0]
    groups = []
    for position, index in enumerate(stored, 1):
        group = copy.deepcopy(first)
        content = group.FrameContentSequence[0]
        content.DimensionIndexValues = [1, position]
        content.TemporalPositionIndex = index + 1
        group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = index + 1
        groups.append(group)
    segment.PerFrameFunctionalGroupsSequence = groups
    time = copy.deepcopy(segment.DimensionIndexSequence[0])
    time.DimensionIndexPointer, time.FunctionalGroupPointer = 0x00209128, 0x00209111
    time.DimensionDescriptionLabel = "Temporal Position Index"
    segment.DimensionIndexSequence = [segment.DimensionIndexSequence[0], time]
    segment.NumberOfFrames = len(stored)
    for element in segment.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = kind
    # the bits of all frames follow each other without a gap
    segment.PixelData = pack_bits(np.stack([masks[index] for index in stored]).astype(np.uint8).ravel(), pad=True)
