"""Joined objectives: values, gradients by finite differences, errors by the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idealmix.errors import IdealmixError, InputError
from idealmix.evaluation.objective import objective_difference, objective_gradient, objective_value
from idealmix.evaluation.set_loss import SetLoss

WEIGHTS = {"math": 2.0, "code": 1.0, "chat": 1.0}
KINDS = ["mean_loss", "relative", "worst"]


def evaluations(seed: int = 0, shifts: tuple[float, ...] = (0.0, -0.05, -0.08)) -> list[dict[str, SetLoss]]:
    """One evaluation for each shift, on the same rows; round 0 first. Sets differ in size and in noise."""
    rng = np.random.default_rng(seed)
    out: list[dict[str, SetLoss]] = [{} for _ in shifts]
    for name, rows, level in (("math", 40, 1.0), ("code", 70, 1.4), ("chat", 25, 2.5)):
        counts = rng.integers(3, 50, rows)
        base = rng.gamma(6, level / 6, rows) * counts
        for k, shift in enumerate(shifts):
            nats = base * (1 + shift) + (rng.normal(0, 0.04, rows) * counts if k else 0)
            out[k][name] = SetLoss(name, tuple(f"{name}-{n}" for n in range(rows)), nats, counts)
    return out


def by_hand(kind: str, means: dict[str, float], base: dict[str, float]) -> float:
    if kind == "worst":
        return max(means.values())
    total = sum(WEIGHTS.values())
    return sum(w * means[n] / (base[n] if kind == "relative" else 1) for n, w in WEIGHTS.items()) / total


def means_of(losses):
    return {name: loss.mean for name, loss in losses.items()}


def resample(losses: list[dict[str, SetLoss]], rng) -> list[dict[str, float]]:
    """Means after drawing rows with replacement, the same rows for every evaluation."""
    out: list[dict[str, float]] = [{} for _ in losses]
    for name in losses[0]:
        picks = rng.integers(0, len(losses[0][name]), len(losses[0][name]))
        for k, evaluation in enumerate(losses):
            loss = evaluation[name]
            out[k][name] = loss.loss_sums[picks].sum() / loss.counts[picks].sum()
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_value(kind):
    base, new, _ = evaluations()
    assert objective_value(new, WEIGHTS, kind, base).value == pytest.approx(
        by_hand(kind, means_of(new), means_of(base))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind):
    base, new, _ = (means_of(losses) for losses in evaluations())
    gradient = objective_gradient(new, WEIGHTS, kind, base)
    for name in new:
        up, down = new | {name: new[name] + 1e-5}, new | {name: new[name] - 1e-5}
        slope = (by_hand(kind, up, base) - by_hand(kind, down, base)) / 2e-5
        assert gradient[name] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_by_the_bootstrap(kind):
    losses = evaluations()
    base, old, new = losses
    rng = np.random.default_rng(2)
    values, differences = [], []
    for _ in range(3000):
        b, o, n = resample(losses, rng)
        values.append(by_hand(kind, n, b))
        differences.append(by_hand(kind, n, b) - by_hand(kind, o, b))
    value = objective_value(new, WEIGHTS, kind, base)
    difference = objective_difference(new, old, WEIGHTS, kind, base)
    assert value.se == pytest.approx(np.std(values), rel=0.08)
    assert difference.value == pytest.approx(
        value.value - objective_value(old, WEIGHTS, kind, base).value, abs=1e-12
    )
    assert difference.se == pytest.approx(np.std(differences), rel=0.08)


def test_a_difference_between_worst_sets_of_different_names():
    _base, old, _ = evaluations()
    new = old | {
        "chat": SetLoss("chat", old["chat"].row_ids, old["chat"].loss_sums * 0.2, old["chat"].counts)
    }
    difference = objective_difference(new, old, WEIGHTS, "worst")
    assert difference.value == pytest.approx(new["code"].mean - old["chat"].mean)
    assert difference.se == pytest.approx(np.hypot(new["code"].se, old["chat"].se))


def test_round_zero_relative_to_itself_is_one_without_error():
    base = evaluations()[0]
    value, se, _ = objective_value(base, WEIGHTS, "relative", base)
    assert value == pytest.approx(1)
    assert se == pytest.approx(0, abs=1e-15)


def test_pairing_makes_the_difference_sharper_than_the_losses():
    _base, old, new = evaluations()
    paired = objective_difference(new, old, WEIGHTS, "mean_loss").se
    assert paired < 0.4 * objective_value(new, WEIGHTS, "mean_loss").se
    assert objective_difference(old, new, WEIGHTS, "mean_loss").value > 0


def test_degrees_of_freedom_lie_between_the_smallest_sets_and_all_rows():
    base, old, new = evaluations()
    for kind in KINDS[:2]:
        dof = objective_difference(new, old, WEIGHTS, kind, base).dof
        assert 24 < dof < 132
    assert objective_value(new, WEIGHTS, "worst").dof == 24  # chat alone


def test_a_set_of_weight_zero_changes_nothing():
    base, _old, new = evaluations()
    weights = WEIGHTS | {"chat": 0.0}
    less = {name: loss for name, loss in new.items() if name != "chat"}
    for kind in KINDS:
        with_it = objective_value(new, weights, kind, base)
        assert with_it == objective_value(less, {"math": 2.0, "code": 1.0}, kind, base)


def test_a_set_of_one_row_makes_the_error_unknown_and_not_small():
    _base, _old, new = evaluations()
    one = SetLoss("chat", ("a",), np.array([4.0]), np.array([2]))
    estimate = objective_value(new | {"chat": one}, WEIGHTS, "mean_loss")
    assert estimate.se == float("inf")
    assert estimate.to_json()["se"] is None


@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.lists(st.just(0.0) | st.floats(0.01, 5), min_size=3, max_size=3).filter(any),
    st.floats(0.1, 100),
)
def test_weights_have_no_scale(values, weights, factor):
    means = dict(zip("abc", values))
    for kind in KINDS:
        one = objective_gradient(means, dict(zip("abc", weights)), kind, means)
        other = objective_gradient(means, dict(zip("abc", (w * factor for w in weights))), kind, means)
        assert other == pytest.approx(one)


@pytest.mark.parametrize(
    "weights",
    [
        {"math": 0.0, "code": 0.0, "chat": 0.0},
        {"math": 1.0, "code": -1.0, "chat": 1.0},
        {"math": float("nan"), "code": 1.0, "chat": 1.0},
    ],
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(InputError, match="weights"):
        objective_value(evaluations()[0], weights, "mean_loss")


def test_other_faults_are_refused():
    _base, old, _ = evaluations()
    with pytest.raises(InputError, match="no objective 'median'"):
        objective_value(old, WEIGHTS, "median")
    with pytest.raises(IdealmixError, match="different sets: chat"):
        objective_value(old, {"math": 1.0, "code": 1.0}, "mean_loss")
    with pytest.raises(IdealmixError, match="round 0"):
        objective_value(old, WEIGHTS, "relative")
    cut = old | {"math": evaluations(seed=9)[0]["math"]}
    with pytest.raises(IdealmixError, match="math: two evaluations"):
        objective_difference(cut, old, WEIGHTS, "mean_loss")
