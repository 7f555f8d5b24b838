"""Transforms are tried before they are relied on: type, size, alignment, and what is legitimate all the same."""

from __future__ import annotations

from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from bustseg.data.datamodule import UltrasoundDataModule
from bustseg.data.transforms import PRESETS, Augmentation, _pattern
from bustseg.errors import DataError

SIZE = (48, 64)


class MirroredImage(A.ImageOnlyTransform):
    """Moves the image and not its mask."""

    def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
        return np.ascontiguousarray(img[:, ::-1])


FAULTY = {
    "floats": ([A.HorizontalFlip(), A.ToFloat()], "the image is made float32 instead of uint8 .* by ToFloat"),
    "normalised": ([A.Normalize(mean=[0.5], std=[0.5])], "float32 instead of uint8 .*model.mean.* by Normalize"),
    "now and then": ([A.ToFloat(p=0.01)], "by ToFloat"),
    "one of two": ([A.OneOf([A.Blur(), A.ToFloat(p=0.1)])], "by OneOf"),
    "tensor": ([A.ToTensorV2()], "the image is made Tensor instead of uint8 .* by ToTensorV2"),
    "a row": ([A.RandomCrop(1, 64)], r"the image of 48x64 \(height x width\) is made 1x64 by RandomCrop"),
    "a pixel": ([A.CenterCrop(1, 1)], "is made 1x1 by CenterCrop"),
    "smaller": ([A.Resize(32, 32), A.HorizontalFlip()], "is made 32x32 by Resize"),
    "turned": ([A.RandomRotate90()], "is made 64x48 by RandomRotate90"),
    "colour": ([A.ToRGB()], "is made 48x64x3 by ToRGB"),
    "too large": ([A.RandomCrop(300, 300)], r"CropSizeError \(.*\) is raised by RandomCrop"),
    "levels of a mask": ([A.Affine(rotate=45, fill_mask=255)], "levels other than 0 and 1 by Affine"),
    "image alone": (
        [A.HorizontalFlip(), MirroredImage(p=0.5)],
        "moved without its mask, .* by MirroredImage",
    ),
    "erased": ([A.RandomBrightnessContrast((-1, -1), (0, 0))], "erased, by RandomBrightnessContrast"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_transform_that_training_cannot_use_is_named(name: str, phantoms: Path) -> None:
    steps, message = FAULTY[name]
    with pytest.raises(DataError, match=rf"^data\.augmentation: .*{message}$") as caught:
        Augmentation(steps).check(SIZE)
    assert "\n" not in str(caught.value)
    data = UltrasoundDataModule(root=str(phantoms), image_size=SIZE, augmentation=steps)
    data.setup("fit")
    with pytest.raises(DataError, match=message):
        data.train_dataloader()
    assert len(data.val_dataloader()) > 0


SOUND = {
    "nothing": [],
    "there and back": [A.ToFloat(max_value=255), A.FromFloat(dtype="uint8", max_value=255)],
    "larger, then cut": [A.PadIfNeeded(80, 80), A.RandomCrop(*SIZE)],
    "smaller, then resized": [A.RandomCrop(24, 32), A.Resize(*SIZE)],
    "turned where it is a square": [A.Resize(64, 64), A.RandomRotate90(), A.Resize(*SIZE)],
    "never": [A.ToFloat(p=0)],
    "inverted": [A.InvertImg(p=1)],
    "noise and holes": [A.GaussNoise(p=1), A.CoarseDropout(p=1)],
    "one or the other": [A.OneOrOther(A.HorizontalFlip(), A.VerticalFlip())],
    "pieces": [A.RandomGridShuffle(p=1)],
}


@pytest.mark.parametrize("name", SOUND)
def test_what_comes_out_right_is_left_alone(name: str) -> None:
    Augmentation(SOUND[name]).check(SIZE)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (224, 224)])
def test_the_presets_pass(name: str, size: tuple[int, int]) -> None:
    Augmentation(name).check(size)
    # a list of the same transforms is tried whenever it trains
    Augmentation(PRESETS[name]()).check(size)


def test_what_trying_has_missed_ends_the_run_with_its_name() -> None:
    class Rare(A.ImageOnlyTransform):
        """Gives floats for the bright images of one draw in a thousand."""

        def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
            return img.astype(np.float32) if img.min() > 200 else img

    augmentation = Augmentation([Rare(p=1)])
    augmentation.check(SIZE)
    mask = np.zeros(SIZE, np.uint8)
    assert augmentation(np.full(SIZE, 100, np.uint8), mask, 0, 0)[0].dtype == np.uint8
    with pytest.raises(DataError, match="the image is made float32 instead of uint8"):
        augmentation(np.full(SIZE, 250, np.uint8), mask, 0, 0)


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(DataError, match=r"'ultrasonic': use ultrasound, .*, none or a list"):
        Augmentation("ultrasonic")


def test_the_pattern_resembles_itself_in_no_other_place() -> None:
    pattern = _pattern((96, 96))[1].astype(float)
    moved = [np.rot90(flipped, turns) for flipped in (pattern, pattern[:, ::-1]) for turns in range(4)][1:]
    moved += [np.roll(pattern, shift, axis) for shift in (16, -16, 32) for axis in (0, 1)]
    assert all(abs(np.corrcoef(pattern.ravel(), other.ravel())[0, 1]) < 0.2 for other in moved)
    image, mask = _pattern((24, 40))
    assert np.array_equal(cv2.threshold(image, 120, 1, cv2.THRESH_BINARY)[1], mask)
