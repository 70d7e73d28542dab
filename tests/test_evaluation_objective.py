"""Joined objectives: values, gradients by finite differences, errors by the bootstrap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idealmix.errors import IdealmixError, InputError
from idealmix.evaluation.objective import objective_difference, objective_gradient, objective_value
from idealmix.evaluation.set_loss import SetLoss

WEIGHTS = {"math": 2.0, "code": 1.0, "chat": 1.0}
KINDS = ["mean_loss", "relative", "progress", "worst"]


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


def by_hand(
    kind: str, means: dict[str, float], start: dict[str, float], untrained: dict[str, float]
) -> float:
    if kind == "worst":
        return max(means.values())
    total = sum(WEIGHTS.values())
    if kind == "progress":
        gain = {n: max(untrained[n] - start[n], 0.05 * untrained[n]) for n in WEIGHTS}
        return sum(w * (means[n] - untrained[n]) / gain[n] for n, w in WEIGHTS.items()) / total
    return sum(w * means[n] / (start[n] if kind == "relative" else 1) for n, w in WEIGHTS.items()) / total


def before_training(start: dict[str, SetLoss]) -> dict[str, SetLoss]:
    """A base model that round 0 beats by much in math, by less than a twentieth in code; chat was better before."""
    rng = np.random.default_rng(7)
    factor = {"math": 1.4, "code": 1.02, "chat": 0.9}
    return {
        name: replace(loss, loss_sums=loss.loss_sums * factor[name] * rng.uniform(0.97, 1.03, len(loss)))
        for name, loss in start.items()
    }


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
    start, new, _ = evaluations()
    base = before_training(start)
    assert objective_value(new, WEIGHTS, kind, start, base).value == pytest.approx(
        by_hand(kind, means_of(new), means_of(start), means_of(base))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind):
    first = evaluations()[0]
    start, new, _ = (means_of(losses) for losses in evaluations())
    base = means_of(before_training(first))
    gradient = objective_gradient(new, WEIGHTS, kind, start, base)
    for name in new:
        up, down = new | {name: new[name] + 1e-5}, new | {name: new[name] - 1e-5}
        slope = (by_hand(kind, up, start, base) - by_hand(kind, down, start, base)) / 2e-5
        assert gradient[name] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_by_the_bootstrap(kind):
    losses = evaluations()
    start, old, new = losses
    base = before_training(start)
    rng = np.random.default_rng(2)
    values, differences = [], []
    for _ in range(3000):
        s, o, n, b = resample([*losses, base], rng)
        values.append(by_hand(kind, n, s, b))
        differences.append(by_hand(kind, n, s, b) - by_hand(kind, o, s, b))
    value = objective_value(new, WEIGHTS, kind, start, base)
    difference = objective_difference(new, old, WEIGHTS, kind, start, base)
    assert value.se == pytest.approx(np.std(values), rel=0.08)
    assert difference.value == pytest.approx(
        value.value - objective_value(old, WEIGHTS, kind, start, base).value, abs=1e-12
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


def test_progress_counts_from_the_base_model_in_units_of_round_zeros_gain():
    start = evaluations()[0]
    base = {name: replace(loss, loss_sums=loss.loss_sums * 1.5) for name, loss in start.items()}
    assert objective_value(base, WEIGHTS, "progress", start, base).value == pytest.approx(0)
    value, se, _ = objective_value(start, WEIGHTS, "progress", start, base)
    assert (value, se) == pytest.approx((-1, 0), abs=1e-12)


def test_progress_is_not_carried_by_a_set_that_round_zero_did_not_improve():
    start = evaluations()[0]
    base = before_training(start)
    gradient = objective_gradient(
        means_of(start), dict.fromkeys(start, 1.0), "progress", means_of(start), means_of(base)
    )
    for name in ("code", "chat"):
        assert gradient[name] == pytest.approx(1 / 3 / (0.05 * base[name].mean))
    assert gradient["math"] == pytest.approx(1 / 3 / (base["math"].mean - start["math"].mean))


def test_pairing_makes_the_difference_sharper_than_the_losses():
    _base, old, new = evaluations()
    paired = objective_difference(new, old, WEIGHTS, "mean_loss").se
    assert paired < 0.4 * objective_value(new, WEIGHTS, "mean_loss").se
    assert objective_difference(old, new, WEIGHTS, "mean_loss").value > 0


def test_degrees_of_freedom_lie_between_the_smallest_sets_and_all_rows():
    base, old, new = evaluations()
    for kind in KINDS[:3]:
        dof = objective_difference(new, old, WEIGHTS, kind, base, before_training(base)).dof
        assert 15 < dof < 132
    share = new["chat"].counts / new["chat"].tokens
    assert objective_value(new, WEIGHTS, "worst").dof == pytest.approx(1 / (share**2).sum() - 1)  # chat alone


def test_a_set_of_weight_zero_changes_nothing():
    base, _old, new = evaluations()
    weights = WEIGHTS | {"chat": 0.0}
    less = {name: loss for name, loss in new.items() if name != "chat"}
    for kind in KINDS:
        sets = base, before_training(base)
        with_it = objective_value(new, weights, kind, *sets)
        assert with_it == objective_value(less, {"math": 2.0, "code": 1.0}, kind, *sets)


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
        one = objective_gradient(means, dict(zip("abc", weights)), kind, means, means)
        scaled = dict(zip("abc", (w * factor for w in weights)))
        other = objective_gradient(means, scaled, kind, means, means)
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
    with pytest.raises(IdealmixError, match="the base model's loss"):
        objective_value(old, WEIGHTS, "progress", old)
    cut = old | {"math": evaluations(seed=9)[0]["math"]}
    with pytest.raises(IdealmixError, match="math: two evaluations"):
        objective_difference(cut, old, WEIGHTS, "mean_loss")
