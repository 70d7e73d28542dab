"""The rules: by hand, on power laws whose best mixture is known in closed form, and what all of them keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from allocation_helpers import settings, situations, slopes
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from idealmix.allocation import allocate
from idealmix.allocation.rules import RETURNS, wanted

RULES = ("scaled", "exponentiated", "equalise")
ALL = np.ones(3, dtype=bool)


def test_by_hand():
    """Slopes -0.3, 0.2, 0.1 at shares 0.1, 0.5, 0.4; by share -3, 0.4, 0.25."""
    slope, share = np.array([-0.3, 0.2, 0.1]), np.array([0.1, 0.5, 0.4])
    scaled = wanted("scaled", slope, share, ALL, 0.6, np.nan)
    assert scaled == pytest.approx([0.6, -0.4, -0.2])
    exponentiated = wanted("exponentiated", slope, share, ALL, 1.0, np.nan)
    assert exponentiated == pytest.approx([2.0 - 1, 2 ** (-0.4 / 3) - 1, 2 ** (-0.25 / 3) - 1])
    # mean gain 1: gains 4, 0.6, 0.75; to the power 0.7, times what keeps the sum
    factor = np.array([4.0, 0.6, 0.75]) ** 0.7
    equalise = wanted("equalise", slope, share, ALL, 5.0, -1.0)
    assert equalise == pytest.approx(factor / (share @ factor) - 1)
    assert share @ equalise == pytest.approx(0)


def test_gains_that_scale_alike_change_nothing_but_a_flat_whole_goes_to_the_bounds():
    slope, share = np.array([-0.3, 0.2, 0.1]), np.array([0.1, 0.5, 0.4])
    once = wanted("equalise", slope, share, ALL, 5.0, -1.0)
    assert wanted("equalise", 770 * slope, share, ALL, 5.0, -770.0) == pytest.approx(once)
    for whole in (0.0, 0.5, np.nan):
        flat = wanted("equalise", slope, share, ALL, 1.0, whole)
        assert flat == pytest.approx([1.0, -0.5, -0.5])


def power_law(a: np.ndarray, n: np.ndarray, power: float):
    """Slopes with the budget held of sum_j a_j n_j^-p, and the slope of the whole."""
    free = -power * a * n**-power
    return free - n / n.sum() * free.sum(), float(free.sum())


@pytest.mark.parametrize("start", [(200, 3000, 1000, 1800), (2500, 500, 2000, 1000)])
def test_equalise_finds_the_best_mixture_of_power_laws_in_one_step(start):
    names, power = list("abcd"), 1 / RETURNS - 1
    a, n = np.array([5.0, 1.0, 2.0, 0.3]), np.array(start, dtype=float)
    slope, whole = power_law(a, n, power)
    found = allocate(
        dict(zip(names, start)),
        dict.fromkeys(names, 10**6),
        dict.fromkeys(names, 1.0),
        replace(slopes(names, slope), whole=whole),
        settings("rows", rule="equalise", m=50.0),
    )
    best = a ** (1 / (1 + power))
    assert np.array(list(found.counts.values())) == pytest.approx(6000 * best / best.sum(), abs=1)
    assert found.rule == "equalise"


def loss_after(rule: str, m: float, steps: int, powers: np.ndarray, error: float, seed: int) -> float:
    """Share of the possible gain closed in some steps, on power laws of unlike exponents, slopes wrong by a factor each."""
    rng = np.random.default_rng(seed)
    names, D = list("abcde"), 5
    a = rng.lognormal(0, 0.7, D)
    a[-1] = 0.0  # nobody asks for it
    wrong = 300 * rng.lognormal(0, error, D)
    n = rng.dirichlet(np.full(D, 3.0)) * 10_000
    loss = lambda x: float((a * (np.maximum(x, 1) / 2000) ** -powers).sum())  # noqa: E731
    grid = rng.dirichlet(np.ones(D - 1), 4000) * 10_000
    best = min(loss(np.append(each, 0)) for each in grid)
    start = loss(n)
    for _ in range(steps):
        free = -powers * a * (np.maximum(n, 1) / 2000) ** -powers * wrong
        slope = free - n / n.sum() * free.sum()
        step = allocate(
            dict(zip(names, n.round().astype(int))),
            dict.fromkeys(names, 10**6),
            dict.fromkeys(names, 1.0),
            replace(slopes(names, slope), whole=float(free.sum())),
            settings("rows", rule=rule, m=m),
        )
        n = np.array(list(step.counts.values()), dtype=float)
    return (start - loss(n)) / (start - best)


def test_equalise_gains_most_where_exponents_differ_and_slopes_are_wrong():
    """Exponents 0.15 to 0.9 as measured on the built-in skills, every domain's slopes wrong by its own factor (sd 0.6 of the log)."""
    powers = np.array([0.37, 0.15, 0.2, 0.87, 0.4])
    gains = {
        (rule, m): np.mean([loss_after(rule, m, 2, powers, 0.6, seed) for seed in range(30)])
        for rule, m in [
            ("scaled", 0.15),
            ("scaled", 0.5),
            ("scaled", 1.0),
            ("exponentiated", 1.0),
            ("equalise", 3.0),
        ]
    }
    assert gains["equalise", 3.0] > 0.75
    assert all(gains["equalise", 3.0] > gain + 0.1 for key, gain in gains.items() if key[0] != "equalise")


@effort(max_examples=60, deadline=None)
@given(situations(), st.sampled_from(RULES), st.floats(-3, 0.5), st.sampled_from([0.15, 1.0, 3.0]))
def test_every_rule_holds_the_budget_bounds_and_signs(s, rule, whole, m):
    s.settings = s.settings.model_copy(update={"rule": rule, "m": m})
    found = allocate(s.counts, s.sizes, s.per_row, replace(s.slopes, whole=whole), s.settings)
    before, after = (sum(n * s.per_row[name] for name, n in c.items()) for c in (s.counts, found.counts))
    movers = [name for name, move in found.moves.items() if move.after != move.before]
    assert abs(after - before) <= max((s.per_row[name] for name in movers), default=0.0) * len(movers)
    for name, move in found.moves.items():
        assert move.after <= s.settings.max_repeats * s.sizes[name] or move.after <= move.before
        assert move.after - 2 <= (1 + m) * move.before + sum(s.per_row.values()) / s.per_row[name]
