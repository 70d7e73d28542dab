"""Allocations computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from allocation_helpers import settings, slopes

from idealmix.allocation import allocate, start_counts
from idealmix.errors import InputError
from idealmix.slopes import Limit

NAMES = ["math", "code", "chat", "law"]
COUNTS = dict.fromkeys(NAMES, 1000)
SIZES = dict.fromkeys(NAMES, 5000)
ROWS = dict.fromkeys(NAMES, 1.0)
NAN = float("nan")


def test_the_papers_rule():
    """IDEAL, section 4.1: n (1 + m omega / max |omega|), m = 0.15, omega = - slope; volume free, nothing gated."""
    paper = settings("rows", hold=False, gate=False)
    out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [-0.4, 0.2, 0.1, -0.03], se=9.0), paper)
    # 1 + .15 (1, -.5, -.25, .075)
    assert out.counts == {"math": 1150, "code": 925, "chat": 963, "law": 1011}
    assert out.moves["code"].beta == pytest.approx(-0.075)
    assert out.amount_after == 4049
    assert out.predicted == pytest.approx(-0.4 * 0.15 - 0.2 * 0.075 - 0.1 * 0.037 - 0.03 * 0.011)


def test_movers_exchange_and_gated_domains_keep_exact_counts():
    measured = slopes(NAMES, [-0.4, 0.2, 0.01, -0.01], se=0.02)
    out = allocate(COUNTS, SIZES, ROWS, measured, settings("rows", m=0.5))
    # math wants +500, code -250: they trade 250
    assert out.counts == {"math": 1250, "code": 750, "chat": 1000, "law": 1000}
    assert [out.moves[n].gated for n in NAMES] == [False, False, True, True]
    assert "chat, law keep their counts" in out.reason
    assert "+50% is cut to what the others trade" in out.moves["math"].note


def test_a_budget_of_tokens_is_exchanged_in_tokens():
    per_row = {"math": 100.0, "code": 40.0, "chat": 10.0, "law": 7.0}
    out = allocate(COUNTS, SIZES, per_row, slopes(NAMES, [0.4, -0.4, 0, 0], se=0.02), settings(m=0.2))
    # math could give 20,000 tokens, code takes 8,000: 200 rows of 40 against 80 rows of 100
    assert out.counts == {"math": 920, "code": 1200, "chat": 1000, "law": 1000}
    assert out.amount_after == out.amount_before


def test_a_single_mover_trades_with_the_rest_and_it_is_said():
    out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [0, 0, 0.3, 0], se=0.01), settings("rows", m=0.3))
    assert out.counts == {"math": 1100, "code": 1100, "chat": 700, "law": 1100}
    assert "the one mover trades with the rest" in out.reason
    assert "trades with the movers" in out.moves["math"].note


def test_a_large_mover_does_not_change_small_partners_by_more_than_m():
    counts = {"math": 9000, "code": 1000}
    out = allocate(
        counts,
        {"math": 50000, "code": 50000},
        ROWS,
        slopes(["math", "code"], [-1, 0], 0.01),
        settings("rows", m=0.5),
    )
    assert out.counts == {"math": 9500, "code": 500}


def test_movers_of_one_sign_trade_with_the_rest_else_the_strong_against_the_weak():
    out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [-0.4, -0.2, 0, 0], se=0.01), settings("rows", m=0.2))
    assert out.counts == {"math": 1200, "code": 1100, "chat": 850, "law": 850}
    assert "all movers pull the same way" in out.reason
    out = allocate(
        COUNTS, SIZES, ROWS, slopes(NAMES, [-0.4, -0.3, -0.2, -0.1], 0.01), settings("rows", m=0.4)
    )
    assert out.counts == {"math": 1150, "code": 1050, "chat": 950, "law": 850}


def test_nothing_significant_is_an_equilibrium():
    out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [-1, 1, 0.5, -0.5], se=1.0), settings())
    assert out.equilibrium
    assert out.counts == COUNTS
    assert out.reason == "Equilibrium: no domain's influence stands out of its error."


def test_an_unknown_error_is_not_called_an_equilibrium():
    inf = np.inf
    for se, reason in (
        (
            [inf, 1, 1, 1],
            "the influence of math has no known error, and no other domain's influence stands out of its error",
        ),
        (
            [inf, inf, 1, 1],
            "the influence of code, math has no known error, and no other domain's influence stands out of",
        ),
        ([inf, inf, inf, inf], "the influence of chat, code, law, math has no known error."),
    ):
        out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [-1, 1, 0.5, -0.5], se=se), settings())
        assert out.equilibrium
        assert out.reason.startswith(f"Nothing moves: {reason}")
        assert out.moves["math"].note == "stays: its influence's error is not known"
    assert "within its error (p = " in allocate(
        COUNTS, SIZES, ROWS, slopes(NAMES, [-1, 1, 0.5, -0.5], se=[inf, 1, 1, 1]), settings()
    ).moves["code"].note  # fmt: skip


def test_one_domain_at_a_held_budget_stays():
    out = allocate({"math": 10}, {"math": 99}, {"math": 3.0}, slopes(["math"], [-1.0]), settings())
    assert out.equilibrium
    assert "lack of a partner" in out.reason


def test_which_rows_speak():
    """Unused rows where they would help; drawn ones where dropping them would; none where they disagree; drawn ones if exhausted."""
    sizes = {**SIZES, "law": 500}
    measured = slopes(NAMES, [-0.2, 0.3, 0.3, NAN], 0.01, drawn=[-0.9, 0.4, -0.5, -0.1])
    out = allocate(COUNTS, sizes, ROWS, measured, settings("rows", m=0.2))
    assert [out.moves[n].slope for n in NAMES] == [-0.2, 0.4, None, -0.1]
    assert out.counts == {"math": 1100, "code": 850, "chat": 1000, "law": 1050}
    assert "rows disagree" in out.moves["chat"].note
    assert "50 of the new rows are repetitions" in out.moves["law"].note
    assert out.moves["law"].repeats == 2.1


def test_of_two_promises_the_clearer_one_is_taken():
    """Growing math and shrinking math both promise a gain: the noisy promise does not hide the clear one."""
    names = ["math", "code"]

    def move(growth, growth_se, drawn, drawn_se, growth_dof=50.0):
        measured = slopes(names, [growth, 0], [growth_se, 1], drawn=[drawn, 0], drawn_se=[drawn_se, 1])
        measured.growth_dof[0] = growth_dof
        counts, sizes = {"math": 1000, "code": 1000}, {"math": 5000, "code": 5000}
        return allocate(counts, sizes, ROWS, measured, settings("rows", m=0.2)).moves["math"]

    shrinks = move(-0.001, 0.05, 0.5, 0.02)
    assert (shrinks.after, shrinks.slope, shrinks.gated) == (800, 0.5, False)
    assert shrinks.note.startswith("less of it lowers the loss (so might more of it, less clearly)")
    grows = move(-0.5, 0.02, 0.9, 0.5)
    assert (grows.after, grows.slope) == (1200, -0.5)
    assert grows.note.startswith("more of it lowers the loss (so might less of it, less clearly)")
    # as clear as can be, both: the larger t; an unknown error and one degree of freedom are no clarity
    assert move(-0.5, 1e-9, 0.9, 1e-9).slope == 0.9
    assert move(-0.5, np.inf, 0.1, 0.02).slope == 0.1
    assert move(-0.5, 0.05, 0.1, 0.02, growth_dof=1.0).slope == 0.1


def test_bounds_cut_the_step():
    measured = slopes(NAMES, [-0.4, 0.4, 0.4, -0.4], se=0.01)
    out = allocate(COUNTS, SIZES, ROWS, measured, settings("rows", m=0.4, cap={"math": 0.26}))
    assert out.counts["math"] == 1040
    assert out.counts["law"] == 1400
    assert out.counts["code"] == out.counts["chat"] == 780
    out = allocate(COUNTS, SIZES, ROWS, measured, settings("rows", m=0.4, floor=0.2))
    assert out.counts == {"math": 1200, "code": 800, "chat": 800, "law": 1200}
    out = allocate(COUNTS, {**SIZES, "math": 275}, ROWS, measured, settings("rows", m=0.4))
    assert out.counts["math"] == 1100  # four times 275


def test_an_exhausted_grower_at_its_bound_leaves_an_equilibrium():
    measured = slopes(["a", "b"], [NAN, 0.5], 0.01, drawn=[-0.5, 0.5])
    out = allocate({"a": 40, "b": 100}, {"a": 10, "b": 100}, {"a": 1.0, "b": 1.0}, measured, settings("rows"))
    assert out.equilibrium
    assert "bounds" in out.reason


def test_an_empty_domain_stays_empty():
    counts = {**COUNTS, "law": 0}
    out = allocate(counts, SIZES, ROWS, slopes(NAMES, [-0.4, 0.2, 0.1, -0.9], 0.01), settings("rows", m=0.5))
    assert out.counts["law"] == 0
    assert out.counts["math"] > 1000
    assert "cannot be measured" in out.moves["law"].note


def test_free_volume_holds_bounds_too():
    out = allocate(
        COUNTS,
        {**SIZES, "math": 1050},
        ROWS,
        slopes(NAMES, [-1, 0, 0, 0]),
        settings("rows", False, max_repeats=1),
    )
    assert out.counts == {**COUNTS, "math": 1050}


def test_a_limit_leaves_the_harmful_move_out_or_shortens_the_step():
    objective = slopes(NAMES, [-0.4, 0.4, -0.2, 0.2], se=0.01)
    kind = settings("rows", m=0.5)
    assert allocate(COUNTS, SIZES, ROWS, objective, kind).counts == {
        "math": 1500, "code": 500, "chat": 1250, "law": 750,
    }  # fmt: skip
    # the law reference loses from less law: 0.04 per unit, 0.25 down: 0.01 allowed 0.002
    law = Limit("law", slopes(NAMES, [0, 0, 0, -0.04], se=0.001), allowance=0.002)
    out = allocate(COUNTS, SIZES, ROWS, objective, kind, limits=[law])
    assert out.counts["law"] == 1000
    assert sum(out.counts.values()) == 4000
    assert "law left out of it" in out.reason
    # a large allowance changes nothing; so does a calibration that makes the rise small; so does a noisy rise
    for keys in (
        {"limits": [Limit("law", law.slopes, 0.02)]},
        {"limits": [law], "calibration": 0.1},
        {"limits": [Limit("law", slopes(NAMES, [0, 0, 0, -0.04], se=0.1), 0.002)]},
    ):
        assert allocate(COUNTS, SIZES, ROWS, objective, kind, **keys).counts["law"] == 750
    # if the best movers are the harmful ones, a shorter step is worth more than their absence
    every = Limit("all", slopes(NAMES, [0.04, 0, 0.04, 0], se=0.001), allowance=0.015)
    out = allocate(COUNTS, SIZES, ROWS, objective, kind, limits=[every])
    assert out.counts == {"math": 1250, "code": 750, "chat": 1125, "law": 875}
    assert "shortened to 50%" in out.reason
    # nothing left to lose: nothing harmful moves; of the other two the worse one gives to the less bad
    out = allocate(COUNTS, SIZES, ROWS, objective, kind, limits=[Limit("all", every.slopes, -1.0)])
    assert out.counts == {"math": 1000, "code": 875, "chat": 1000, "law": 1125}
    assert "but less than of the others" in out.moves["law"].note


def test_start_counts():
    sizes, per_row = {"a": 600, "b": 200, "c": 100}, {"a": 10.0, "b": 20.0, "c": 30.0}
    assert start_counts(sizes, per_row, settings()) == sizes
    assert start_counts(sizes, per_row, settings(size=6500)) == {"a": 300, "b": 100, "c": 50}
    # 33 rows of c leave 10 over, half a row of b; 51 of those overdraw 10, one row of a: exactly 3000
    assert start_counts(sizes, per_row, settings(size=3000, start="uniform")) == {"a": 99, "b": 51, "c": 33}
    capped = settings(size=12000, start="uniform", max_repeats=1)
    # equal would be 4000; c has 3000, the rest is shared, b has 4000
    assert start_counts(sizes, per_row, capped) == {"a": 500, "b": 200, "c": 100}
    assert start_counts(sizes, per_row, settings(size=6500, floor={"c": 0.5})) == {
        "a": 193,
        "b": 65,
        "c": 109,
    }
    given = settings(start={"a": 5, "b": 0, "c": 7})
    assert start_counts(sizes, per_row, given) == {"a": 5, "b": 0, "c": 7}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"floor": 0.4}, "floors sum to 1.2, 0.2 more"),
        ({"cap": 0.3}, "caps sum to 0.9: 0.1 of the mixture"),
        ({"floor": {"a": 0.5}, "cap": {"a": 0.4}}, "floor 0.5 is above its cap 0.4"),
        ({"size": 50000, "floor": {"c": 0.5}}, "c's floor asks for 833 rows; its pool gives 400"),
        ({"size": 60000}, "gives? .*52,000.* 8,000 short"),
        ({"start": {"a": 3000, "b": 1, "c": 1}}, "a starts with 3,000 rows; its pool gives 2,400"),
        ({"start": {"a": 100, "b": 1, "c": 1}, "size": 2000}, "amount to 1,050 tokens, budget.size is 2,000"),
        (
            {"start": {"a": 100, "b": 1, "c": 1}, "cap": {"a": 0.5}},
            "a starts with 100 rows; floor and cap allow",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_amount_and_the_mend(keys, said):
    sizes, per_row = {"a": 600, "b": 200, "c": 100}, {"a": 10.0, "b": 20.0, "c": 30.0}
    with pytest.raises(InputError, match=said) as caught:
        start_counts(sizes, per_row, settings(**keys))
    assert caught.value.mend
    assert caught.value.where.startswith("allocation.")


def test_rows_without_supervised_tokens_cannot_be_budgeted():
    with pytest.raises(InputError, match="cannot be budgeted"):
        start_counts({"a": 5}, {"a": 0.0}, settings("supervised_tokens"))


def test_missing_errors_gate():
    out = allocate(COUNTS, SIZES, ROWS, slopes(NAMES, [-1, 1, 0, 0], se=np.nan), settings())
    assert out.equilibrium
    assert out.moves["math"].gated


def test_free_volume_that_outgrows_a_cap_is_cut_not_refused():
    capped = settings("rows", hold=False, max_repeats=1, cap=0.9, m=1.0, gate=False)
    growing = slopes(["a", "b"], [NAN, -1.0], drawn=[0.0, 0.0])
    out = allocate({"a": 20, "b": 180}, {"a": 20, "b": 900}, {"a": 1.0, "b": 1.0}, growing, capped)
    assert out.counts == {"a": 20, "b": 342}  # 0.9 of the 380 rows that the step asked for
