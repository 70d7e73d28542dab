"""The three outcomes of a round: hand-computed errors, error rates and power by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from idealmix.decision import Decision, Difference, decide


def test_combined_error_and_degrees_of_freedom_by_hand():
    """Rows: se 0.03 with 20 dof; seed: sd 0.02 from 3 runs, so 2 * 0.0004 with 2 dof."""
    se, dof = Difference(-0.1, 0.03, 20, seed_sd=0.02, seeds=3).error()
    assert se == pytest.approx(math.sqrt(0.0009 + 0.0008))
    assert dof == pytest.approx(0.0017**2 / (0.0009**2 / 20 + 0.0008**2 / 2))
    # two trainings of each mixture halve the seed's part
    assert Difference(-0.1, 0.03, 20, 0.02, 3).error(runs=2)[0] == pytest.approx(math.sqrt(0.0009 + 0.0004))
    # unknown with a single training
    assert Difference(-0.1, 0.03, 20, None, 1).error() == pytest.approx((0.03, 20))


def test_outcomes_are_one_sided_tests():
    # t quantile at 10 dof, 5% one-sided: 1.812
    for value, outcome in ((-1.83, "better"), (-1.79, "undecided"), (1.79, "undecided"), (1.83, "worse")):
        decision = decide(Difference(value, 1.0, 10))
        assert decision.outcome == outcome
        assert decision.reason.startswith(outcome.capitalize())
    assert decide(Difference(-1.83, 1.0, 10)).p == pytest.approx(0.0486, abs=2e-4)


def test_the_lower_of_two_losses_is_kept_where_leaning_is_asked_for():
    for value, outcome in (
        (-1.83, "better"),
        (-1.79, "leaning"),
        (0.0, "undecided"),
        (1.79, "undecided"),
        (1.83, "worse"),
    ):
        decision = decide(Difference(value, 1.0, 10), lean=True)
        assert (decision.outcome, decision.kept) == (outcome, value < 0)
    assert "may be chance" in decide(Difference(-1.0, 1.0, 10), lean=True).reason
    limit = {"chat": (Difference(0.1, 0.01, 30), 0.02)}
    assert decide(Difference(-1.0, 1.0, 10), limit, lean=True).outcome == "worse"


def test_a_broken_limit_counts_as_worse_only_when_it_is_sure():
    good = Difference(-1.0, 0.01, 30)
    sure = {"chat": (Difference(0.1, 0.01, 30), 0.02), "law": (Difference(0.01, 0.01, 30), 0.02)}
    decision = decide(good, sure)
    assert (decision.outcome, decision.violated) == ("worse", ("chat",))
    assert "chat lost more than its limit" in decision.reason
    unsure = {"chat": (Difference(0.03, 0.01, 30), 0.02)}  # 0.01 above the limit, one standard error
    assert decide(good, unsure).outcome == "better"
    with_seed = {"chat": (Difference(0.1, 0.01, 30, seed_sd=0.1, seeds=3), 0.02)}
    assert decide(good, with_seed).outcome == "better"


def test_no_error_at_all():
    assert decide(Difference(0.0, 0.0, math.inf)).outcome == "undecided"
    assert decide(Difference(-0.1, 0.0, math.inf)).outcome == "better"


def test_undecided_says_what_a_replicate_would_do():
    seedy = decide(Difference(0.0, 0.001, 100, seed_sd=0.02, seeds=3)).reason
    assert "with a second seed of both mixtures, from 0." in seedy
    assert "more reference rows would" in decide(Difference(0.0, 0.02, 100, seed_sd=0.0001, seeds=3)).reason
    assert "leaves out the training seed's" in decide(Difference(0.0, 0.02, 100)).reason


def test_json():
    for decision in (
        decide(Difference(-1.0, 0.1, math.inf)),
        decide(Difference(-1.0, 0.1, 9), {"chat": (Difference(0.1, 0.01, 30), 0.02)}),
    ):
        assert Decision.from_json(json.loads(json.dumps(decision.to_json(), allow_nan=False))) == decision


def rates(effect: float, *, rows: float, seed: float, seeds: int, n: int = 8000) -> dict[str, float]:
    """Frequencies of the outcomes over simulated rounds: row noise (25 clusters), seed noise, sd from `seeds` runs."""
    rng = np.random.default_rng(7)
    found = {"better": 0, "worse": 0, "undecided": 0}
    for _ in range(n):
        value = effect + rows * rng.normal() + seed * (rng.normal() - rng.normal())
        se = rows * math.sqrt(rng.chisquare(24) / 24)
        sd = seed * math.sqrt(rng.chisquare(seeds - 1) / (seeds - 1))
        found[decide(Difference(value, se, 24, sd, seeds)).outcome] += 1
    return {key: count / n for key, count in found.items()}


@pytest.mark.parametrize(("rows", "seed"), [(1.0, 0.0), (1.0, 0.5), (0.5, 1.0)])
def test_of_equal_mixtures_one_in_twenty_is_kept(rows, seed):
    """Satterthwaite is an approximation: with 3 runs and the seed dominating it may be off by about a point."""
    found = rates(0.0, rows=rows, seed=seed, seeds=3)
    assert 0.035 < found["better"] < 0.067
    assert 0.035 < found["worse"] < 0.067


def test_ignoring_the_seed_would_keep_far_too_often():
    rng, kept = np.random.default_rng(3), 0
    for _ in range(2000):
        value = 0.5 * rng.normal() + rng.normal() - rng.normal()
        kept += decide(Difference(value, 0.5, 24)).outcome == "better"
    assert kept / 2000 > 0.2


def test_power():
    """An improvement of four combined errors is seen nearly always, of one error about one time in five."""
    assert rates(-4 * math.sqrt(1.5), rows=1.0, seed=0.5, seeds=3)["better"] > 0.9
    assert 0.15 < rates(-math.sqrt(1.5), rows=1.0, seed=0.5, seeds=3)["better"] < 0.3
    assert rates(4 * math.sqrt(1.5), rows=1.0, seed=0.5, seeds=3)["worse"] > 0.9
