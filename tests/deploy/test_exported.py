"""Exported folders of strangers: a schema, files of the folder only, checksums always."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bustseg import box
from bustseg.deploy.exported import ExportedModel
from bustseg.errors import UserError

CONTENT = b"a network"


def part(content: bytes = CONTENT) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def metadata(**changes: Any) -> dict[str, Any]:
    whole = {
        "format_version": 1,
        "format": "onnx",
        "precision": "fp32",
        "model": "model.onnx",
        "files": {"model.onnx": part()},
        "input": {"name": "image", "image_size": [64, 96]},
        "threshold": 0.5,
        "postprocess": {"keep": "largest", "min_area_px_relative": 0.01, "max_confidence_gap": None},
        "training_images": {"mean": [1.0, 2.5], "contrast": [3, 4]},
        "something_for_people": {"any": ["thing"]},
    }
    return {key: value for key, value in (whole | changes).items() if value is not ...}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "exported"
    inner.mkdir()
    (inner / "model.onnx").write_bytes(CONTENT)
    (tmp_path / "elsewhere.onnx").write_bytes(CONTENT)
    return inner


def write(folder: Path, content: Any) -> None:
    (folder / "bustseg.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_whole_folder_is_read(folder: Path) -> None:
    write(folder, metadata())
    model = ExportedModel.read(folder)
    assert model.image_size == (64, 96)
    assert model.path == folder / "model.onnx"
    assert model.metadata["something_for_people"] == {"any": ["thing"]}
    assert ExportedModel.read(box.FOLDER).mask_rule.threshold == 0.4


HOSTILE: dict[str, Any] = {
    "no checksum of the model": metadata(files={"other.bin": part()}),
    "no files": metadata(files={}),
    "files missing": metadata(files=...),
    "no sum in a file": metadata(files={"model.onnx": {"bytes": 9}}),
    "empty sum": metadata(files={"model.onnx": {"bytes": 9, "sha256": ""}}),
    "null sum": metadata(files={"model.onnx": {"bytes": 9, "sha256": None}}),
    "wrong size": metadata(files={"model.onnx": {**part(), "bytes": 10}}),
    "size is a text": metadata(files={"model.onnx": {**part(), "bytes": "9"}}),
    "folder above": metadata(model="../elsewhere.onnx", files={"../elsewhere.onnx": part()}),
    "model above, sum inside": metadata(model="../elsewhere.onnx"),
    "folder below": metadata(model="a/model.onnx", files={"a/model.onnx": part()}),
    "absolute": metadata(model="/etc/hostname", files={"/etc/hostname": part()}),
    "another system's separator": metadata(model="..\\elsewhere.onnx", files={"..\\elsewhere.onnx": part()}),
    "the folder itself": metadata(model="..", files={"..": part()}),
    "a dot": metadata(model=".", files={".": part()}),
    "null byte": metadata(model="model.onnx\0", files={"model.onnx\0": part()}),
    "home": metadata(model="~", files={"~": part()}),
    "an address": metadata(model="http://evil.example/x", files={"http://evil.example/x": part()}),
    "a list for a name": metadata(model=["model.onnx"]),
    "no binary of openvino": metadata(format="openvino", model="model.onnx"),
    "unknown format": metadata(format="pickle"),
    "no format": metadata(format=...),
    "unknown precision": metadata(precision="int2"),
    "huge image": metadata(input={"image_size": [10**9, 10**9]}),
    "negative image": metadata(input={"image_size": [-1, 64]}),
    "zero image": metadata(input={"image_size": [0, 0]}),
    "image of one side": metadata(input={"image_size": [64]}),
    "image of texts": metadata(input={"image_size": ["64", "64"]}),
    "image of fractions": metadata(input={"image_size": [64.5, 64]}),
    "no input": metadata(input=...),
    "input is a list": metadata(input=[64, 64]),
    "threshold above 1": metadata(threshold=2),
    "threshold is a text": metadata(threshold="0.5"),
    "threshold is null": metadata(threshold=None),
    "threshold is no number": json.dumps(metadata()).replace('"threshold": 0.5', '"threshold": NaN'),
    "threshold is infinite": json.dumps(metadata()).replace('"threshold": 0.5', '"threshold": 1e999'),
    "postprocess is a list": metadata(postprocess=[1]),
    "nested postprocess": metadata(postprocess={"keep": {"class_path": "os.system"}}),
    "text for a number in postprocess": metadata(postprocess={"min_peak_probability": "0.8"}),
    "null for a number in postprocess": metadata(postprocess={"min_area_px_relative": None}),
    "text for yes in postprocess": metadata(postprocess={"fill_holes": "no"}),
    "unknown postprocess": metadata(postprocess={"dilate": 1}),
    "calibration is a text": metadata(calibration={"temperature": "1"}),
    "training images of three": metadata(training_images={"mean": [1, 2, 3]}),
    "version is a text": metadata(format_version="1"),
    "later version": metadata(format_version=3),
    "no version": metadata(format_version=...),
    "a list": [1, 2],
    "a number": 7,
    "null": None,
    "empty": "",
    "cut off": json.dumps(metadata())[:100],
    "deep": "[" * 100_000,
    "deep and closed": '{"format_version": 1, "x": ' + "[" * 5_000 + "]" * 5_000 + "}",
    "long": '{"format_version": 1, "x": "' + "x" * 5_000_000 + '"}',
    "many files": metadata(files={f"f{n}": part() for n in range(1000)}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_the_schema_is_refused_in_one_line(folder: Path, content: Any) -> None:
    write(folder, content)
    with pytest.raises(UserError) as refusal:
        ExportedModel.read(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_links_lead_nowhere_else(folder: Path) -> None:
    write(folder, metadata())
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("../elsewhere.onnx")
    with pytest.raises(UserError, match="leads out of its folder"):
        ExportedModel.read(folder)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"lacks model\.onnx"):
        ExportedModel.read(folder)
    (folder / "own").write_bytes(CONTENT)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("own")
    (folder.parent / "link").symlink_to(folder)
    assert ExportedModel.read(folder.parent / "link").path.read_bytes() == CONTENT


def test_files_that_never_end_are_not_read(folder: Path) -> None:
    os.mkfifo(folder / "bustseg.json")
    with pytest.raises(UserError):
        ExportedModel.read(folder)
    (folder / "bustseg.json").unlink()
    write(folder, metadata(files={"model.onnx": part(), "pipe": part()}))
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match="lacks pipe"):
        ExportedModel.read(folder)
