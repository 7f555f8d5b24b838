"""DICOM SEG as other readers see them: the masks that were given, of every kind of source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from bustseg.deploy import dicom_seg
from bustseg.errors import DataError
from tests.data import dicoms

highdicom = pytest.importorskip("highdicom")

SHAPE = (63, 81)  # of no whole bytes
PLACE = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


def source(frames: int, path: Path, **attributes: Any) -> pydicom.Dataset:
    picture = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    data = dicoms.dataset(np.stack([picture] * frames) if frames > 1 else picture, frames=frames)
    for name, value in attributes.items():
        setattr(data, name, value)
    dicoms.write(data, path)
    return data


def drawn(frames: int, empty: tuple[int, ...] = ()) -> list[np.ndarray]:
    """A mask for each frame, none like another; those of ``empty`` without a lesion."""
    masks = [(np.random.default_rng(frame).random(SHAPE) < 0.3).astype(np.uint8) for frame in range(frames)]
    return [mask * (frame not in empty) for frame, mask in enumerate(masks)]


def read_back(path: Path, data: pydicom.Dataset, frames: int) -> tuple[Any, np.ndarray]:
    seg = highdicom.seg.segread(path)
    if "NumberOfFrames" in data:
        return seg, seg.get_pixels_by_source_frame(data.SOPInstanceUID, list(range(1, frames + 1)))[..., 0]
    return seg, seg.get_pixels_by_source_instance([data.SOPInstanceUID])[..., 0]


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({}, None),
        ({"PixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"PixelSpacing": [0.1, 0.2], "SliceThickness": 3}, (0.1, 0.2)),
        ({"PixelSpacing": [0.1, 0.2], "SliceThickness": None}, (0.1, 0.2)),
        ({"PixelSpacing": [1 / 3, 1 / 7]}, (1 / 3, 1 / 7)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": [0.1]}, None),
        ({"SliceThickness": 3}, None),
        ({"SequenceOfUltrasoundRegions": [dicoms.region((40, 60))]}, (0.08, 0.1)),
        ({"FrameOfReferenceUID": generate_uid()}, None),
        ({"FrameOfReferenceUID": generate_uid(), **PLACE}, None),
        ({"FrameOfReferenceUID": generate_uid(), **PLACE, "PixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"FrameOfReferenceUID": generate_uid(), "ImagePositionPatient": [0, 0, 0], "PixelSpacing": [1, 1]}, (1, 1)),
        ({"StudyDate": "19", "StudyTime": "noon", "PatientSex": "female"}, None),
        ({"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"}, None),
    ],
)
def test_a_seg_is_read_back_as_it_was_drawn(
    frames: int, attributes: dict[str, Any], spacing: tuple[float, float] | None, tmp_path: Path
) -> None:
    data, masks = source(frames, tmp_path / "source.dcm", **attributes), drawn(frames, empty=(1,))
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.segmentation(tmp_path / "source.dcm", masks, "a" * 64, "0.5"))
    seg, read = read_back(tmp_path / "seg.dcm", data, frames)
    assert np.array_equal(read, np.stack(masks))
    assert seg.PatientName == data.PatientName
    measures = seg.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    assert (measures is not None) == (spacing is not None)
    if measures is not None:
        assert measures[0].PixelSpacing == pytest.approx(spacing, rel=1e-6)


@pytest.mark.parametrize("empty", [(), (0,), (4,), (0, 1, 2, 3), (0, 1, 2, 3, 4)])
def test_every_frame_of_a_loop_can_be_asked_for(empty: tuple[int, ...], tmp_path: Path) -> None:
    data, masks = source(5, tmp_path / "source.dcm"), drawn(5, empty)
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.segmentation(tmp_path / "source.dcm", masks, "a" * 64, "0.5"))
    seg, read = read_back(tmp_path / "seg.dcm", data, 5)
    assert np.array_equal(read, np.stack(masks))
    assert seg.NumberOfFrames == max(5 - len(empty), 1) + (4 in empty and len(empty) < 5)
    with pytest.raises(ValueError, match="frame number 6"):
        seg.get_pixels_by_source_frame(data.SOPInstanceUID, [6])


def test_a_loop_of_one_frame(tmp_path: Path) -> None:
    data, masks = source(1, tmp_path / "source.dcm", NumberOfFrames=1), drawn(1)
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.segmentation(tmp_path / "source.dcm", masks, "a" * 64, "0.5"))
    assert np.array_equal(read_back(tmp_path / "seg.dcm", data, 1)[1], np.stack(masks))


def test_what_a_seg_cannot_do_without_is_named(tmp_path: Path) -> None:
    data = source(1, tmp_path / "source.dcm")
    del data.SeriesInstanceUID
    dicoms.write(data, tmp_path / "source.dcm")
    with pytest.raises(DataError, match="the file lacks SeriesInstanceUID, which a SEG must repeat"):
        dicom_seg.segmentation(tmp_path / "source.dcm", drawn(1), "a" * 64, "0.5")
