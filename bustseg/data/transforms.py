"""Augmentation of image and mask together, by albumentations."""

from __future__ import annotations

from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np


def ultrasound() -> list[A.BasicTransform | A.BaseCompose]:
    """Modest default for B-mode images.

    Mirroring is anatomically plausible, turning upside down is not (attenuation and shadows run downwards), so there is
    no vertical flip. Gain, contrast and gamma vary as between operators and scanners; multiplicative noise stands for
    speckle, blur for depth-dependent resolution.
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
    """For long trainings: as :func:`ultrasound`, wider and more often, with acoustic shadows and lost resolution."""
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
        # vertical bands that darken, as behind a rib or an attenuating lesion; the mask stays
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.3, 0.9), hole_width_range=(0.03, 0.1), fill=12, p=0.15
        ),
    ]


PRESETS = {"ultrasound": ultrasound, "ultrasound_strong": ultrasound_strong, "none": list}
"""Named pipelines; anything else is a list of albumentations transforms."""


class Augmentation:
    """Random transforms whose draw depends on (seed, epoch, image) alone.

    albumentations 2.0 repeats its random state in every worker and epoch unless it is reseeded, so each call here names
    its own draw: no two epochs see the same version of an image, and any number of workers gives the same ones.
    """

    def __init__(self, transforms: str | Sequence[A.BasicTransform | A.BaseCompose], seed: int = 0) -> None:
        steps = PRESETS[transforms]() if isinstance(transforms, str) else list(transforms)
        self.compose = A.Compose(steps) if steps else None
        self.seed = seed

    def __bool__(self) -> bool:
        return self.compose is not None

    def __call__(self, image: np.ndarray, mask: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Transform ``uint8`` image and mask of shape (H, W) by the draw of this epoch and index."""
        if self.compose is None:
            return image, mask
        draw = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
        self.compose.set_random_seed(int(draw))
        result = self.compose(image=image, mask=mask)
        return result["image"], result["mask"]
