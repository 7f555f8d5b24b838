"""How reliable a mask is, and which images a person should look at. Formulas: docs/explanation/confidence.md.

A network's probabilities are not frequencies: most networks are overconfident. One number, the temperature T, corrects
that; it is fitted on validation images and stored with the model as ``calibration: {temperature: T}``. Without it no
confidence is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from scipy import optimize

from bustseg.bounds import as_mapping, is_number
from bustseg.errors import UserError
from bustseg.masks import inside_bounds, logit_of
from bustseg.presence import Presence

CALIBRATION = "calibration"
"""Key of the temperature in a model's record."""

TRAINING_IMAGES = "training_images"
"""Key of the range of the training images in a model's record, see :func:`image_range`."""

LOW_CONFIDENCE = 0.75
"""Masks with a lower confidence should be looked at."""

NEAR_THRESHOLD = 0.15
"""If an image's highest probability is this close to the threshold, whether a lesion is found is nearly a coin toss."""

TINY = 0.005
"""Share of the image below which a lesion is tiny; of BUSI's 647 annotated masks 2 in 100 are smaller."""

_LARGEST_LOGIT = 16.0  # beyond it float32 probabilities are indistinguishable from 0 and 1
_BINS = 4096


@dataclass(frozen=True)
class Calibration:
    """Converts a model's probabilities into frequencies.

    Args:
        temperature: logits are divided by it; above 1 for an overconfident network
        presence: converts an image's evidence into the probability of a lesion; None where the model has none

    Raises:
        UserError: the temperature is not a positive number
    """

    temperature: float
    presence: Presence | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature > 0):
            raise UserError(f"{CALIBRATION}.temperature is {self.temperature!r:.60}: it must be a positive number")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> Calibration | None:
        """Calibration of a model's record, None where it has none.

        Raises:
            UserError: a calibration that this version does not know
        """
        settings = as_mapping(settings, CALIBRATION)
        if not settings:
            return None
        if "temperature" not in settings:
            raise UserError(f"the model's {CALIBRATION} has no temperature, and this version supports nothing else")
        return cls(settings["temperature"], Presence.from_dict(settings))

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain types."""
        return {"temperature": self.temperature, **(self.presence.to_dict() if self.presence else {})}

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, ``float32`` of the same shape."""
        if self.temperature == 1:
            return probability
        # sigmoid(logit(p) / T) as a power of the odds, in place, since memory traffic dominates the time
        odds = inside_bounds(probability)
        np.divide(1, odds, out=odds)
        odds -= 1
        flat = odds.reshape(1, -1)
        cv2.pow(flat, 1 / self.temperature, flat)
        odds += 1
        return np.divide(1, odds, out=odds)


def fit_temperature(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Fit the temperature by maximum likelihood: the lowest cross-entropy over all pixels of validation images.

    Pixels are counted in a histogram of their logits, so memory does not depend on the number of images.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.

    Args:
        pairs: uncalibrated probabilities (H, W) of a network, and the masks (H, W) of 0 and 1

    Raises:
        UserError: no image, no lesion, or lesions only
    """
    counts = np.zeros((2, _BINS))
    sums = np.zeros(_BINS)  # sums of logits, for the exact mean of each bin
    for probability, mask in pairs:
        if np.shape(probability) != np.shape(mask):
            raise ValueError(f"probability {np.shape(probability)} and mask {np.shape(mask)} must have the same shape")
        logit = np.clip(logit_of(probability), -_LARGEST_LOGIT, _LARGEST_LOGIT).ravel()
        position = ((logit + _LARGEST_LOGIT) * ((_BINS - 1) / (2 * _LARGEST_LOGIT))).astype(np.int64)
        lesion = np.asarray(mask).ravel() > 0
        sums += np.bincount(position, logit, _BINS)
        for row, chosen in enumerate((~lesion, lesion)):
            counts[row] += np.bincount(position[chosen], minlength=_BINS)
    if not counts.any(axis=1).all():
        raise UserError("a temperature needs validation images with both lesion and background pixels")
    used = counts.sum(axis=0) > 0
    logits, negatives, positives = sums[used] / counts[:, used].sum(axis=0), *counts[:, used]

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        return float(positives @ np.logaddexp(0, -scaled) + negatives @ np.logaddexp(0, scaled)) / counts.sum()

    found = optimize.minimize_scalar(cross_entropy, bounds=(np.log(0.02), np.log(50)), method="bounded")
    return float(np.exp(found.x))


def mask_confidence(mask: np.ndarray, calibrated: np.ndarray) -> float:
    """Confidence of a mask M under calibrated probabilities p: ``2 * sum(p over M) / (sum(p) + |M|)``.

    If each pixel is lesion independently with probability p, this is the expected Dice of the mask, except that the
    ratio is taken of expectations. For an empty mask it is ``1 - max(p)``, the probability of being right about the
    pixel that is most likely to be wrong.

    Args:
        mask: 0 and 1 (H, W)
        calibrated: probabilities (H, W) from a :class:`Calibration`

    Returns:
        0 to 1
    """
    area = int(mask.sum())
    if not area:
        return 1 - float(calibrated.max())
    inside = float(calibrated.sum(where=mask.astype(bool), dtype=np.float64))
    return 2 * inside / (float(calibrated.sum(dtype=np.float64)) + area)


@dataclass(frozen=True)
class ImageRange:
    """Brightness and contrast of a model's training images, in grey levels from 0 to 255.

    Attributes:
        mean: lowest and highest mean of an image
        contrast: lowest and highest standard deviation of an image
    """

    mean: tuple[float, float] = (0.0, 255.0)
    contrast: tuple[float, float] = (5.0, 255.0)  # blank images are always outside

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> ImageRange:
        """Range from a model's record; missing entries set no limit, except against blank images.

        Raises:
            UserError: a range that this version does not know, or one that is not a pair of numbers
        """
        given = as_mapping(settings, TRAINING_IMAGES)
        if unknown := given.keys() - {"mean", "contrast"}:
            raise UserError(f"the model's {TRAINING_IMAGES} has {', '.join(unknown)}: only mean and contrast are known")
        ranges: dict[str, tuple[float, float]] = {}
        for key, pair in given.items():
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_number, pair))):
                raise UserError(f"the model's {TRAINING_IMAGES}.{key} is {pair!r:.60}: it must be two numbers")
            ranges[key] = (float(pair[0]), float(pair[1]))
        return cls(**ranges)

    def to_dict(self) -> dict[str, Any]:
        """The range as plain types."""
        return {"mean": list(self.mean), "contrast": list(self.contrast)}

    def unlike(self, prepared: np.ndarray) -> list[str]:
        """Descriptions of how an image, as the network sees it, lies outside the range."""
        mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(prepared))
        words = []
        if not self.mean[0] <= mean <= self.mean[1]:
            words.append(
                "darker than the training images" if mean < self.mean[0] else "brighter than the training images"
            )
        if not self.contrast[0] <= deviation <= self.contrast[1]:
            low = deviation < self.contrast[0]
            words.append("less contrast than the training images" if low else "more contrast than the training images")
        return words


def image_range(images: Iterable[np.ndarray]) -> ImageRange:
    """Range over training images, grey ``uint8`` (H, W) of the network's size, for :data:`TRAINING_IMAGES`.

    Raises:
        UserError: no images
    """
    statistics = np.array([[value[0, 0] for value in cv2.meanStdDev(image)] for image in images])
    if not len(statistics):
        raise UserError("the range of the training images needs at least one image")
    # rounded outwards, so that no training image lies outside
    low, high = np.floor(100 * statistics.min(axis=0)) / 100, np.ceil(100 * statistics.max(axis=0)) / 100
    return ImageRange((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
