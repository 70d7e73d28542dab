"""The report's words: signs, verdicts and sentences say what the numbers allow, and no more."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import sample, variant
from scipy import stats

from idealmix.report import comparison, words


def test_sign_of_an_influence() -> None:
    alpha = [[-0.05, 0.05, 0.001, None, -0.05]]
    se = [[0.004, 0.004, 0.004, 0.004, None]]
    assert words.signs(alpha, se, [[100.0] * 5]) == [
        ["helps", "hurts", "cannot be told from zero", "not measured", "not tested"]
    ]
    assert words.signs(alpha, None)[0][:2] == ["not tested", "not tested"]


def test_signs_are_family_wise() -> None:
    # t = 2.5 is below the 5% level alone, and above it as the only true one of twenty cells
    assert words.signs([[-2.5]], [[1.0]]) == [["helps"]]
    many = words.signs([[-2.5] + [0.0] * 19], [[1.0] * 20])
    assert set(many[0]) == {"cannot be told from zero"}
    # Holm steps down: the second has to pass 5%/2, then 5%
    assert words.signs([[-5.0, -2.0]], [[1.0, 1.0]]) == [["helps", "helps"]]
    # an error that is not known is one of the family, as in the matrix's own signs
    assert words.signs([[-2.1, 1.0]], [[1.0, None]]) == [["cannot be told from zero", "not tested"]]
    assert words.signs([[-2.2, -2.0]], [[1.0, 1.0]]) == [["cannot be told from zero"] * 2]


@given(value=st.floats(-1, 1), se=st.floats(1e-4, 1), dof=st.floats(2, 500))
def test_sign_verdict_and_interval_agree(value: float, se: float, dof: float) -> None:
    half = words.half_width(se, dof)
    assert half == pytest.approx(stats.t.ppf(0.975, dof) * se, rel=1e-6)
    assert words.p_value(value, se, dof) == pytest.approx(
        2 * stats.t.sf(abs(value) / se, dof), rel=1e-6, abs=1e-12
    )
    sign = words.signs([[value]], [[se]], [[dof]])[0][0]
    if abs(abs(value) - half) > 1e-9:
        outside = abs(value) > half
        assert (sign != "cannot be told from zero") == outside
        assert words.verdict(value, se, dof) == (
            "undecided" if not outside else "better" if value < 0 else "worse"
        )


def test_few_degrees_of_freedom_claim_less() -> None:
    assert words.signs([[-2.2]], [[1.0]], [[1000.0]]) == [["helps"]]
    assert words.signs([[-2.2]], [[1.0]], [[4.0]]) == [["cannot be told from zero"]]


def test_scores_are_better_when_higher() -> None:
    assert words.verdict(0.05, 0.01, lower_is_better=False) == "better"
    assert words.verdict(0.05, None) == "undecided"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda v: sum(v) > 1e-6))
def test_whole_percents_sum_to_a_hundred(values: list[float]) -> None:
    share = words.shares({str(k): v for k, v in enumerate(values)})
    percents = words.whole_percents(share)
    assert sum(int(p.strip("<%")) for p in percents.values() if p != "<1%") == 100
    for k, p in percents.items():
        assert p == "<1%" or abs(int(p.strip("%")) - 100 * share[k]) < 1


def test_advice() -> None:
    assert words.advice({"math": 0.38, "code": 0.22, "chat": 0.40}, keep=False) == (
        "Put 40% chat, 38% math and 22% code into the mixture."
    )
    assert words.advice({"math": 1.0, "trivia": 0.0}, keep=True) == (
        "Keep the joint mixture: 100% math, and leave out trivia."
    )
    many = words.advice({f"d{k}": 0.1 for k in range(10)}, keep=False)
    assert (
        many == "Put 10% d0, 10% d1, 10% d2, 10% d3, 10% d4 and 50% from 5 smaller domains into the mixture."
    )


def test_moves_and_changes() -> None:
    assert words.than_joint(0.131, "rows") == "13% more rows than joint"
    assert words.than_joint(-0.18, "rows") == "18% fewer rows than joint"
    assert words.than_joint(0.004, "rows") == "as many rows as joint"
    assert words.move({"beta": 0.1}) == "grows"
    assert words.move({"beta": -0.1}) == "shrinks"
    assert words.move({"beta": 0.0, "gated": True}) == "stays: cannot be told from zero"


def test_numbers() -> None:
    assert words.number(-0.0312, 3) == "−0.031"
    assert words.number(0.0312, 3, plus=True) == "+0.031"
    assert words.number(-0.0001, 2, plus=True) == "0.00"
    assert words.number(None) == words.number(math.nan) == "–"
    assert words.whole(1203420) == "1,203,420"
    assert words.percent(0.15) == "15%"
    assert words.percent(-0.084, plus=True) == "−8.4%"
    assert words.decimals(0.0415) == 4
    assert [words.duration(s) for s in (0.42, 12, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert words.listing([]) == ""


def test_amounts_follow_the_budgets_unit() -> None:
    result = sample()
    last = result["rounds"][2]
    assert words.amounts(result, last) == (
        {d: float(n) for d, n in last["tokens_by_domain"].items()},
        "training tokens",
    )
    result["budget"]["unit"] = "rows"
    assert words.amounts(result, last) == ({d: float(n) for d, n in last["counts"].items()}, "rows")
    # supervised tokens by domain were not recorded: never label tokens as supervised
    result["budget"]["unit"] = "supervised_tokens"
    assert words.amounts(result, last)[1] == "training tokens"


# --- against joint -------------------------------------------------------------------------------------------


def test_better_is_the_paired_difference_from_joint() -> None:
    result = sample()
    result["rounds"][2]["difference_from_start"] = {"value": -0.0468, "se": 0.0047, "dof": 180.0}
    found = comparison.against_joint(result)
    assert found.verdict == "better"
    assert found.value == pytest.approx(-0.0468)
    assert found.se == pytest.approx(0.0047)
    assert "falls from 1.3124 to 1.2656, by 0.0468 nats per supervised token" in found.sentence
    assert "95% interval 0.0375 to 0.0561" in found.sentence


def test_joint_stands_for_the_mean_of_its_trainings() -> None:
    result = sample()
    chosen = result["rounds"][2]["objective"]["value"]
    first = result["rounds"][0]["objective"]["value"]
    result["replicates"] = {"count": 1, "seed_sd_objective": 0.003, "objectives": [first, first + 0.02]}
    result["rounds"][2]["difference_from_start"] = {
        "value": chosen - first - 0.01,
        "se": 0.0047,
        "dof": 180.0,
    }
    found = comparison.against_joint(result)
    assert (
        f"falls from {first + 0.01:.4f} to {chosen:.4f}, by {first + 0.01 - chosen:.4f} nats"
        in found.sentence
    )
    assert "its loss here is the mean" in comparison.seed_noise(result)


@pytest.mark.parametrize(
    ("value", "says", "title"),
    [(-0.002, "undecided", "Undecided against joint"), (0.03, "worse", "Worse than joint")],
)
def test_undecided_and_worse_say_so(value: float, says: str, title: str) -> None:
    result = sample(rounds=2)
    result["rounds"][1]["difference_from_start"]["value"] = value
    result["rounds"][1]["objective"]["value"] = result["rounds"][0]["objective"]["value"] + value
    found = comparison.against_joint(result)
    assert (found.verdict, found.title) == (says, title)
    assert ("rises" if value > 0 else "falls") in found.sentence
    assert ("cannot tell" in found.sentence) == (says == "undecided")


def test_no_error_means_no_claim() -> None:
    result = sample(rounds=2)
    result["rounds"][1]["difference_from_start"] = None
    found = comparison.against_joint(result)
    assert found.verdict == "undecided"
    assert "no error is known" in found.sentence


@pytest.mark.parametrize(("key", "amount", "words_found"), [
    ("tokens", 1_203_420 * 1.02, "2.0% more tokens"), ("steps", 150, "2 fewer optimiser steps"),
])  # fmt: skip
def test_unequal_volumes_are_never_called_better(key: str, amount: float, words_found: str) -> None:
    result = sample(rounds=2)
    result["rounds"][1][key] = amount
    found = comparison.against_joint(result)
    assert found.verdict == "unequal"
    assert words_found in found.sentence
    assert "neither better nor worse" in found.sentence


def test_keeping_joint() -> None:
    found = comparison.against_joint(variant("joint is best"))
    assert found.verdict == "same"
    assert (
        found.sentence
        == "2 other mixtures were trained: 1 was worse than joint and 1 could not be told from it."
    )
    assert "No other mixture" in comparison.against_joint(variant("one round")).sentence


def test_seed_noise_is_never_hidden() -> None:
    assert "not repeated" in comparison.seed_noise({"replicates": {"count": 0, "seed_sd_objective": None}})
    assert "0.0034" in comparison.seed_noise(sample())


def test_test_sets_in_one_sentence() -> None:
    text = comparison.tests_sentence(sample()["final"]["test_differences"])
    assert "better on mathematics, worse on reasoning and not to be told from joint on coding" in text
    assert comparison.tests_sentence({}) == ""


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/model", "org/model"),
        ("/home/me/models/mine/", "mine"),
        ("C:\\models\\mine", "mine"),
        (None, None),
    ],
)
def test_a_local_model_is_called_by_its_folder(model: str | None, shown: str | None) -> None:
    assert words.model_name(model) == shown
