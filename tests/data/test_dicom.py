"""DICOM files: pixels in every interpretation and compression, regions, spacing, and no word of the patient."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    BasicTextSRStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MediaStorageDirectoryStorage,
    RLELossless,
    SegmentationStorage,
    UltrasoundImageStorage,
)

from bustseg.data import dicom
from bustseg.data.audit import audit
from bustseg.data.dicom import NotUltrasound, is_dicom, pseudonym, read_frame, read_header
from bustseg.data.sources import BUSBRA, Combined, DICOMFolder, Part, read_grey
from bustseg.errors import DataError
from bustseg.runs.checkpoint import build_data
from bustseg.runs.tracker import tracking_uri
from tests.conftest import SHORT_TEST, TINY
from tests.data import dicoms, layouts

SHAPE = (64, 80)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSTSEG_SALT", "of this test")


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return layouts.picture(3, shape=SHAPE)[0]


@pytest.fixture(scope="module")
def colour(grey: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(grey, (0, 0), 3)
    return np.dstack([smooth, smooth // 2, 255 - smooth])


def to_ybr(rgb: np.ndarray) -> np.ndarray:
    """DICOM's YBR_FULL by its formula (PS3.3, C.7.6.3.1.2)."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def test_photometric_interpretations(grey: np.ndarray, colour: np.ndarray, tmp_path: Path) -> None:
    def read(data: pydicom.Dataset) -> np.ndarray:
        return read_frame(dicoms.write(data, tmp_path / "one.dcm"))

    assert np.array_equal(read(dicoms.dataset(grey)), grey)
    assert np.array_equal(read(dicoms.dataset(255 - grey, "MONOCHROME1")), grey)
    assert np.array_equal(read(dicoms.dataset(colour, "RGB")), colour)
    ybr = to_ybr(colour)
    assert np.abs(read(dicoms.dataset(ybr, "YBR_FULL")).astype(int) - colour).max() <= 2
    halved = np.dstack([ybr[:, 0::2, 0], ybr[:, 1::2, 0], ybr[:, 0::2, 1], ybr[:, 0::2, 2]])
    data = dicoms.dataset(ybr, "YBR_FULL_422")
    data.PixelData = halved.tobytes()
    assert np.abs(read(data).astype(int) - colour).mean() < 2

    palette = dicoms.dataset(grey, "PALETTE COLOR")
    table = np.arange(256, dtype=np.uint16) * 257
    for name, values in (("Red", table), ("Green", table[::-1].copy()), ("Blue", table)):
        setattr(palette, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(palette, f"{name}PaletteColorLookupTableData", values.tobytes())
    assert np.array_equal(read(palette), np.dstack([grey, 255 - grey, grey]))


def test_more_than_eight_bits_are_rescaled(tmp_path: Path) -> None:
    def read(data: pydicom.Dataset) -> np.ndarray:
        return read_frame(dicoms.write(data, tmp_path / "one.dcm"))

    ramp = np.linspace(0, 4095, 64 * 80).reshape(SHAPE).astype(np.uint16)
    data = dicoms.dataset(ramp)
    data.BitsStored, data.HighBit = 12, 11
    assert np.abs(read(data).astype(float) - ramp / 4095 * 255).max() <= 0.51
    data.WindowCenter, data.WindowWidth = 1000, 500
    shown = read(data)
    assert shown[ramp < 740].max() == 0
    assert shown[ramp > 1260].min() == 255
    assert np.abs(shown[np.abs(ramp.astype(int) - 1000) < 5].astype(int) - 128).max() < 5
    signed = (ramp.astype(int) - 2048).astype(np.int16)
    data = dicoms.dataset(signed)
    data.BitsStored, data.HighBit = 12, 11
    assert np.abs(read(data).astype(float) - ramp / 4095 * 255).max() <= 0.51


def test_compressed_transfer_syntaxes(grey: np.ndarray, colour: np.ndarray, tmp_path: Path) -> None:
    for syntax in (RLELossless, JPEG2000Lossless):
        for pixels, kind in ((grey, "MONOCHROME2"), (colour, "RGB")):
            data = dicoms.dataset(pixels, kind)
            data.compress(syntax, generate_instance_uid=False)
            assert np.array_equal(read_frame(dicoms.write(data, tmp_path / "one.dcm")), pixels), syntax.name
    for pixels, kind in ((cv2.GaussianBlur(grey, (0, 0), 3), "MONOCHROME2"), (colour, "RGB")):
        data = dicoms.as_jpeg(dicoms.dataset(pixels, kind), pixels)
        read = read_frame(dicoms.write(data, tmp_path / "one.dcm"))
        assert read.shape == pixels.shape
        assert np.abs(read.astype(int) - pixels).mean() < 2


def test_jpeg_ls_and_published_files() -> None:
    def bundled(name: str) -> Path:
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.skip(f"this pydicom comes without {name}")
        return Path(path)

    # the same image in two compressions
    lossless, plain = bundled("MR_small_jpeg_ls_lossless.dcm"), bundled("MR_small_RLE.dcm")
    assert np.array_equal(read_frame(lossless), read_frame(plain))
    assert read_frame(lossless).dtype == np.uint8
    video = bundled("examples_ybr_color.dcm")  # an echocardiogram of 30 frames
    header = read_header(video)
    assert header.frames == 30
    first, last = read_frame(video, 0), read_frame(video, 29)
    assert first.shape == (*header.shape, 3)
    assert not np.array_equal(first, last)
    with pytest.raises(DataError):
        read_frame(video, 30)


def test_region_and_spacing(grey: np.ndarray, tmp_path: Path) -> None:
    flow = dicoms.region((64, 80), RegionDataType=2)
    small = dicoms.region((20, 20))
    ruler = dicoms.region((3, 80))
    tissue = dicoms.region(SHAPE, spacing_cm=(-0.008, 0.01))  # deltas may point upwards
    curve = dicoms.region((64, 80), RegionSpatialFormat=3)
    data = dicoms.dataset(dicoms.screen(grey), regions=[flow, small, ruler, tissue, curve])
    data.PixelSpacing = [9, 9]
    header = read_header(dicoms.write(data, tmp_path / "one.dcm"))
    assert header.box == (dicoms.BANNER, dicoms.LEFT, *SHAPE)
    assert header.spacing == pytest.approx((0.08, 0.1))

    def of(**changes: object) -> dicom.Header:
        data.SequenceOfUltrasoundRegions = [dicoms.region(SHAPE, **changes)]
        return read_header(dicoms.write(data, tmp_path / "one.dcm"))

    assert of(PhysicalUnitsXDirection=4, PhysicalUnitsYDirection=4).spacing == (9, 9), "seconds are no centimetres"
    assert of(RegionLocationMaxX1=5000).box == (dicoms.BANNER, dicoms.LEFT, SHAPE[0], SHAPE[1] + 8), "clamped"
    del data.SequenceOfUltrasoundRegions
    assert read_header(dicoms.write(data, tmp_path / "one.dcm")).box is None


def test_what_is_dicom(grey: np.ndarray, tmp_path: Path) -> None:
    path = dicoms.write(dicoms.dataset(grey), tmp_path / "1.2.840.7")
    assert is_dicom(path)
    assert np.array_equal(read_grey(path), grey)
    layouts.save(tmp_path / "picture.png", grey)
    (tmp_path / "README").write_text("no image " * 50)
    assert not is_dicom(tmp_path / "picture.png")
    assert not is_dicom(tmp_path / "README")


def test_decoding_knows_no_source_and_the_sources_former_name_still_works() -> None:
    program = "import sys, bustseg.data.dicom, bustseg.data.images; print('bustseg.data.sources' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"
    data = {"source": {"class_path": "bustseg.data.dicom.DICOMFolder", "init_args": {"label": "benign"}}}
    assert isinstance(build_data(data).source, DICOMFolder)


def test_pseudonyms_need_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = pseudonym(dicoms.ID)
    assert first == pseudonym(dicoms.ID)
    monkeypatch.setenv("BUSTSEG_SALT", "another")
    assert pseudonym(dicoms.ID) != first
    monkeypatch.delenv("BUSTSEG_SALT")
    monkeypatch.setattr("platformdirs.user_config_dir", lambda name: str(tmp_path / name))
    own = pseudonym(dicoms.ID)
    assert own not in (first, "")
    key = tmp_path / "bustseg" / "dicom_salt"
    assert key.stat().st_mode & 0o777 == 0o600
    dicom._own_key.cache_clear()  # as in another process
    assert pseudonym(dicoms.ID) == own


def study(root: Path, patients: int = 8) -> Path:
    """Files whose names, folders and headers name patients: two single frames and a short loop of each."""
    for patient in range(patients):
        label = ("benign", "malignant")[patient % 2]
        folder = root / label / f"Zywicka_Janetta_{patient}"
        for view in range(2):
            image, mask = layouts.picture(100 * patient + view, shape=SHAPE)
            data = dicoms.dataset(dicoms.screen(image), regions=[dicoms.region(SHAPE)])
            data.PatientID = f"{dicoms.ID}-{patient}"
            dicoms.write(data, folder / f"{dicoms.ID}_{view}.dcm")
            # one mask on the whole screen, the other on the region
            drawn = np.where(mask, 255, 0).astype(np.uint8)
            whole = np.zeros(dicoms.screen(image).shape, np.uint8)
            whole[dicoms.BANNER : dicoms.BANNER + SHAPE[0], dicoms.LEFT : dicoms.LEFT + SHAPE[1]] = drawn
            layouts.save(folder / f"{dicoms.ID}_{view}_mask.png", drawn if view else whole)
        loop = [layouts.picture(100 * patient + 50 + frame, shape=SHAPE) for frame in range(3)]
        data = dicoms.dataset(np.stack([dicoms.screen(image) for image, _ in loop]), frames=3)
        data.SequenceOfUltrasoundRegions = [dicoms.region(SHAPE)]
        data.PatientID = f"{dicoms.ID}-{patient}"
        dicoms.write(data, folder / f"{dicoms.ID}_loop.dcm")
        layouts.save(folder / f"{dicoms.ID}_loop_frame1_mask.png", np.where(loop[1][1], 255, 0).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("dicom") / "study")


def test_a_folder_of_files(patients: Path) -> None:
    samples = DICOMFolder().read(patients)
    assert len(samples) == 24
    assert sum(sample.label == "malignant" for sample in samples) == 12
    assert len({sample.id for sample in samples}) == 24
    groups = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    assert [len(own) for own in groups.values()] == [3] * 8
    expected = {}
    for seed in (100 * patient + view for patient in range(8) for view in (0, 1, 51)):
        image, mask = layouts.picture(seed, shape=SHAPE)
        expected[image.tobytes()] = mask
    for sample in samples:
        image = sample.read_image()
        assert image.shape == SHAPE, "the banner is cut away"
        assert np.array_equal(sample.read_mask(image.shape), expected.pop(image.tobytes()))
    assert expected == {}
    assert sum("frame 1" in sample.id for sample in samples) == 8


def test_the_audit_gives_areas_in_mm2(patients: Path) -> None:
    found = audit(DICOMFolder(), patients)
    assert found.wrong == []
    by_id = {sample.id: sample for sample in found.samples}
    for record in found.records:
        pixels = by_id[record.image].read_mask().sum()
        assert record.lesion_mm2 == pytest.approx(pixels * 0.08 * 0.1, abs=0.01)
        assert record.path == record.image


def test_what_does_not_fit_is_told_without_names(patients: Path, tmp_path: Path, grey: np.ndarray) -> None:
    root = tmp_path / "study"
    study(root, 1)
    folder = root / "benign" / "Zywicka_Janetta_0"
    (folder / f"{dicoms.ID}_0_mask.png").unlink()
    layouts.save(folder / f"{dicoms.ID}_1_mask.png", np.zeros((9, 9), np.uint8))
    (folder / f"{dicoms.ID}_cut.dcm").write_bytes((folder / f"{dicoms.ID}_0.dcm").read_bytes()[:300])
    (folder / f"{dicoms.ID}_copy.dcm").write_bytes((folder / f"{dicoms.ID}_1.dcm").read_bytes())
    burned = dicoms.dataset(dicoms.screen(grey))
    burned.BurnedInAnnotation = "YES"
    dicoms.write(burned, folder / f"{dicoms.ID}_burned.dcm")
    found = audit(DICOMFolder(), root)
    assert sorted((problem.kind, problem.wrong) for problem in found.problems) == [
        ("image without mask", True),
        ("left out: burned-in text", False),
        ("left out: same file again", False),
        ("mask of another size", True),
        ("unreadable image", True),
    ]
    text = str(found.to_json())
    assert not [secret for secret in dicoms.SECRETS if secret in text]
    with pytest.raises(DataError) as caught:
        DICOMFolder().read(root)
    assert not [secret for secret in dicoms.SECRETS if secret in str(caught.value)]
    (folder / "plain.dcm").write_bytes(b"nothing")
    with pytest.raises(DataError, match="a DICOM file cannot be read"):
        read_frame(folder / "plain.dcm")


def test_labels_and_combination(patients: Path, tmp_path: Path) -> None:
    samples = DICOMFolder(label="benign").read(patients)
    assert {sample.label for sample in samples} == {"benign"}
    both = Combined([Part(DICOMFolder(), str(patients)), Part(BUSBRA(), str(layouts.busbra(tmp_path / "bra")))])
    mixed = both.read(both.default_root())
    assert len(mixed) == 36
    assert all(sample.private == (sample.source == "dicom") for sample in mixed)


def test_a_label_must_mean_one_file(tmp_path: Path) -> None:
    root = study(tmp_path / "study", 2)
    table = root / "labels.csv"
    first = f"benign/Zywicka_Janetta_0/{dicoms.ID}_0.dcm"
    table.write_text(f"image,label\n{first},normal\n")
    labels = [sample.label for sample in DICOMFolder(labels="labels.csv").read(root)]
    assert sorted(labels) == ["benign"] * 2 + ["malignant"] * 3 + ["normal"]
    # every patient's folder holds a file of this name
    for row, message in ((f"{dicoms.ID}_0,normal", "line 2 .* could mean 2 files"), (f"{first},benign", "line 3 .*")):
        table.write_text(f"image,label\n{row}\n{first},normal\n")
        with pytest.raises(DataError, match=message) as caught:
            DICOMFolder(labels="labels.csv").read(root)
        assert not [secret for secret in dicoms.SECRETS if secret in str(caught.value)]


CT = "1.2.840.10008.5.1.4.1.1.2"
SCREENSHOT = "1.2.840.10008.5.1.4.1.1.7"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"SOPClassUID": CT, "Modality": "CT"}, "CT"),
        ({"SOPClassUID": CT, "Modality": None}, "CT Image Storage"),
        ({"SOPClassUID": CT}, "CT Image Storage"),  # with the modality of ultrasound
        ({"Modality": "MG"}, "MG"),
        ({"Modality": "ct "}, "CT"),
        ({"SOPClassUID": SCREENSHOT, "Modality": "XA"}, "XA"),
        ({"SOPClassUID": SegmentationStorage, "Modality": "SEG"}, "SEG"),
        ({"SOPClassUID": BasicTextSRStorage, "Modality": "SR", "Rows": None}, "SR"),
        ({"SOPClassUID": MediaStorageDirectoryStorage, "Modality": None, "Rows": None}, "DICOMDIR"),
        ({"SOPClassUID": "1.2.3.4", "Modality": None, "Rows": None}, "an object without an image"),
        ({"Modality": dicoms.NAME}, None),  # what is no modality says nothing, and is not repeated
        ({"Modality": None}, None),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6", "Modality": "US"}, None),  # retired
        ({"SOPClassUID": SCREENSHOT}, None),
        ({"SOPClassUID": None}, None),
    ],
)
def test_what_is_no_ultrasound_is_known_by_class_and_modality(
    changes: dict[str, str | None], kind: str | None, grey: np.ndarray, tmp_path: Path
) -> None:
    data = dicoms.dataset(grey)
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.file_meta.MediaStorageSOPClassUID = data.get("SOPClassUID") or UltrasoundImageStorage
    path = dicoms.write(data, tmp_path / "one.dcm")
    if kind is None:
        assert read_header(path).declared
        return
    with pytest.raises(NotUltrasound, match="not an ultrasound image") as caught:
        read_header(path)
    assert caught.value.kind == kind


def test_a_screenshot_of_no_declared_kind_is_read_and_known_as_such(grey: np.ndarray, tmp_path: Path) -> None:
    for number, modality in enumerate(("OT", None)):
        data = dicoms.dataset(grey)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SCREENSHOT
        data.Modality = modality
        assert not read_header(dicoms.write(data, tmp_path / f"{number}.dcm")).declared


WHOLE = (dicoms.BANNER, dicoms.LEFT, *SHAPE)


@pytest.mark.parametrize(
    ("changes", "box", "spacing"),
    [
        ({"RegionSpatialFormat": None}, None, None),
        ({"RegionDataType": None}, None, None),
        ({"RegionLocationMaxX1": "absent"}, None, None),
        ({"RegionLocationMinY0": None}, None, None),
        ({"RegionLocationMaxX1": 3}, None, None),  # left of its own beginning
        ({"PhysicalDeltaX": None}, WHOLE, None),
        ({"PhysicalDeltaY": "absent"}, WHOLE, None),
        ({"PhysicalDeltaX": 0.0}, WHOLE, None),
        ({"PhysicalDeltaX": float("nan")}, WHOLE, None),
        ({"PhysicalUnitsYDirection": None}, WHOLE, None),
        ({"PhysicalUnitsXDirection": "absent"}, WHOLE, None),
        ({}, WHOLE, (0.08, 0.1)),
    ],
)
def test_a_malformed_region_is_passed_over(
    changes: dict[str, object], box: object, spacing: object, grey: np.ndarray, tmp_path: Path
) -> None:
    region = dicoms.region(SHAPE)
    for name, value in changes.items():
        if value == "absent":
            delattr(region, name)
        else:
            setattr(region, name, value)
    data = dicoms.dataset(dicoms.screen(grey), regions=[region])
    header = read_header(dicoms.write(data, tmp_path / "one.dcm"))
    assert header.box == box
    assert header.spacing == (None if spacing is None else pytest.approx(spacing))
    if box is None:  # a good region beside it counts
        data.SequenceOfUltrasoundRegions = [region, dicoms.region(SHAPE)]
        assert read_header(dicoms.write(data, tmp_path / "one.dcm")).box == WHOLE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PixelSpacing", "0.1"),
        ("PixelSpacing", "wide\\0.1"),
        ("PixelSpacing", "0\\0"),
        ("NumberOfFrames", "many"),
        ("NumberOfFrames", "-2"),
        ("NumberOfFrames", ""),
        ("BurnedInAnnotation", "PERHAPS"),
        ("WindowWidth", "0"),
        ("WindowWidth", "wide"),
        ("WindowCenter", ""),
        ("RescaleSlope", "steep"),
        ("PatientID", ""),
    ],
)
def test_a_malformed_element_costs_itself_and_not_the_file(
    name: str, value: str, grey: np.ndarray, tmp_path: Path
) -> None:
    data = dicoms.dataset(grey.astype(np.uint16) * 16)
    data.BitsStored, data.HighBit = 12, 11
    data.WindowCenter, data.WindowWidth = 2047.5, 4095
    with pydicom.config.disable_value_validation():
        element = pydicom.DataElement(pydicom.datadict.tag_for_keyword(name), "LO", value)
        element.VR = "LO"
        data[name] = element
        data[name].VR = "LO"
        path = dicoms.write(data, tmp_path / "one.dcm")
    # the element keeps its own type in the file
    written = path.read_bytes()
    tag = pydicom.tag.Tag(name)
    head = tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little")
    kind = pydicom.datadict.dictionary_VR(name).encode()
    path.write_bytes(written.replace(head + b"LO", head + kind))
    header = read_header(path)
    assert (header.shape, header.frames, header.box) == (SHAPE, 1, None)
    assert header.spacing is None
    assert np.abs(read_frame(path).astype(int) - grey).max() <= 1


def jpeg(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {"no_jp2": True}), **options)
    return buffer.getvalue()


def without_markers(stream: bytes) -> bytes:
    """A JPEG stream without the markers of JFIF and Adobe, which say what its components are."""
    place = 2
    while stream[place + 1] in range(0xE0, 0xF0):
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return stream[:2] + stream[place:]


@pytest.mark.parametrize(
    "declared", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "MONOCHROME2", "rgb", "", None]
)
def test_a_stream_says_its_colours_itself(declared: str | None, colour: np.ndarray, tmp_path: Path) -> None:
    streams = {
        "JFIF, colours halved": (jpeg(colour, subsampling=1), JPEGBaseline8Bit),
        "JFIF": (jpeg(colour, subsampling=0), JPEGBaseline8Bit),
        "no marker, colours halved": (without_markers(jpeg(colour, subsampling=2)), JPEGBaseline8Bit),
        "RGB": (jpeg(colour, keep_rgb=True), JPEGBaseline8Bit),
        "JPEG 2000 with transform": (jpeg(colour, "JPEG2000", mct=1), JPEG2000Lossless),
        "JPEG 2000 with lossy transform": (jpeg(colour, "JPEG2000", mct=1, irreversible=True), JPEG2000),
    }
    for name, (stream, syntax) in streams.items():
        data = dicoms.dataset(colour, "RGB")
        data.PixelData = encapsulate([stream])
        data["PixelData"].VR, data.file_meta.TransferSyntaxUID = "OB", syntax
        if declared is None:
            del data.PhotometricInterpretation
        else:
            data.PhotometricInterpretation = declared
        read = read_frame(dicoms.write(data, tmp_path / "one.dcm"))
        assert read.shape == colour.shape
        assert np.abs(read.astype(int) - colour).mean() < 4, name


def test_a_stream_of_other_components_than_declared(grey: np.ndarray, colour: np.ndarray, tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(grey, (0, 0), 3)
    for declared, held, kind in ((colour, smooth, "YBR_FULL_422"), (smooth, colour, "MONOCHROME2")):
        data = dicoms.dataset(declared, kind)
        data.PixelData = encapsulate([jpeg(held)])
        data["PixelData"].VR, data.file_meta.TransferSyntaxUID = "OB", JPEGBaseline8Bit
        read = read_frame(dicoms.write(data, tmp_path / "one.dcm"))
        assert read.shape == held.shape
        assert np.abs(read.astype(int) - held).mean() < 2


def test_native_pixels_that_their_declaration_contradicts(grey: np.ndarray, colour: np.ndarray, tmp_path: Path) -> None:
    def read(data: pydicom.Dataset) -> np.ndarray:
        return read_frame(dicoms.write(data, tmp_path / "one.dcm"))

    for kind in ("RGB", "YBR_FULL", "MONOCHROME", ""):
        assert np.array_equal(read(dicoms.dataset(grey, kind)), grey)
    for kind in ("MONOCHROME2", "PALETTE COLOR", "YBR_RCT", "rgb"):
        assert np.array_equal(read(dicoms.dataset(colour, kind)), colour)
    # said to have half of the colours, and long enough for all of them
    assert np.abs(read(dicoms.dataset(to_ybr(colour), "YBR_FULL_422")).astype(int) - colour).max() <= 2
    data = dicoms.dataset(colour, "RGB")
    del data.PlanarConfiguration
    assert np.array_equal(read(data), colour)


def test_a_folder_leaves_out_copies_and_what_is_no_ultrasound_but_not_files_of_one_identifier(tmp_path: Path) -> None:
    root = study(tmp_path / "study", 1)
    folder = root / "benign" / "Zywicka_Janetta_0"
    before = {sample.id for sample in DICOMFolder().read(root)}
    scan = dicoms.dataset(dicoms.screen(layouts.picture(7, shape=SHAPE)[0]))
    scan.SOPClassUID = scan.file_meta.MediaStorageSOPClassUID = CT
    scan.Modality = "CT"
    dicoms.write(scan, folder / "ct.dcm")
    samples, problems = DICOMFolder().scan(root)
    assert {sample.id for sample in samples} == before
    assert [(problem.kind, problem.wrong) for problem in problems] == [("left out: no ultrasound", False)]
    assert "(CT)" in problems[0].message
    # another image with the identifier of the first file
    first = folder / f"{dicoms.ID}_0.dcm"
    image, mask = layouts.picture(999, shape=SHAPE)
    other = dicoms.dataset(dicoms.screen(image), regions=[dicoms.region(SHAPE)])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = pydicom.dcmread(first).SOPInstanceUID
    dicoms.write(other, folder / "other.dcm")
    layouts.save(folder / "other_mask.png", np.where(mask, 255, 0).astype(np.uint8))
    samples = DICOMFolder().read(root)
    assert len(samples) == len(before) + 1 == len({sample.id for sample in samples})
    assert any(np.array_equal(sample.read_image(), image) for sample in samples)


def test_without_pydicom_one_line_says_what_to_install(patients: Path) -> None:
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from bustseg.cli import main\n"
        f"sys.exit(main(['data', 'check', {str(patients)!r}, '--source', 'DICOMFolder']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: reading DICOM files needs pydicom: pip install 'bustseg[dicom]'"
    ]


def spelled(secret: str) -> list[bytes]:
    return [secret.lower().encode(), secret.lower().encode("utf-16-le")]


@pytest.mark.slow
def test_no_patient_appears_in_anything_that_a_run_writes(
    bustseg: Callable[..., tuple[int, str, str]],
    patients: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fit, test, check and split on files whose names, folders, headers and pixels name patients."""
    monkeypatch.setenv("BUSTSEG_CACHE", str(tmp_path / "cache"))
    said = ""
    source = ("--data.source", "DICOMFolder", "--data.root", patients)
    for args in (
        ("data", "check", patients, "--source", "DICOMFolder", "--json", "check.json", "--report", "check.html"),
        ("data", "split", patients, "--source", "DICOMFolder", "--out", "split.csv"),
        ("fit", "--config", TINY, *source, "--data.split", "split.csv", "--trainer.max_epochs", 1),
        ("test", "--ckpt_path", "latest"),
        ("test", "--ckpt_path", "latest", "--data.split", "test_all", *SHORT_TEST),
        ("fit", "--config", TINY, *source, "--data.split", f"{patients}/none.csv"),
    ):
        code, out, err = bustseg(*args)
        assert code == (2 if "none.csv" in str(args[-1]) else 0), err
        said += out + err
    client = mlflow.MlflowClient(tracking_uri())
    assert len(client.search_runs([client.get_experiment_by_name("tiny").experiment_id])) == 2
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "test.png" for path in written)
    assert any(path.suffix == ".ckpt" for path in written)
    for secret in dicoms.SECRETS:
        assert secret.lower() not in said.lower()
        for path in written:
            assert secret.lower() not in str(path.relative_to(tmp_path)).lower()
            content = path.read_bytes().lower()
            assert not any(form in content for form in spelled(secret)), path
    # nor in a picture: the banner's white letters are in no cached image
    for path in (tmp_path / "cache").rglob("images.npy"):
        expected = {
            cv2.resize(layouts.picture(100 * p + v, shape=SHAPE)[0], (32, 32), interpolation=cv2.INTER_AREA).tobytes()
            for p in range(8)
            for v in (0, 1, 51)
        }
        assert {image.tobytes() for image in np.load(path)} == expected


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_the_head_of_a_codestream_tells_its_size(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (70, 41)).save(buffer, kind)
    assert dicom.codestream_shape(buffer.getvalue()) == (41, 70)
    for cut in (0, 1, 2, 10):
        assert dicom.codestream_shape(buffer.getvalue()[:cut]) is None


def test_compressed_frames_of_the_headers_own_size_pass(tmp_path: Path) -> None:
    pixels = np.zeros((64, 80), np.uint8)
    dicom.check_codestreams(dicoms.write(dicoms.as_jpeg(dicoms.dataset(pixels), pixels), tmp_path / "a.dcm"))
    dicom.check_codestreams(dicoms.write(dicoms.dataset(pixels), tmp_path / "b.dcm"))
    larger = dicoms.as_jpeg(dicoms.dataset(pixels), np.zeros((64, 81), np.uint8))
    with pytest.raises(DataError, match="larger than its header"):
        dicom.check_codestreams(dicoms.write(larger, tmp_path / "c.dcm"))


def test_levels_whose_white_is_not_known_are_refused(tmp_path: Path) -> None:
    levels = np.tile(np.linspace(0, 4095, 100), (80, 1)).astype(np.uint16)
    data = dicoms.dataset(levels)  # which says that all 16 bits are used
    with pytest.raises(DataError, match="brightest of its 16-bit levels is 4095"):
        read_frame(dicoms.write(data, tmp_path / "a.dcm"))
    data.BitsStored, data.HighBit = 12, 11
    assert read_frame(dicoms.write(data, tmp_path / "b.dcm"))[0, -1] == 255
    data.BitsStored, data.HighBit = 16, 15
    data.WindowCenter, data.WindowWidth = 2048, 4096
    assert read_frame(dicoms.write(data, tmp_path / "c.dcm"))[0, -1] == 255
    assert read_frame(dicoms.write(dicoms.dataset(levels * 16), tmp_path / "d.dcm"))[0, -1] == 255


@pytest.mark.parametrize(
    ("name", "value"), [("RescaleSlope", "0"), ("RescaleSlope", "1e400"), ("RescaleIntercept", "x")]
)
def test_a_scale_that_is_none_does_not_blot_out_the_image(name: str, value: str, tmp_path: Path) -> None:
    levels = np.tile(np.linspace(0, 4095, 100), (80, 1)).astype(np.uint16)
    data = dicoms.dataset(levels)
    data.BitsStored, data.HighBit = 12, 11
    plain = read_frame(dicoms.write(data, tmp_path / "plain.dcm"))
    data.WindowCenter, data.WindowWidth = 2047.5, 4095
    data.RescaleSlope, data.RescaleIntercept = "1", "0"
    data[name]._value = value
    assert np.array_equal(read_frame(dicoms.write(data, tmp_path / "scaled.dcm")), plain)


def test_fractions_are_refused(tmp_path: Path) -> None:
    data = dicoms.dataset(np.zeros((80, 100), np.uint8))
    del data.PixelData
    data.FloatPixelData = np.linspace(0, 1, 8000, dtype=np.float32).tobytes()
    data.BitsAllocated = 32
    with pytest.raises(DataError, match="its levels are fractions"):
        read_frame(dicoms.write(data, tmp_path / "a.dcm"))
