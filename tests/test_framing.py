"""From an image to the network's input and back, with and without the image's own proportions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.inputs import EXPLAINED
from bustseg.deploy.export import export_model
from bustseg.deploy.exported import ExportedModel
from bustseg.deploy.predictor import Predictor
from bustseg.errors import UserError
from bustseg.framing import Framing
from bustseg.task import RECORD
from tests.conftest import TrainedRun

Bustseg = Callable[..., tuple[int, str, str]]
SHAPES = [(480, 640), (640, 480), (61, 300), (300, 1), (1, 1), (32, 32), (97, 101)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_a_letterbox_keeps_proportions_and_centre(shape: tuple[int, int], size: tuple[int, int]) -> None:
    rows, columns = Framing(size, "letterbox").window(shape)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    scale = min(size[0] / shape[0], size[1] / shape[1])
    assert abs(height - shape[0] * scale) <= max(0.5, 1 - shape[0] * scale)
    assert abs(width - shape[1] * scale) <= max(0.5, 1 - shape[1] * scale)
    assert height == size[0] or width == size[1]
    for part, most in ((rows, size[0]), (columns, size[1])):
        assert 0 <= part.start - (most - part.stop) + 1 <= 1, "at most one pixel beside the centre"


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_fitted_comes_back_in_its_place(shape: tuple[int, int], resize: str) -> None:
    framing = Framing((64, 64), resize)  # type: ignore[arg-type]
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    image = np.where((rows >= shape[0] / 2) & (columns >= shape[1] / 2), 200, 100).astype(np.uint8)
    fitted = framing.fit(image)
    assert (fitted.shape, fitted.dtype) == ((64, 64), np.uint8)
    found = framing.restore(fitted.astype(np.float32), shape)
    assert found.shape == shape
    assert found.min() >= 100, "no padding comes back"
    assert np.mean(np.abs(found - image) > 50) <= (0.05 if min(shape) > 1 else 0.5)


def test_a_letterbox_pads_with_black_and_stretching_does_not() -> None:
    image = np.full((40, 80), 7, np.uint8)
    boxed = Framing((80, 80), "letterbox").fit(image)
    assert np.array_equal(np.flatnonzero(boxed.any(1)), np.arange(20, 60))
    assert (Framing((80, 80)).fit(image) == 7).all()
    assert np.array_equal(Framing((40, 80), "letterbox").fit(image), image), "what fits is not resampled"


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UserError, match="stretch or letterbox, not by 'crop'"):
        UltrasoundDataModule(resize="crop")  # type: ignore[arg-type]


def test_training_images_are_letterboxed(phantoms: Path) -> None:
    data = UltrasoundDataModule(str(phantoms), image_size=32, resize="letterbox")
    data.prepare_data()
    data.setup("fit")
    assert data.cache is not None
    assert data.samples[0].read_image().shape == (96, 128)
    images, masks = np.asarray(data.cache.images), np.asarray(data.cache.masks)
    assert not images[:, :4].any()
    assert not images[:, 28:].any()
    assert not masks[:, :4].any()
    assert images[:, 4:28].any(axis=(1, 2)).all()
    stretched = UltrasoundDataModule(str(phantoms), image_size=32)
    stretched.prepare_data()
    stretched.setup("fit")
    assert stretched.cache is not None
    assert stretched.cache.images[:, 0].any(), "each way has its own cache"
    assert stretched.cache.digest == data.cache.digest


@pytest.fixture
def letterboxed(trained_run: TrainedRun, tmp_path: Path) -> Path:
    """The checkpoint of a trained run, as if its images had been letterboxed."""
    content = torch.load(trained_run.checkpoint, weights_only=True)
    content[RECORD]["config"]["data"]["resize"] = "letterbox"
    path = tmp_path / "letterboxed.ckpt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_exported_model_letterboxes_as_its_training_did(
    letterboxed: Path, trained_run: TrainedRun, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "exported"
    export_model(str(letterboxed), format, "fp32", out)
    exported = ExportedModel.read(out)
    assert exported.metadata["format_version"] == 2, "an older bustseg would stretch"
    assert exported.metadata["input"]["resize"] == "letterbox"
    trained, other = Predictor(letterboxed), Predictor(out)
    assert trained.framing == other.framing == Framing(trained.image_size, "letterbox")
    image = np.random.default_rng(0).integers(0, 255, (40, 150), dtype=np.uint8)
    found = other(image)
    assert found.mask.shape == image.shape
    stretched = Predictor(trained_run.checkpoint)
    assert stretched.framing == Framing(trained.image_size)

    def difference(predictor: Predictor) -> float:
        return float(np.abs(predictor(image).probability - found.probability).max())

    # the network of two epochs hardly looks at its image
    assert difference(trained) < difference(stretched) / 5


def test_a_stretching_model_keeps_its_version(trained_run: TrainedRun, tmp_path: Path) -> None:
    export_model(str(trained_run.checkpoint), "onnx", "fp32", tmp_path / "exported")
    exported = ExportedModel.read(tmp_path / "exported")
    assert (exported.metadata["format_version"], exported.framing.resize) == (1, "stretch")


@pytest.mark.parametrize("method", [(), ("--method", "Occlusion")], ids=["layers", "occlusion"])
def test_explanations_cover_the_image_and_not_its_padding(
    bustseg: Bustseg, letterboxed: Path, phantoms: Path, tmp_path: Path, method: tuple[str, ...]
) -> None:
    content = torch.load(letterboxed, weights_only=True)
    content[RECORD]["config"]["model"]["threshold"] = 0.3  # every pixel of a network that knows nothing
    torch.save(content, letterboxed)
    image = next((phantoms / "benign").glob("benign (?).png"))
    code, _, error = bustseg("explain", image, "--model", letterboxed, "--out", tmp_path / "out", *method)
    assert code == 0, error
    row = pd.read_csv(tmp_path / "out" / EXPLAINED).iloc[0]
    assert (row["height"], row["width"], row["lesion_predicted_px"]) == (96, 128, 96 * 128)
    heat = [path for path in (tmp_path / "out").rglob("*.png") if Image.open(path).mode.startswith("I")]
    assert heat
    assert {Image.open(path).size for path in heat} == {(128, 96)}
