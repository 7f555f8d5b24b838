"""Whether an image shows a lesion at all: one calibrated probability per image, and measures of its quality.

The evidence comes from the segmentation's logits (:func:`bustseg.masks.evidence_of`). Two numbers, fitted on
images that were not trained on, turn it into the probability that there is a lesion; they are stored with a model
beside its temperature. Without them no presence is reported. It never changes a mask.

Needs only NumPy and SciPy, since an exported model predicts without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from bustseg.bounds import is_number
from bustseg.errors import UserError

_PREFIX = "presence_"
BINS = 10
"""Number of bins of equal width in which the calibration error compares probabilities with shares."""


@dataclass(frozen=True)
class Presence:
    """The probability of a lesion, ``sigmoid(scale * evidence + offset)``.

    It holds for images among which lesions are as frequent as among those that it was fitted on.

    Args:
        scale, offset: factor of the evidence (a logit), and what is added to it
        lesions, normals: numbers of images with and without a lesion that it was fitted on

    Raises:
        UserError: a number is not finite, or the scale is below 0
    """

    scale: float
    offset: float
    lesions: int = 0
    normals: int = 0

    def __post_init__(self) -> None:
        numbers = (self.scale, self.offset, self.lesions, self.normals)
        if not all(map(is_number, numbers)) or self.scale < 0:
            raise UserError(
                f"the calibration of presence is {numbers!r:.200}: it needs a scale of 0 or more, an offset and two "
                "counts"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Presence | None:
        """The presence that :meth:`to_dict` wrote among other settings; None where there is none.

        Raises:
            UserError: a setting is missing, or unknown to this version
        """
        own = {name.removeprefix(_PREFIX): value for name, value in settings.items() if name.startswith(_PREFIX)}
        if not own:
            return None
        if not {"scale", "offset"} <= own.keys() <= {"scale", "offset", "lesions", "normals"}:
            raise UserError(f"the calibration of presence has {', '.join(sorted(own))}: it needs scale and offset")
        return cls(**own)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain types, under names that begin with ``presence_``."""
        return {f"{_PREFIX}{name}": value for name, value in asdict(self).items()}

    def __call__(self, evidence: np.ndarray | float) -> np.ndarray:
        """Probabilities, float64, of the same shape as the evidence."""
        return special.expit(self.scale * np.asarray(evidence, np.float64) + self.offset)


def fit_presence(evidence: np.ndarray, lesion: np.ndarray) -> Presence | None:
    """Fit the presence by maximum likelihood on held-out images; None unless some show a lesion and some do not.

    Logistic regression on one number. The targets are those of Platt (1999, Probabilistic outputs for support vector
    machines, section 2.2), (n + 1) / (n + 2) of n lesion images and 1 / (m + 2) of m others, so that a few perfectly
    separable images do not give certainty.

    Args:
        evidence: (n,) of images that were not trained on; values that are not finite are left out
        lesion: (n,) whether the image shows a lesion
    """
    evidence, lesion = np.asarray(evidence, np.float64), np.asarray(lesion, bool)
    lesion, evidence = lesion[np.isfinite(evidence)], evidence[np.isfinite(evidence)]
    positives, negatives = int(lesion.sum()), int((~lesion).sum())
    if not positives or not negatives:
        return None
    target = np.where(lesion, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = evidence.mean(), evidence.std() or 1.0
    x = (evidence - centre) / spread

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * x + parameters[1]
        error = special.expit(z) - target
        return float((np.logaddexp(0, z) - target * z).mean()), np.array([(error * x).mean(), error.mean()])

    # more evidence must never make a lesion less probable
    found = optimize.minimize(cross_entropy, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    slope, level = found.x
    return Presence(float(slope / spread), float(level - slope * centre / spread), positives, negatives)


def detection_auc(score: np.ndarray, lesion: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """How often an image with a lesion scores above one without (area under the ROC curve); ties count one half.

    Args:
        score: (n,)
        lesion: (n,) bool
        weights: (r, n) how often each image was drawn in each of r resamples; once each when not given

    Returns:
        (r,); nan where either kind of image is missing
    """
    weights = np.ones((1, len(score))) if weights is None else weights
    if not len(score):
        return np.full(len(weights), np.nan)
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(score)[order], prepend=np.nan) != 0)
    kinds = [np.asarray(lesion, bool)[order], ~np.asarray(lesion, bool)[order]]
    with_one, without = (np.add.reduceat(weights[:, order] * kind, starts, axis=1) for kind in kinds)
    below = np.cumsum(without, axis=1) - without / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (with_one * below).sum(1) / (with_one.sum(1) * without.sum(1))


def calibration_error(probability: np.ndarray, lesion: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean over images of the gap between their bin's probability and share of lesions.

    Args:
        probability: (n,) from 0 to 1, in :data:`BINS` bins of equal width
        lesion: (n,) bool
        weights: as of :func:`detection_auc`

    Returns:
        (r,); nan without images
    """
    weights = np.ones((1, len(probability))) if weights is None else weights
    bins = np.minimum((np.asarray(probability) * BINS).astype(int), BINS - 1)
    excess = (np.asarray(probability) - np.asarray(lesion, float))[:, None] * (bins[:, None] == np.arange(BINS))
    with np.errstate(invalid="ignore"):
        return np.abs(weights @ excess).sum(1) / weights.sum(1)
