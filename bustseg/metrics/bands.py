"""Uncertainty of curves: pointwise 95 % bootstrap bands over images of the same kind.

Images (or groups of them, such as patients) are drawn with replacement within their classes, as in
:mod:`bustseg.statistics`, and the curve of each resample is evaluated at the same points: at each false positive rate
of a ROC curve ("vertical averaging", Fawcett 2006, Pattern Recognition Letters 27:861, section 7.1), each recall of a
precision-recall curve, and each threshold. The limits are percentiles of these values.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bustseg.metrics.curves import SWEEP
from bustseg.metrics.sweep import ImageSweeps
from bustseg.statistics import Bootstrap

RESAMPLES = 1000
"""Number of resamples of a band, enough to make the error of the limits smaller than the width of the drawn line."""

FALSE_POSITIVE_RATES = np.concatenate([np.linspace(0, 0.1, 51), np.linspace(0.1, 1, 91)[1:]])
"""Points at which the band of a ROC curve is evaluated, denser where such curves bend."""

RECALLS = np.linspace(0.02, 1, 99)
"""Points at which the band of a precision-recall curve is evaluated."""


class CurveBands:
    """Bands of the curves of a set of images.

    Args:
        images: counts of each image by threshold
        groups: (n,) names of the groups that are drawn together
        strata: (n,) classes, which keep their number of images
        level: confidence of the bands
        seed: the same seed gives the same resamples

    Raises:
        ValueError: no image has a lesion, or none has background
    """

    def __init__(
        self, images: ImageSweeps, groups: np.ndarray, strata: np.ndarray, level: float = 0.95, seed: int = 0
    ) -> None:
        if not images.lesion.any() or not images.background.any():
            raise ValueError("bands need both lesion and background pixels")
        self.images = images
        self.level = level
        self._boot = Bootstrap(groups, strata, RESAMPLES, seed)
        levels = _levels(images)
        tp, fp = images.above(levels)
        columns = [images.lesion[:, None], images.background[:, None], tp, fp]
        sums = self._resampled(np.concatenate(columns, axis=1).astype(np.float64))
        self._lesion, self._background = sums[:, :1], sums[:, 1:2]
        # falling thresholds, so that rates rise
        self._tp, self._fp = sums[:, 2 : 2 + len(levels)][:, ::-1], sums[:, 2 + len(levels) :][:, ::-1]

    def _resampled(self, values: np.ndarray) -> np.ndarray:
        """Sums over the images (n, k) of every resample, (resamples, k)."""
        by_unit = np.zeros((self._boot.units, values.shape[1]))
        np.add.at(by_unit, self._boot.unit, values)
        return self._boot.weights.astype(np.float64) @ by_unit

    def _limits(self, replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Limits (k,) of replicates (resamples, k), ignoring nan."""
        defined = replicates[~np.isnan(replicates).all(axis=1)]
        low, high = np.nanquantile(defined, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def _rates(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates of every resample that defines them, from 0 to 1, (resamples, levels + 2)."""
        defined = (self._lesion[:, 0] > 0) & (self._background[:, 0] > 0)
        ends = [np.zeros((int(defined.sum()), 1)), np.ones((int(defined.sum()), 1))]
        fpr, tpr = (
            np.concatenate([ends[0], counts[defined] / total[defined], ends[1]], axis=1)
            for counts, total in ((self._fp, self._background), (self._tp, self._lesion))
        )
        return fpr, tpr

    def roc(self) -> pd.DataFrame:
        """Columns ``false_positive_rate``, ``low``, ``high``: limits of the true positive rate."""
        read = [np.interp(FALSE_POSITIVE_RATES, fpr, tpr) for fpr, tpr in zip(*self._rates(), strict=True)]
        low, high = self._limits(np.stack(read))
        return pd.DataFrame({"false_positive_rate": FALSE_POSITIVE_RATES, "low": low, "high": high})

    def auc(self) -> tuple[float, float]:
        """Limits of the area under the ROC curve."""
        fpr, tpr = self._rates()
        low, high = self._limits(np.trapezoid(tpr, fpr, axis=1)[:, None])
        return float(low[0]), float(high[0])

    def precision_recall(self) -> pd.DataFrame:
        """Columns ``recall``, ``low``, ``high``: limits of the precision; only recalls that most resamples reach."""
        read = []
        for tp, fp, lesion in zip(self._tp, self._fp, self._lesion[:, 0], strict=True):
            predicted = tp + fp > 0
            if lesion > 0 and predicted.any():
                recall, precision = tp[predicted] / lesion, tp[predicted] / (tp + fp)[predicted]
                read.append(np.interp(RECALLS, recall, precision, left=np.nan, right=np.nan))
        replicates = np.stack(read)
        reached = np.isfinite(replicates).mean(0) >= self.level
        low, high = self._limits(replicates[:, reached])
        return pd.DataFrame({"recall": RECALLS[reached], "low": low, "high": high})

    def by_threshold(self) -> pd.DataFrame:
        """Limits at each threshold of :data:`SWEEP`.

        Columns ``threshold``, ``dice_lesion_low``, ``dice_lesion_high``, and with normals
        ``false_positive_rate_normal_low`` and ``_high``.
        """
        found = {"threshold": SWEEP.numpy()}
        dice, lesion = self.images.dice, self.images.lesion > 0
        for name, values, own in (
            ("dice_lesion", dice, lesion),
            ("false_positive_rate_normal", 1 - dice, ~lesion),
        ):
            if own.any():
                counted = np.where(own, 1.0, 0.0)
                total = self._resampled(counted[:, None])
                with np.errstate(invalid="ignore", divide="ignore"):
                    means = np.where(total > 0, self._resampled(values * counted[:, None]) / total, np.nan)
                found[f"{name}_low"], found[f"{name}_high"] = self._limits(means)
        return pd.DataFrame(found)


def _levels(images: ImageSweeps, n: int = 150) -> np.ndarray:
    """Rising logits that follow the distribution of the images' logits, which may fill only a narrow range."""
    shares = np.concatenate([np.linspace(0, 1, n // 2), 1 - np.logspace(-4, -1, n // 2)])
    known = (logits[np.isfinite(logits)] for logits in (images.lesion_logits, images.background_logits))
    return np.unique(np.concatenate([np.quantile(logits, shares) for logits in known if len(logits)]))
