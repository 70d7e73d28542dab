"""Agreement with retraining, against figures computed by hand, by scipy, and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from idealmix.diagnostics.agreement import (
    Interval,
    Judge,
    Measured,
    agreement,
    central_differences,
    least_pearson,
    pearson,
    sign_agreement,
    slope,
    spearman,
)

RNG = np.random.default_rng(0)


def noisy(true: np.ndarray, noise: float, seeds: int = 6, seed: int = 0) -> Measured:
    """Slopes of retrainings that scatter about the true ones."""
    rng = np.random.default_rng(seed)
    off = ~np.eye(*true.shape, dtype=bool)
    return Measured(true + noise * rng.normal(size=(seeds, *true.shape)), np.zeros(true.shape), off)


def test_central_difference_by_hand():
    # two rows of 1 and 3 tokens, two seeds, one entry; width 1
    low, high = np.array([[[4.0, 8.0]], [[4.0, 4.0]]]), np.array([[[2.0, 6.0]], [[4.0, 8.0]]])
    slopes, variance = central_differences(low, high, np.array([1, 3]), 1.0)
    assert slopes.tolist() == [[-1.0], [1.0]]  # (-2 - 2) / 4 and (0 + 4) / 4
    # mean slope 0; rows changed by -1 and +1 on average; errors -1/4 and 1/4; variance 2/1 * (1/16 + 1/16)
    assert variance == pytest.approx(0.25)


def test_central_difference_is_the_derivative_of_a_parabola():
    beta, counts = np.array([-0.5, 0.5]), np.array([2, 5, 1])
    sums = [counts * (3 + 0.7 * b + 0.4 * b**2) for b in beta]
    slopes, variance = central_differences(sums[0][None], sums[1][None], counts, 1.0)
    assert slopes[0] == pytest.approx(0.7)
    assert variance == pytest.approx(0.0, abs=1e-20)  # every row moves alike
    assert central_differences(sums[0][None], sums[1][None], counts, 2.0)[0][0] == pytest.approx(0.35)


def test_the_rows_variance_is_that_of_fresh_rows():
    counts, draws = 1 + RNG.poisson(3, size=(4000, 40)), 4000
    change = counts * -0.2 + RNG.normal(size=counts.shape) * 0.5 * counts
    found = [central_differences(np.zeros((1, 40)), change[k][None], counts[k], 1.0) for k in range(draws)]
    spread = np.var([slopes[0] for slopes, _ in found])
    assert np.mean([variance for _, variance in found]) == pytest.approx(spread, rel=0.06)


def test_standard_error_and_what_is_told_from_zero():
    slopes = np.array([[[1.0, -1.0]], [[2.0, 1.0]], [[3.0, 0.5]]])
    measured = Measured(slopes, np.zeros((1, 2)), np.array([[False, True]]))
    assert measured.mean.tolist() == [[2.0, pytest.approx(1 / 6)]]
    # variances over seeds 1 and 13/12, pooled 25/24; of a mean of three a third of that
    assert measured.se[0].tolist() == [pytest.approx(math.sqrt(25 / 72))] * 2
    # t = 3.39 at 4 degrees of freedom: p = 0.027
    assert measured.told.tolist() == [[True, False]]
    assert Measured(-slopes, measured.row_variance, measured.off_diagonal).told.tolist() == [[True, False]]
    blurred = Measured(slopes, np.ones((1, 2)), measured.off_diagonal)
    assert blurred.se[0, 0] == pytest.approx(math.sqrt(1 + 25 / 72))
    assert not blurred.told.any()


def test_test_sets_have_their_own_noise():
    slopes = np.array([[[1.0, 0.0], [5.0, 9.0]], [[3.0, 0.0], [5.0, 9.0]]])
    measured = Measured(slopes, np.zeros((2, 2)), np.eye(2, dtype=bool))
    assert measured.se.tolist() == [[pytest.approx(math.sqrt(0.5))] * 2, [0.0, 0.0]]


def test_correlations_against_scipy():
    x, y = RNG.normal(size=30), RNG.normal(size=30)
    y[3] = y[4]
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])


def test_the_smallest_correlation_leaves_each_entry_out():
    x = np.append(RNG.normal(size=12), 40.0)
    y = np.append(RNG.normal(size=12), 35.0)
    brute = min(stats.pearsonr(np.delete(x, k), np.delete(y, k))[0] for k in range(13))
    assert least_pearson(x, y) == pytest.approx(brute)
    assert pearson(x, y) > 0.9 > 0.6 > least_pearson(x, y)  # one entry carried it


@pytest.mark.parametrize("measure", [pearson, least_pearson, spearman, sign_agreement])
def test_too_few_entries_are_undefined(measure):
    assert math.isnan(measure(np.zeros(0), np.zeros(0)))


def test_nothing_predicted_is_undefined():
    assert math.isnan(slope(np.ones(3), np.zeros(3)))
    assert math.isnan(pearson(np.arange(3.0), np.ones(3)))
    assert math.isnan(least_pearson(np.arange(4.0), np.ones(4)))


def test_slope_and_signs_by_hand():
    assert slope(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(8 / 13)
    assert slope(np.array([-0.3, 0.6]), np.array([-3.0, 6.0])) == pytest.approx(
        0.1
    )  # ten times over-predicted
    assert sign_agreement(np.array([1.0, -1.0, 2.0, -0.1]), np.array([5.0, 3.0, 0.1, -9.0])) == 0.75


def test_each_measure_counts_its_own_entries():
    measured, predicted = np.array([-4.0, 1.0, -1.0, 2.0]), np.array([-3.0, -2.0, 1.0, 2.0])
    off, clear, told = (np.array(m, dtype=bool) for m in ([0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]))
    found = agreement(measured, predicted, off, clear, told)
    assert found["pearson_off_diagonal"] == pytest.approx(stats.pearsonr(measured[1:], predicted[1:])[0])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["sign_agreement"] == pytest.approx(2 / 3)
    assert found["slope"] == pytest.approx(13 / 18)


def test_suites_are_pooled_and_the_counts_told():
    a, b = noisy(RNG.normal(size=(3, 4)), 0.01), noisy(RNG.normal(size=(2, 3)), 0.01, seed=1)
    judge = Judge([a, b], draws=20)
    assert judge.counts() == {"entries": 18, "off_diagonal": 13, "clear": 18, "told": 18}
    predicted = [2 * a.mean, 2 * b.mean]
    values = judge.values(predicted)
    assert values["pearson"] == pytest.approx(1.0)
    assert values["slope"] == pytest.approx(0.5)
    pooled = np.concatenate([a.mean.ravel(), b.mean.ravel()])
    random = [RNG.normal(size=(3, 4)), RNG.normal(size=(2, 3))]
    flat = np.concatenate([each.ravel() for each in random])
    assert judge.values(random)["pearson"] == pytest.approx(least_pearson(pooled, flat))


def test_the_noise_ceiling_is_what_halves_agree_to():
    true = RNG.normal(size=(20, 20))
    measured = noisy(true, 1.0, seeds=4)
    # halves of two seeds: signal variance 1, noise variance 1/2: reliability 1 / 1.5
    ceiling = Judge([measured], draws=50).noise_ceiling()
    assert ceiling.value == pytest.approx(1 / 1.5, abs=0.05)
    assert ceiling.low < ceiling.value < ceiling.high
    halves = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    brute = [
        pearson(
            measured.slopes[list(h)].mean(0).ravel(), np.delete(measured.slopes, h, axis=0).mean(0).ravel()
        )
        for h in halves
    ]
    assert ceiling.value == pytest.approx(np.mean(brute))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held, rng = 0, np.random.default_rng(1)
    for trial in range(25):
        predicted = rng.normal(size=(4, 12))
        measured = noisy(0.5 * predicted + 0.3 * rng.normal(size=(4, 12)), 0.3, seeds=5, seed=trial)
        found = Judge([measured], draws=100, seed=trial).intervals([predicted])["slope"]
        held += found.low <= 0.5 <= found.high
    assert 20 <= held <= 25


def test_an_advantage_is_paired():
    true = RNG.normal(size=(4, 10))
    judge = Judge([noisy(true, 0.2)], draws=100)
    good, bad = [true + 0.1 * RNG.normal(size=true.shape)], [RNG.normal(size=true.shape)]
    found = judge.advantage(good, bad)
    assert found["pearson"].excludes_zero
    assert found["pearson"].low > 0
    assert not judge.advantage(bad, bad)["pearson"].excludes_zero
    assert judge.advantage(bad, bad)["pearson"] == Interval(0.0, 0.0, 0.0)
    assert "slope" not in found


def test_the_bootstrap_is_seeded():
    measured, predicted = noisy(RNG.normal(size=(3, 3)), 0.5), [RNG.normal(size=(3, 3))]
    first, again, other = (Judge([measured], draws=50, seed=s).intervals(predicted) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_undefined_is_null_in_json():
    assert Interval.of(float("nan"), np.array([np.nan])).to_json() == {
        "value": None,
        "low": None,
        "high": None,
    }
    assert Interval.of(0.5, np.array([np.nan, *np.linspace(0, 1, 41)])).to_json() == pytest.approx(
        {"value": 0.5, "low": 0.025, "high": 0.975}
    )
