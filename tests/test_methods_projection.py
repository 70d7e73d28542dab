"""From shares to whole rows: the budget is kept, bounds hold, what is left out stays out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idealmix.allocation import start_counts
from idealmix.config import Allocation
from idealmix.errors import InputError
from idealmix.methods.projection import as_allocation, project

DOMAINS = ("math", "code", "chat")
SIZES = {"math": 100, "code": 60, "chat": 40}
PER_ROW = {"math": 10.0, "code": 25.0, "chat": 50.0}


def counts(shares: list[float], amount: float, **allocation: object) -> dict[str, int]:
    return project(np.array(shares), DOMAINS, SIZES, PER_ROW, Allocation(**allocation), amount)


def test_by_hand() -> None:
    assert counts([0.2, 0.3, 0.5], 1000.0) == {"math": 20, "code": 12, "chat": 10}
    assert counts([1.0, 0.0, 0.0], 1015.0) == {"math": 102, "code": 0, "chat": 0}  # half a row over


def test_rounding_gives_nothing_to_a_domain_that_is_left_out() -> None:
    # 1,024 of rows of 50: 20.48 rows; the 24 left over would make a row of code and hardly disturb
    assert counts([0.0, 0.0, 1.0], 1024.0) == {"math": 0, "code": 0, "chat": 20}


def test_repetitions_and_caps_hold_and_the_rest_goes_to_the_others() -> None:
    # chat has 40 rows = 2,000 at most once; of 4,000 the other half goes to math and code as 1 : 3
    found = counts([0.1, 0.3, 0.6], 4000.0, max_repeats=1)
    assert found == {"math": 50, "code": 60, "chat": 40}
    capped = counts([0.8, 0.1, 0.1], 1000.0, cap=0.5)
    assert capped == {"math": 50, "code": 10, "chat": 5}


def test_one_pool_that_is_used_up_is_filled_from_the_others() -> None:
    found = counts([0.0, 0.0, 1.0], 4000.0, max_repeats=1)
    assert found["chat"] == 40
    assert sum(found[name] * PER_ROW[name] for name in DOMAINS) == pytest.approx(4000, abs=12.5)


def test_a_budget_beyond_the_pools_says_by_how_much() -> None:
    # at most twice: 2,000 + 3,000 + 4,000 = 9,000
    with pytest.raises(InputError, match=r"the pools give 9,000, which is 1,000 short"):
        counts([0.4, 0.3, 0.3], 10_000.0, max_repeats=2)


@given(
    st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3),
    st.floats(500.0, 15_000.0),
)
@settings(max_examples=60, deadline=None)
def test_any_shares_make_up_the_amount(raw: list[float], amount: float) -> None:
    shares = np.array(raw) / sum(raw)
    found = counts(shares.tolist(), amount)
    assert sum(found[name] * PER_ROW[name] for name in DOMAINS) == pytest.approx(amount, abs=25.0)
    assert all(0 <= found[name] <= 4 * SIZES[name] for name in DOMAINS)


@pytest.mark.parametrize("start", ["natural", "uniform"])
def test_joint_and_uniform_are_the_starts_of_the_rounds(start: str) -> None:
    allocation = Allocation(start=start, budget={"size": 3333})
    volumes = np.array([SIZES[name] * PER_ROW[name] for name in DOMAINS])
    shares = volumes / volumes.sum() if start == "natural" else np.full(3, 1 / 3)
    assert project(shares, DOMAINS, SIZES, PER_ROW, allocation, 3333.0) == start_counts(
        SIZES, PER_ROW, allocation
    )


def test_as_a_rounds_allocation() -> None:
    step = as_allocation(
        "mine",
        {"math": 10, "code": 4, "chat": 0},
        {"math": 5, "code": 4, "chat": 1},
        SIZES,
        PER_ROW,
        "tokens",
    )
    assert step.counts == {"math": 5, "code": 4, "chat": 1}
    assert step.moves["math"].beta == -0.5
    assert (step.amount_before, step.amount_after) == (200, 200)
    assert step.reason == "mine: math −50.0%, chat +0.0%."
