"""How often a 95 % interval contains the truth: simulated test sets from a known population of Dice scores.

    python benchmarks/bootstrap_coverage.py

The population resembles a segmentation network's results on BUSI: 85 % of the lesions found, with a Dice from Beta(8,
2), 15 % missed, with a Dice of 0. `cluster` sets hold groups of 1 to 4 images whose scores resemble each other
(intra-group correlation 0.5); `classes` sets have a fixed share of 20 % normals that count 0 (convention `paper`) and
malignant lesions that are harder.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import special, stats

from bustseg.statistics import Bootstrap, Method

FOUND, BETA = 0.85, (8.0, 2.0)
SIZES = (30, 78, 200)


def scores(uniform: np.ndarray, found: float = FOUND) -> np.ndarray:
    """Dice whose quantile is ``uniform``: 0 for a miss, else from the Beta distribution."""
    hit = np.clip((uniform - (1 - found)) / found, 0, 1)
    return np.where(uniform < 1 - found, 0.0, stats.beta.ppf(hit, *BETA))


def mean_score(found: float = FOUND) -> float:
    """The population's mean Dice."""
    return found * BETA[0] / sum(BETA)


def independent(rng: np.random.Generator, n: int, sets: int) -> np.ndarray:
    """Scores of ``sets`` test sets of ``n`` images, (n, sets)."""
    return scores(rng.random((n, sets)))


def clustered(rng: np.random.Generator, n: int, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, sets) of images in groups of 1, 2, 3, 4, 1, ..., and the groups (n,)."""
    sizes = np.resize([1, 2, 3, 4], n)
    groups = np.repeat(np.arange(n), sizes)[:n]
    shared = rng.standard_normal((groups.max() + 1, sets))[groups]
    return scores(special.ndtr(np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.standard_normal((n, sets)))), groups


def classes(rng: np.random.Generator, n: int, sets: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores under ``paper`` (n, sets) of a split with fixed class counts, the classes (n,), and the true mean."""
    label = np.array([0] * round(0.54 * n) + [1] * round(0.26 * n))
    label = np.append(label, [2] * (n - len(label)))
    found = np.array([0.95, 0.65])
    values = np.zeros((n, sets))
    for code in (0, 1):
        own = label == code
        values[own] = scores(rng.random((own.sum(), sets)), found[code])
    truth = sum((label == code).mean() * mean_score(found[code]) for code in (0, 1))
    return values, label, float(truth)


def coverage(boot: Bootstrap, values: np.ndarray, truth: float, method: Method) -> tuple[float, float]:
    """Share of the columns whose interval contains the truth, and the intervals' mean width."""
    interval = boot.mean(values).interval(method=method)
    held = (interval.low <= truth) & (truth <= interval.high)
    return float(held.mean()), float((interval.high - interval.low).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=4000, help="simulated test sets per line (default 4000)")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples per set (default 2000)")
    args = parser.parse_args()
    error = 100 * np.sqrt(0.95 * 0.05 / args.sets)
    print(f"coverage of 95 % intervals in per cent (standard error {error:.1f}), and their mean width")
    print(f"{'population':<12}{'resampled':<22}" + "".join(f"{f'n = {n}':>18}" for n in SIZES))
    for method in ("percentile", "bca"):
        lines: dict[tuple[str, str], list[str]] = {}
        for n in SIZES:
            rng = np.random.default_rng(n)
            plain = Bootstrap(n, resamples=args.resamples, seed=1)

            def add(population: str, how: str, result: tuple[float, float], lines: dict = lines) -> None:
                lines.setdefault((population, how), []).append(f"{100 * result[0]:.1f} ({result[1]:.3f})")

            values = independent(rng, n, args.sets)
            add("independent", "images", coverage(plain, values, mean_score(), method))
            values, groups = clustered(rng, n, args.sets)
            add("cluster", "images", coverage(plain, values, mean_score(), method))
            boot = Bootstrap(groups, resamples=args.resamples, seed=1)
            add("cluster", "groups", coverage(boot, values, mean_score(), method))
            values, label, truth = classes(rng, n, args.sets)
            add("classes", "images", coverage(plain, values, truth, method))
            boot = Bootstrap(n, strata=label, resamples=args.resamples, seed=1)
            add("classes", "images within class", coverage(boot, values, truth, method))
        print(method)
        for (population, how), cells in lines.items():
            print(f"{population:<12}{how:<22}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
