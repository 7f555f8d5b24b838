"""Intervals and tests against scipy, hand-computed cases and simulation."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bustseg.statistics import DEFAULT_METHOD, Bootstrap, Distribution, holm, wilcoxon

SCORES = np.array([0.0, 0.91, 0.84, 0.77, 0.0, 0.95, 0.88, 0.62, 0.45, 0.9, 0.81, 0.93])


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_bca_is_scipys_on_the_same_resamples() -> None:
    scores = np.random.default_rng(4).beta(2, 0.5, 25)  # no ties: scipy tells equal means apart by rounding
    distribution = Bootstrap(25, resamples=4000, seed=3).mean(scores[:, None])
    drawn = SimpleNamespace(bootstrap_distribution=distribution.replicates[:, 0])
    for level in (0.9, 0.95):
        for ours, theirs in (("bca", "BCa"), ("percentile", "percentile")):
            expected = stats.bootstrap(
                (scores,), np.mean, n_resamples=0, confidence_level=level, method=theirs, bootstrap_result=drawn
            ).confidence_interval
            interval = distribution.interval(level, ours)  # type: ignore[arg-type]
            assert interval.estimate[0] == pytest.approx(scores.mean())
            assert (interval.low[0], interval.high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_pooled_score_is_scipys_bootstrap_of_the_ratio_of_sums() -> None:
    rng = np.random.default_rng(0)
    tp, size = rng.integers(0, 900, 40), rng.integers(1000, 3000, 40)
    ours = Bootstrap(40, resamples=20_000).ratio(tp[:, None], size[:, None]).interval()
    theirs = stats.bootstrap(
        (tp, size), lambda t, s, axis: t.sum(axis) / s.sum(axis), paired=True, vectorized=True, method="BCa", rng=1
    ).confidence_interval
    assert ours.estimate[0] == tp.sum() / size.sum()
    assert (ours.low[0], ours.high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(60)
    first, second = hard + 0.01 * rng.standard_normal(60), hard + 0.05 + 0.01 * rng.standard_normal(60)
    boot = Bootstrap(60)
    interval = (boot.mean(second[:, None]) - boot.mean(first[:, None])).interval()
    direct = boot.mean((second - first)[:, None]).interval()
    assert interval.low[0] == pytest.approx(direct.low[0])
    assert interval.high[0] == pytest.approx(direct.high[0])
    assert interval.high[0] - interval.low[0] < 0.01 < np.diff(boot.mean(first[:, None]).interval()[1:], axis=0)[0, 0]


def test_every_resample_draws_whole_groups_and_keeps_the_classes() -> None:
    groups = ["a", "a", "b", "c", "c", "c", "d", "e"]
    labels = ["benign"] * 3 + ["malignant", "benign", "malignant", "malignant", "normal"]
    boot = Bootstrap(groups, labels, resamples=500)
    weights = boot.weights[:, boot.unit]
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 7] == 1).all(), "the only normal is in every resample"
    units = {name: int(boot.unit[groups.index(name)]) for name in "abcde"}
    assert (boot.weights[:, [units["a"], units["b"]]].sum(1) == 2).all(), "two benign groups"
    assert (boot.weights[:, [units["c"], units["d"]]].sum(1) == 2).all(), "c is malignant by two of its three images"
    assert set(np.unique(boot.weights[:, units["a"]])) == {0, 1, 2}


def test_copies_in_one_group_do_not_narrow_the_interval() -> None:
    copies = np.repeat(SCORES, 4)
    names = np.repeat(np.arange(len(SCORES)), 4)
    width = {
        name: float(np.ptp(boot.mean(copies[:, None]).interval()[1:]))
        for name, boot in {"images": Bootstrap(len(copies)), "groups": Bootstrap(names)}.items()
    }
    alone = Bootstrap(len(SCORES)).mean(SCORES[:, None]).interval()
    assert width["groups"] == pytest.approx(float(alone.high[0] - alone.low[0]), abs=1e-12)
    assert width["images"] < 0.6 * width["groups"]


def test_an_image_that_does_not_count_is_left_out() -> None:
    values = np.append(SCORES, [np.nan] * 3)
    estimate, low, high = Bootstrap(len(values)).mean(values[:, None]).interval()
    assert estimate[0] == pytest.approx(SCORES.mean())
    assert low[0] < SCORES.mean() < high[0]
    nothing = Bootstrap(3).mean(column(np.nan, np.nan, np.nan)).interval()
    assert np.isnan([nothing.estimate[0], nothing.low[0], nothing.high[0]]).all()
    # resamples in which only nan were drawn have no score, and do not spoil the others
    rare = Bootstrap(4).mean(column(0.25, 0.75, np.nan, np.nan)).interval(method="percentile")
    assert (rare.low[0], rare.high[0]) == (0.25, 0.75)


def test_a_constant_score_has_no_width() -> None:
    interval = Bootstrap(9).mean(np.full((9, 1), 0.3)).interval()
    assert (interval.low[0], interval.high[0]) == pytest.approx((0.3, 0.3))


def test_the_acceleration_of_strata_is_centred_within_them() -> None:
    # two strata of three units with influences (-2, 1, 1) and (-1, -1, 2) times 2 / 3: their cubes cancel
    jackknife = column(12, 9, 9, 1, 1, -2)
    strata = np.array([0, 0, 0, 1, 1, 1])
    zero = Distribution(np.zeros(1), np.zeros((1, 1)), jackknife, strata)
    assert zero._acceleration()[0] == pytest.approx(0)
    one = Distribution(np.zeros(1), np.zeros((1, 1)), jackknife[:3], strata[:3])
    assert one._acceleration()[0] == pytest.approx((-8 + 1 + 1) / (6 * 6**1.5))


def test_the_seed_decides() -> None:
    first, again, other = (Bootstrap(12, seed=seed).mean(SCORES[:, None]).interval().low[0] for seed in (0, 0, 1))
    assert first == again != other


def test_twenty_metrics_of_five_runs_take_less_than_three_seconds() -> None:
    values = np.random.default_rng(0).random((78, 100))
    started = time.process_time()
    Bootstrap(78, resamples=10_000).mean(values).interval()
    assert time.process_time() - started < 3


def test_wilcoxon_by_hand_and_against_scipy() -> None:
    # five positive differences: of the 2^5 assignments of signs, two are as extreme
    assert wilcoxon(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    # |-0.1| has rank 1: the sums of ranks 0 and 1 have one assignment each, on both sides
    assert wilcoxon(np.array([-0.1, 0.2, 0.3, 0.4, 0.5, 0.0, np.nan])) == pytest.approx(4 / 32)
    assert wilcoxon(np.zeros(9)) == 1.0
    rng = np.random.default_rng(2)
    first, second = rng.random(78), rng.random(78)
    assert wilcoxon(first - second) == pytest.approx(stats.wilcoxon(first, second).pvalue)


def test_wilcoxon_counts_a_group_once() -> None:
    differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert wilcoxon(np.repeat(differences, 8), np.repeat(np.arange(5), 8)) == pytest.approx(2 / 32)
    # the group's mean: +0.3 and -0.1 are +0.1
    assert wilcoxon(np.array([0.3, -0.1, 0.2, 0.3, 0.4, 0.5]), list("aabcde")) == pytest.approx(2 / 32)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        # 0.01 * 4; 0.02 * 3; 0.03 * 2 is raised to the 0.06 before it; 0.04 * 1 too
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.001, 0.6], [0.08, 0.003, 0.6]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(p: list[float], adjusted: list[float]) -> None:
    assert holm(p).tolist() == pytest.approx(adjusted)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    from benchmarks import bootstrap_coverage as population

    rng = np.random.default_rng(2025)
    truth = population.mean_score()
    plain = Bootstrap(78, resamples=2000, seed=5)
    values = population.independent(rng, 78, 4000)
    assert values.mean() == pytest.approx(truth, abs=0.002)
    assert 0.93 < population.coverage(plain, values, truth, DEFAULT_METHOD)[0] < 0.97

    values, groups = population.clustered(rng, 78, 4000)
    assert population.coverage(plain, values, truth, DEFAULT_METHOD)[0] < 0.90, "copies count as evidence"
    by_group = Bootstrap(groups, resamples=2000, seed=5)
    assert 0.93 < population.coverage(by_group, values, truth, DEFAULT_METHOD)[0] < 0.97

    values, label, truth = population.classes(rng, 78, 4000)
    within = Bootstrap(78, strata=label, resamples=2000, seed=5)
    assert 0.93 < population.coverage(within, values, truth, DEFAULT_METHOD)[0] < 0.97
