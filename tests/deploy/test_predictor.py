"""Predictor: the training's own view of an image, and answers at the image's own size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.deploy.predictor import Predictor, as_grey
from bustseg.errors import DataError, UserError
from bustseg.runs.checkpoint import load_task
from bustseg.task import SegmentationTask
from tests.conftest import TrainedRun


class Dark(nn.Module):
    """Logit 4 where a normalised pixel is below 0, else -4: dark pixels are lesions."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.where(image[:, :1] < 0, 4.0, -4.0)


@pytest.fixture
def dark() -> Predictor:
    return Predictor(SegmentationTask(Dark(), mean=[0.5], std=[0.5]), image_size=(16, 24))


def test_a_file_gets_the_logits_of_the_evaluation(trained_run: TrainedRun, phantoms: Path) -> None:
    data = UltrasoundDataModule(str(phantoms), image_size=32)
    data.prepare_data()
    data.setup("test")
    task, predictor = load_task(trained_run.checkpoint), Predictor(trained_run.checkpoint)
    batch = next(iter(data.test_dataloader()))
    with torch.inference_mode():
        expected = task(batch["image"])
    images = [np.asarray(Image.open(data.samples[index].image)) for index in batch["index"].tolist()]
    assert images[0].shape[:2] == (96, 128)
    actual = predictor.logits([predictor.prepare(image) for image in images])
    assert np.array_equal(actual, expected.numpy())
    # an image of the network's own size is not resampled: its mask is the evaluation's
    cached, _ = data.arrays(int(batch["index"][0]))
    assert np.array_equal(predictor(cached).mask, task.predict_mask(cached))


@pytest.mark.parametrize("shape", [(16, 24), (61, 45), (9, 300), (1, 1), (480, 640)])
def test_answers_have_the_images_size(dark: Predictor, shape: tuple[int, int]) -> None:
    prediction = dark(np.zeros(shape, np.uint8))
    assert (prediction.mask.shape, prediction.mask.dtype) == (shape, np.uint8)
    assert (prediction.probability.shape, prediction.probability.dtype) == (shape, np.float32)
    assert prediction.area_px == shape[0] * shape[1]
    assert prediction.lesion_probability == pytest.approx(1 / (1 + np.exp(-4)))


def test_a_lesion_is_found_where_it_is(dark: Predictor) -> None:
    image = np.full((160, 240), 200, np.uint8)
    image[40:80, 60:120] = 20  # whole pixels of the network's grid, which is 10 times coarser
    found = dark(image).mask.astype(bool)
    truth = image < 100
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert dark(np.full((160, 240), 200, np.uint8)).area_px == 0


def test_logits_are_resampled_before_the_sigmoid(dark: Predictor) -> None:
    image = np.full((16, 24), 200, np.uint8)
    image[:, :12] = 0
    wide = dark(cv2.resize(image, (48, 32), interpolation=cv2.INTER_NEAREST))
    # half-way between logits 4 and -4 in four steps of a bilinear resampling by two: 4, 2, -2, -4
    row = wide.probability[10, 22:26]
    assert row == pytest.approx(1 / (1 + np.exp([-4.0, -2.0, 2.0, 4.0])), abs=1e-6)


def test_the_threshold_is_the_trainings_unless_given(dark: Predictor) -> None:
    image = np.zeros((16, 24), np.uint8)
    assert dark(image).threshold == 0.5
    assert dark(image, threshold=0.99).area_px == 0
    assert Predictor(dark.task, threshold=0.99, image_size=(16, 24))(image).area_px == 0


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3), 0xAB12, np.uint16), 0xAB),
        (np.full((2, 3), 1.0), 255),
        (np.full((2, 3), 0.2, np.float32), 51),
        (np.full((2, 3), 0.2, np.float16), 51),
        (np.full((2, 3), 200, np.int64), 200),
        (np.full((2, 3), True), 255),
        (np.full((2, 3, 3), (255, 0, 0), np.uint8), 76),  # 0.299 R + 0.587 G + 0.114 B
        (np.full((2, 3, 4), (0, 0, 255, 9), np.uint8), 29),
        (np.full((2, 3, 3), (0.0, 1.0, 0.0)), 150),
    ],
)
def test_every_number_type_becomes_the_same_grey(image: np.ndarray, grey: int) -> None:
    result = as_grey(image)
    assert (result.shape, result.dtype) == ((2, 3), np.uint8)
    assert np.all(result == grey)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 5)), r"shape \(2, 3, 5\)"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.full((2, 3), 1.5), "floats must lie between 0 and 1"),
        (np.full((2, 3), np.nan), "values run from nan"),
        (np.full((2, 3), 256), "integers must lie between 0 and 255"),
        (np.full((2, 3), -1), "integers must lie between 0 and 255"),
        (np.full((2, 3), 1j), "type complex128"),
        (np.array([["a"]]), "type <U1"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_in_one_line(image: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        as_grey(image)
    assert "\n" not in str(error.value)


def test_many_images_of_different_sizes_keep_their_order(dark: Predictor) -> None:
    images = [np.full((10 + n, 20), 255 * (n % 2), np.uint8) for n in range(7)]
    taken = 0

    def stream():
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    predictions = dark.predict_many(stream(), batch_size=3)
    assert next(predictions).mask.shape == (10, 20)
    assert taken == 3, "one batch at a time is held"
    rest = list(predictions)
    assert [p.mask.shape[0] for p in rest] == [11, 12, 13, 14, 15, 16]
    assert [p.area_px > 0 for p in rest] == [False, True] * 3


def test_threads_and_repetition_change_nothing(trained_run: TrainedRun) -> None:
    predictor = Predictor(trained_run.checkpoint)
    images = [np.random.default_rng(n).integers(0, 255, (40 + n, 50), dtype=np.uint8) for n in range(6)]
    expected = [predictor(image).probability for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, wanted in zip(pool.map(predictor, images), expected, strict=True):
                assert np.array_equal(found.probability, wanted)
    assert not predictor.task.training


def test_a_run_and_latest_name_a_model(trained_run: TrainedRun) -> None:
    run_id = trained_run.run_id
    for name in (run_id, f"runs:/{run_id}", "latest"):
        assert Predictor(name).image_size == (32, 32)
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        Predictor("nowhere")


def test_a_task_without_a_record_needs_the_size() -> None:
    with pytest.raises(UserError, match="give image_size"):
        Predictor(SegmentationTask(Dark(), mean=[0.5], std=[0.5]))
