"""Augmentation of image and mask together, by albumentations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import albumentations as A
import cv2
import numpy as np

from bustseg.data.transplant import Pair, transplant
from bustseg.errors import DataError


def ultrasound() -> list[A.BasicTransform | A.BaseCompose]:
    """Modest default for B-mode images.

    Horizontal flips are anatomically plausible, vertical ones are not (attenuation and shadows run downwards). Gain,
    contrast and gamma vary as between operators and scanners; multiplicative noise simulates speckle, blur
    depth-dependent resolution.
    """
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.85, 1.15),
            translate_percent=(-0.06, 0.06),
            rotate=(-12, 12),
            shear=(-5, 5),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.7,
        ),
        A.ElasticTransform(alpha=30, sigma=6, border_mode=cv2.BORDER_REFLECT_101, p=0.2),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.RandomGamma(gamma_limit=(75, 135), p=0.3),
        A.OneOf(
            [
                A.MultiplicativeNoise(multiplier=(0.85, 1.15), elementwise=True),
                A.GaussianBlur(blur_limit=(3, 5)),
            ],
            p=0.3,
        ),
    ]


def ultrasound_strong() -> list[A.BasicTransform | A.BaseCompose]:
    """For long trainings: like :func:`ultrasound`, stronger and more often, with shadows and reduced resolution."""
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.7, 1.35),
            translate_percent=(-0.12, 0.12),
            rotate=(-20, 20),
            shear=(-8, 8),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.85,
        ),
        A.OneOf(
            [
                A.ElasticTransform(alpha=50, sigma=7, border_mode=cv2.BORDER_REFLECT_101),
                A.GridDistortion(num_steps=5, distort_limit=0.2, border_mode=cv2.BORDER_REFLECT_101),
            ],
            p=0.3,
        ),
        A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.3, p=0.7),
        A.RandomGamma(gamma_limit=(60, 160), p=0.4),
        A.OneOf(
            [
                A.MultiplicativeNoise(multiplier=(0.75, 1.25), elementwise=True),
                A.GaussianBlur(blur_limit=(3, 7)),
                A.Downscale(scale_range=(0.4, 0.8)),
            ],
            p=0.4,
        ),
        # dark vertical bands, as behind a rib or an attenuating lesion; the mask is unchanged
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.3, 0.9), hole_width_range=(0.03, 0.1), fill=12, p=0.15
        ),
    ]


def geometry(zoom: tuple[float, float]) -> list[A.BasicTransform | A.BaseCompose]:
    """Mirroring, an affine map and smooth deformations.

    Args:
        zoom: smallest and largest magnification; scanners differ in depth by a factor of two and more
    """
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=zoom,
            translate_percent=(-0.12, 0.12),
            rotate=(-20, 20),
            shear=(-8, 8),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.85,
        ),
        A.ElasticTransform(alpha=50, sigma=7, border_mode=cv2.BORDER_REFLECT_101, p=0.15),
        A.GridDistortion(num_steps=5, distort_limit=(-0.2, 0.2), border_mode=cv2.BORDER_REFLECT_101, p=0.15),
    ]


def other_scanners() -> list[A.BasicTransform | A.BaseCompose]:
    """The look of another training image: its histogram, or the low frequencies of its amplitude spectrum.

    Source of the latter: Yang and Soatto 2020, FDA: Fourier domain adaptation for semantic segmentation, CVPR.
    """
    return [
        A.HistogramMatching(blend_ratio=(0.3, 1.0), metadata_key=REFERENCE, p=0.2),
        A.FDA(beta_limit=(0.0, 0.05), metadata_key=REFERENCE, p=0.2),
    ]


def scanner_looks() -> list[A.BasicTransform | A.BaseCompose]:
    """Differences between scanners' pictures, apart from depth.

    Gain, dynamic range (a tone curve between log-compressed echoes and grey levels), gain over depth or across the
    probe, edge enhancement, resolution, speckle, compression of the stored file, and shadows.
    """
    return [
        A.RandomBrightnessContrast(brightness_limit=(-0.25, 0.25), contrast_limit=(-0.35, 0.35), p=0.7),
        A.RandomGamma(gamma_limit=(55, 180), p=0.5),
        A.RandomToneCurve(scale=0.2, p=0.3),
        A.Illumination(mode="linear", intensity_range=(0.05, 0.2), effect_type="both", p=0.3),
        A.Sharpen(alpha=(0.1, 0.5), lightness=(0.9, 1.1), p=0.12),
        A.UnsharpMask(blur_limit=(3, 7), alpha=(0.2, 0.6), p=0.12),
        A.GaussianBlur(blur_limit=(3, 7), p=0.12),
        A.Downscale(
            scale_range=(0.3, 0.8),
            interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
            p=0.15,
        ),
        A.MultiplicativeNoise(multiplier=(0.7, 1.3), elementwise=True, p=0.15),
        A.GaussNoise(std_range=(0.01, 0.06), p=0.15),
        A.ImageCompression(quality_range=(40, 95), p=0.2),
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.3, 0.9), hole_width_range=(0.03, 0.1), fill=12, p=0.15
        ),
    ]


def ultrasound_scanners() -> list[A.BasicTransform | A.BaseCompose]:
    """For a model that must work on unseen scanners: wide zoom, scanners' looks, other images' looks."""
    return [*geometry((0.5, 2.0)), *other_scanners(), *scanner_looks()]


REFERENCE = "reference"
"""Name under which a transform gets another training image: the ``metadata_key`` of albumentations' transforms."""

PRESETS = {
    "ultrasound": ultrasound,
    "ultrasound_strong": ultrasound_strong,
    "ultrasound_scanners": ultrasound_scanners,
    "none": list,
}
"""Named pipelines; anything else is a list of albumentations transforms."""


def lesion_free_crop(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, tries: int = 12
) -> tuple[np.ndarray, np.ndarray] | None:
    """A random part of an image without any lesion pixel, enlarged to the image's size; None if none is found.

    Normal images are few, and tissue next to a lesion is normal tissue from the same scanner.

    Args:
        image: ``uint8`` (H, W)
        mask: ``uint8`` 0 or 1 (H, W)
        rng: where the draws come from
        tries: windows that are drawn before giving up

    Returns:
        image and empty mask, both ``uint8`` (H, W)
    """
    height, width = image.shape
    for _ in range(tries):
        share = rng.uniform(0.35, 0.75)
        high, wide = int(height * share), int(width * np.clip(share * rng.uniform(0.8, 1.25), 0.3, 0.9))
        top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
        window = np.s_[top : top + high, left : left + wide]
        # nothing about tissue can be learned from dark corners and burned-in frames
        if mask[window].any() or image[window].mean() < 20:
            continue
        crop = cv2.resize(image[window], (width, height), interpolation=cv2.INTER_LINEAR)
        return crop, np.zeros_like(mask)
    return None


_OWN_READERS = ("albumentations.read_rgb_image", "albumentations.core.utils.read_rgb_image")
"""Names of the default of ``read_fn`` of albumentations' transforms in a dumped configuration."""


def without_own_readers(config: Any) -> Any:
    """Copy of a configuration of transforms in which no ``read_fn`` names albumentations' own default.

    A dump writes the function's name, which is read back as a string; left out, it is the default again.

    Args:
        config: mappings, lists and plain values
    """
    if isinstance(config, Mapping):
        return {
            key: without_own_readers(value)
            for key, value in config.items()
            if not (key == "read_fn" and value in _OWN_READERS)
        }
    return [without_own_readers(item) for item in config] if isinstance(config, list) else config


class Pairs(Protocol):
    """Images with their masks, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Pair: ...


_PATTERN_SEED = 308
"""Seed of six by six random squares: mirrored, rotated or shifted they correlate with themselves by 0.11 at most."""
_ALIGNED = 0.3  # below this correlation of image and mask, the mask no longer matches the image


class Augmentation:
    """Random transforms that depend only on (seed, epoch, image).

    albumentations 2.0 repeats its random state in every worker and epoch unless it is reseeded, so each call reseeds
    it: an image differs in every epoch, and the number of workers does not matter.

    Args:
        transforms: name of a preset, or albumentations transforms
        seed: seed of all random draws
        lesion_free: share of the images with a lesion that are replaced by a part without it, see
            :func:`lesion_free_crop`
        transplants: share of the images that get a piece of another training image, see
            :func:`~bustseg.data.transplant.transplant`

    Raises:
        DataError: there is no preset of that name
    """

    def __init__(
        self,
        transforms: str | Sequence[A.BasicTransform | A.BaseCompose],
        seed: int = 0,
        lesion_free: float = 0.0,
        transplants: float = 0.0,
    ) -> None:
        if isinstance(transforms, str) and transforms not in PRESETS:
            raise DataError(f"data.augmentation is {transforms!r}: use {', '.join(PRESETS)} or a list of transforms")
        self.steps = PRESETS[transforms]() if isinstance(transforms, str) else list(transforms)
        self.compose = A.Compose(self.steps) if self.steps else None
        self.seed = seed
        self.lesion_free, self.transplants = lesion_free, transplants
        self._refers = any(getattr(step, "metadata_key", None) == REFERENCE for step in _flat(self.steps))

    def __bool__(self) -> bool:
        return self.compose is not None or self.lesion_free > 0 or self.transplants > 0

    def __call__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        epoch: int,
        index: int,
        others: Pairs | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transform ``uint8`` image and mask of shape (H, W) by the draw of this epoch and index.

        Args:
            others: training images with their masks, one of which is drawn as the reference of transforms that need
                one (the image itself when not given), and one for a transplant (none when not given)

        Raises:
            DataError: a transform fails, or changes type or size, which would otherwise go unnoticed in a batch
        """
        sequence = np.random.SeedSequence((self.seed, epoch, index))
        if self.lesion_free > 0:
            rng = np.random.default_rng(sequence.spawn(1)[0])
            if mask.any() and rng.random() < self.lesion_free:
                image, mask = lesion_free_crop(image, mask, rng) or (image, mask)
        if self.transplants > 0 and others is not None and len(others):
            rng = np.random.default_rng(sequence.spawn(1)[0])
            if rng.random() < self.transplants:
                image, mask = transplant((image, mask), others[int(rng.integers(len(others)))], rng)
        if self.compose is None:
            return image, mask
        draw = int(sequence.generate_state(1)[0])
        reference = None
        if self._refers:
            reference = image if others is None or not len(others) else others[draw % len(others)][0]
        result = _apply(self.compose, image, mask, draw, reference)
        if isinstance(result, str):
            raise DataError(f"data.augmentation: {result}")
        return result

    def check(self, size: tuple[int, int], draws: int = 24) -> None:
        """Try the transforms on a pattern whose mask marks its bright squares, with each transform always active.

        Raises:
            DataError: a transform fails, gives another type or size, or moves the image and not its mask; the message
                names the first such transform
        """
        image, mask = _pattern(size)
        fault = _trouble(self.steps, image, mask, draws) if self.steps else None
        if fault is None:
            return
        for number in range(1, len(self.steps) + 1):
            # a later transform may repair the effect of an earlier one, as a resize after a crop
            if all(_trouble(self.steps[:end], image, mask, draws) for end in range(number, len(self.steps))):
                name = type(self.steps[number - 1]).__name__
                raise DataError(f"data.augmentation: {_trouble(self.steps[:number], image, mask, draws)} by {name}")


def _pattern(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    squares = np.random.default_rng(_PATTERN_SEED).integers(0, 2, (6, 6)).astype(np.uint8)
    mask = cv2.resize(squares, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
    return 50 + 140 * mask, mask


def _flat(steps: Sequence[A.BasicTransform | A.BaseCompose]) -> list[A.BasicTransform]:
    """The transforms of a pipeline, including those in groups."""
    flat: list[A.BasicTransform] = []
    for step in steps:
        flat += _flat(step.transforms) if isinstance(step, A.BaseCompose) else [step]
    return flat


def _apply(
    compose: A.Compose, image: np.ndarray, mask: np.ndarray, draw: int, reference: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | str:
    """Transformed image and mask, or a description of what is wrong with them."""
    compose.set_random_seed(draw)
    given = {} if reference is None else {REFERENCE: [np.ascontiguousarray(reference)]}
    try:
        result = compose(image=image, mask=mask, **given)
    except Exception as error:  # albumentations raises many kinds
        return f"{type(error).__name__} ({' '.join(str(error).split())}) is raised"
    for name in ("image", "mask"):
        made = result[name]
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8:
            kind = made.dtype if isinstance(made, np.ndarray) else type(made).__name__
            return f"the {name} is made {kind} instead of uint8 (the model normalises: model.mean, model.std)"
        if made.shape != image.shape:
            shapes = ("x".join(map(str, shape)) for shape in (image.shape, made.shape))
            return f"the {name} of {' (height x width) is made '.join(shapes)}"
    if result["mask"].max(initial=0) > 1:
        return "the mask gets levels other than 0 and 1"
    return result["image"], result["mask"]


def _trouble(
    steps: Sequence[A.BasicTransform | A.BaseCompose], image: np.ndarray, mask: np.ndarray, draws: int
) -> str | None:
    """What is wrong with any draw, or with most draws where a single one proves nothing."""
    certain = copy.deepcopy(list(steps))
    for step in certain:
        if 0 < step.p < 1 and not isinstance(step, A.OneOrOther):  # whose p chooses between two
            step.p = 1.0
    compose = A.Compose(certain)
    agreement = []
    for draw in range(draws):
        result = _apply(compose, image, mask, draw, reference=image)
        if isinstance(result, str):
            return result
        with np.errstate(divide="ignore", invalid="ignore"):
            agreement.append(abs(np.corrcoef(result[0].ravel(), result[1].ravel())[0, 1]))
    if np.median(np.nan_to_num(agreement)) < _ALIGNED:
        return "the image is moved without its mask, or erased,"
    return None
