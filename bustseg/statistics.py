"""Intervals and tests for scores that are averages over images.

Every score of this project is a ratio of two sums over images: a mean is sum(score) / sum(1) over the images that
count, a pooled Dice is sum(2 tp) / sum(2 tp + fp + fn). So a bootstrap resample is a vector of weights (how often each
image was drawn), and all resamples of all scores of all runs are two matrix products. Images that belong together
(copies, images of one patient) are drawn together, and strata (classes) keep their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

Method = Literal["bca", "percentile"]
DEFAULT_METHOD: Method = "bca"
"""Closest to 95 % on skewed scores in `benchmarks/bootstrap_coverage.py`."""

_CHUNK = 2**21  # weights turned into float64 at once: 16 MB


class Interval(NamedTuple):
    """Estimates with their confidence limits, each float64 of shape (k,); nan where a score is not defined."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Distribution:
    """Bootstrap distribution of k scores.

    The difference of two of them is the distribution of the paired difference, provided that both came from the same
    :class:`Bootstrap`: then every resample drew the same images for both.

    Attributes:
        estimate: (k,) scores of the images as they are
        replicates: (resamples, k) scores of the resamples
        jackknife: (units, k) scores without one unit (image or group)
        strata: (units,) stratum of each unit, 0, 1, ...
    """

    estimate: np.ndarray
    replicates: np.ndarray
    jackknife: np.ndarray
    strata: np.ndarray

    def __sub__(self, other: Distribution) -> Distribution:
        return Distribution(
            self.estimate - other.estimate,
            self.replicates - other.replicates,
            self.jackknife - other.jackknife,
            self.strata,
        )

    def interval(self, level: float = 0.95, method: Method = DEFAULT_METHOD) -> Interval:
        """Two-sided confidence interval of each score.

        Args:
            level: confidence, 0 to 1
            method: ``percentile``, or ``bca``: bias-corrected and accelerated (Efron 1987, J. Am. Stat. Assoc. 82,
                eq. 2.3), the acceleration over strata as in Davison and Hinkley (1997), eq. 5.25
        """
        alpha = np.array([(1 - level) / 2, (1 + level) / 2])
        ordered = np.sort(self.replicates, axis=0)  # nan (a resample without a defined score) sorts last
        defined = np.isfinite(ordered).sum(0)
        share = np.broadcast_to(alpha[:, None], (2, ordered.shape[1]))
        if method == "bca":
            share = self._corrected(ordered, defined, alpha)
        with np.errstate(invalid="ignore"):
            low, high = _quantiles(ordered, defined, share)
        undefined = (defined == 0) | ~np.isfinite(self.estimate)
        return Interval(self.estimate, *(np.where(undefined, np.nan, limit) for limit in (low, high)))

    def _corrected(self, ordered: np.ndarray, defined: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        """Quantiles (2, k) of the replicates that BCa uses instead of ``alpha``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            # replicates equal to the estimate count half; rounding makes them differ in the last bits
            slack = 1e-12 * np.maximum(1, np.abs(self.estimate))
            below = (ordered < self.estimate - slack).sum(0)
            upto = (ordered <= self.estimate + slack).sum(0)
            bias = special.ndtri((below + upto) / (2 * defined))
            shifted = bias + special.ndtri(alpha)[:, None]
            corrected = special.ndtr(bias + shifted / (1 - self._acceleration() * shifted))
        # all replicates lie on one side of the estimate: no correction is possible
        return np.where(np.isfinite(corrected), corrected, alpha[:, None])

    def _acceleration(self) -> np.ndarray:
        influence = np.zeros_like(self.jackknife)
        for stratum in range(self.strata.max(initial=-1) + 1):
            own = self.strata == stratum
            part = self.jackknife[own]
            influence[own] = (part.mean(0) - part) * (own.sum() - 1) / own.sum()
        influence = np.nan_to_num(influence)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nan_to_num((influence**3).sum(0) / (6 * (influence**2).sum(0) ** 1.5))


def _quantiles(ordered: np.ndarray, defined: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quantiles ``share`` (m, k) of each sorted column's first ``defined`` (k,) values, interpolated linearly."""
    place = np.clip(share, 0, 1) * np.maximum(defined - 1, 0)
    lower = np.floor(place).astype(int)
    upper = np.minimum(lower + 1, np.maximum(defined - 1, 0))
    columns = np.arange(ordered.shape[1])
    first, second = ordered[lower, columns], ordered[upper, columns]
    return first + (second - first) * (place - lower)


class Bootstrap:
    """Resamples of a set of images, drawn once and used for all scores, so that differences are paired.

    Args:
        groups: (n,) names of the groups that are drawn together, such as patients or copies; or the number of images,
            each drawn by itself
        strata: (n,) names of the strata, such as classes, which keep their number of units in every resample; a group
            whose images lie in several belongs to the most frequent
        resamples: number of resamples
        seed: the same seed gives the same resamples
    """

    def __init__(
        self,
        groups: int | Sequence[object] | np.ndarray,
        strata: Sequence[object] | np.ndarray | None = None,
        resamples: int = 10_000,
        seed: int = 0,
    ) -> None:
        names = np.arange(groups) if isinstance(groups, int) else np.asarray(groups)
        if not len(names):
            raise ValueError("a bootstrap needs at least one image")
        first, self.unit = _codes(names)
        self.units = len(first)
        self.strata = np.zeros(self.units, dtype=int)
        if strata is not None:
            labels, code = _codes(np.asarray(strata))
            votes = np.zeros((self.units, len(labels)), dtype=int)
            np.add.at(votes, (self.unit, code), 1)
            self.strata = _codes(votes.argmax(1))[1]
        rng = np.random.default_rng(seed)
        self.weights = np.zeros((resamples, self.units), dtype=np.uint16)
        for stratum in range(self.strata.max() + 1):
            members = np.flatnonzero(self.strata == stratum)
            drawn = rng.integers(len(members), size=(resamples, len(members)))
            flat = (drawn + len(members) * np.arange(resamples)[:, None]).ravel()
            counts = np.bincount(flat, minlength=resamples * len(members))
            self.weights[:, members] = counts.reshape(resamples, -1)

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Distribution:
        """Distribution of sum(numerator) / sum(denominator), both summed over images.

        A resample whose denominator is 0 has no score (nan) and is left out of the intervals.

        Args:
            numerator: (n, k)
            denominator: (n, k), not negative
        """
        both = np.concatenate([numerator, denominator], axis=1).astype(np.float64)
        sums = np.zeros((self.units, both.shape[1]))
        np.add.at(sums, self.unit, both)
        total = sums.sum(0)
        rows = max(_CHUNK // self.units, 1)
        drawn = [
            self.weights[start : start + rows].astype(np.float64) @ sums for start in range(0, len(self.weights), rows)
        ]
        return Distribution(_quotient(total), _quotient(np.concatenate(drawn)), _quotient(total - sums), self.strata)

    def mean(self, values: np.ndarray) -> Distribution:
        """Distribution of the mean over images of ``values`` (n, k); an image whose value is nan does not count."""
        counted = ~np.isnan(values)
        return self.ratio(np.where(counted, values, 0), counted)


def _codes(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, inverse = np.unique(names, return_inverse=True)
    return unique, inverse.ravel()


def _quotient(sums: np.ndarray) -> np.ndarray:
    numerator, denominator = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 1e-12, numerator / denominator, np.nan)


def wilcoxon(differences: np.ndarray, groups: Sequence[object] | np.ndarray | None = None) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences; its null hypothesis is symmetry about 0.

    Differences of 0 are dropped, as in Wilcoxon's original test; if all are, p is 1. Images of one group are not
    independent, so a group counts once, with the mean of its differences.

    Args:
        differences: (n,); nan is dropped
        groups: (n,) names of the images' groups
    """
    differences = np.asarray(differences, dtype=np.float64)
    counted = ~np.isnan(differences)
    if groups is not None:
        _, unit = _codes(np.asarray(groups)[counted])
        differences = np.bincount(unit, differences[counted]) / np.bincount(unit)
    else:
        differences = differences[counted]
    # values that differ only by rounding must count as equal, so that ties are ties
    differences = np.round(differences, 12)
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) else 1.0


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P values of one family of tests, adjusted so that the chance of any false positive stays below the level.

    Source: Holm (1979), Scand. J. Stat. 6:65, in the form of adjusted p values: in rising order the i-th of m is
    multiplied by m - i + 1, never less than the one before, and at most 1.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1) if len(values) else scaled
    return adjusted
