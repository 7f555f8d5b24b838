"""Comparisons of rows over seeds and images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from studies.paper_claims import claims, difference


def rows(shift: float, seeds: int = 3, images: int = 60) -> dict[int, pd.Series]:
    base = np.random.default_rng(0).uniform(0.3, 0.9, images)
    rng = np.random.default_rng(round(1000 * shift) + 1)
    return {seed: pd.Series(base + shift + rng.normal(0, 0.01, images)) for seed in range(seeds)}


def test_a_difference_and_its_interval() -> None:
    mean, low, high, p = difference(rows(0.05), rows(0.0))
    assert mean == pytest.approx(0.05, abs=0.005)
    assert low < mean < high
    assert low > 0.04
    assert p < 1e-6


def test_only_common_seeds_count() -> None:
    first, second = rows(0.05), rows(0.0, seeds=1)
    first[1] += 10
    assert difference(first, second)[0] == pytest.approx(0.05, abs=0.01)


def test_verdicts() -> None:
    found = claims({1: rows(0.05), 7: rows(0.0), 2: rows(0.1), 3: rows(0.0)}, {1: 0.6, 7: 0.5, 2: 0.5, 3: 0.55})
    verdict = dict(zip(found["rows"], found["verdict"], strict=True))
    assert verdict == {"1, 7": "the same", "3, 7": "not decided", "1, 3": "the same", "1, 2": "the opposite"}
    assert found.loc[0, "its difference"] == "+0.100"
