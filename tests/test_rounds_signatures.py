"""How a run fails without an error, each provoked through the loop over formulas: caught, and told in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from loop_helpers import World, own_domain, state_of

from idealmix.report.page import build
from idealmix.rounds.signatures import signatures

THREE = ("maths", "code", "chat")
law = own_domain()


def quadratic(centre: Mapping[str, float], bend: float = 4.0):
    """Lowest at given shares."""
    return lambda shares: (
        1 + bend * sum((np.log(max(shares[n], 1e-6)) - np.log(c)) ** 2 for n, c in centre.items())
    )


def test_a_run_without_trouble_says_nothing(tmp_path):
    world = World({"maths": lambda s: 0.5 * law("maths")(s), "code": lambda s: 0.4 * law("code")(s)})
    story, result = world.run(tmp_path, THREE, m=0.3, rule="scaled")
    assert state_of(story).best > 0
    assert signatures(story) == []
    assert result["warnings"] == []


def test_divergence_is_rolled_back_and_m_halved(tmp_path):
    """The optimum is near, m takes the mixture far beyond it."""
    world = World({"maths": quadratic({"maths": 0.36, "code": 0.32, "chat": 0.32})})
    story, result = world.run(tmp_path, THREE, m=4.0, rounds=3, patience=3, rule="scaled")
    first, second = story.rounds[1], story.rounds[2]
    assert first.decision is not None
    assert first.decision.outcome == "worse"
    assert "Back to round 0: m is halved to 2, since the step went too far." in result["rounds"][1]["reason"]
    # a step of half the length empties the others too: it is halved until it leads elsewhere
    assert (
        result["notes"].count(
            "m is halved to 1: the step leads to the mixture of round 1 again, which was no better."
        )
        == 1
    )
    assert second.m == pytest.approx(1.0)
    assert first.mixed.mixture.counts["code"] == 0 < second.mixed.mixture.counts["code"]
    assert result["best"] != 1
    assert result["rounds"][result["best"]]["objective"]["value"] <= result["rounds"][0]["objective"]["value"]


def test_the_papers_rule_that_ends_worse_says_so(tmp_path):
    world = World({"maths": quadratic({"maths": 0.34, "code": 0.33, "chat": 0.33}, 40.0)})
    story, result = world.run(
        tmp_path, THREE, m=0.9, rounds=2, rule="scaled", method="ideal-paper", gate=False
    )
    assert result["best"] == 1
    assert "The final mixture is worse than round 0" in result["warnings"][0]
    assert "a step of m = 0.9 is too large (lower allocation.m)" in result["warnings"][0]
    assert signatures(story)[0] in result["warned"]


@pytest.mark.parametrize(
    ("errors", "damping", "says"),
    [
        (
            (5.0, 0.1),
            1e-3,
            "the reference sets are too small (they make 100% of the error's variance; the smallest gives gradients of 200 rows)",
        ),
        ((0.1, 5.0), 1e-3, "too few training rows are measured"),
        ((5.0, 0.1), 0.5, "the damping is high (0.5 of the mean eigenvalue hides most of the curvature)"),
    ],
)
def test_stagnation_names_its_likely_cause(tmp_path, errors, damping, says):
    world = World({"maths": law("maths"), "code": law("code")}, slope_error=errors)
    story, result = world.run(tmp_path, THREE, influence={"damping": damping})
    assert len(story.rounds) == 1
    assert "no domain's influence stands out of its error" in result["ended"]
    (said,) = result["warnings"]
    assert says in said
    assert ("damping" in said) == (damping > 0.1)


def test_more_rows_are_asked_for_where_all_are_measured(tmp_path):
    world = World({"maths": law("maths"), "code": law("code")}, slope_error=(0.1, 5.0))
    story, _ = world.run(tmp_path, THREE)
    at = story.rounds[0]
    every = replace(at.influence.moments, fraction=np.ones_like(at.influence.moments.fraction))
    at.influence = replace(at.influence, moments=every)
    assert any("all are measured already, so add training rows" in said for said in signatures(story))


def test_what_cannot_be_learnt_is_named(tmp_path):
    """A capability on which training changes nothing, and a step that therefore has nothing to go by."""
    world = World({"maths": lambda s: 3.0}, slope_error=(1.0, 1.0))
    _, result = world.run(tmp_path, THREE)
    unlearned, stuck = result["warnings"]
    assert unlearned.startswith(
        "maths: training does not lower its reference loss (3.000 in the base model, 3.0"
    )
    assert "maths cannot be learnt from this mixture" in stuck


def test_a_reference_set_unlike_its_test_set_is_told_and_steers_nothing(tmp_path):
    """More maths lowers the reference loss and raises the test loss."""
    losses = {"maths": law("maths"), "code": law("code")}
    against = {"maths": lambda s: 1 + 3 * s["maths"], "code": law("code")}
    story, result = World(losses, tests=against).run(tmp_path, THREE, m=0.4, rule="scaled")
    blind, plain = World(losses).run(tmp_path, THREE, m=0.4, rule="scaled")
    assert story.rounds[1].mixed.mixture.counts["maths"] > 1000
    (said,) = result["warnings"]
    assert said.startswith("maths: the mixture gains on its reference set")
    assert "the reference set does not stand for the test set" in said
    assert plain["warnings"] == []
    assert [one.mixed.mixture.counts for one in story.rounds] == [
        one.mixed.mixture.counts for one in blind.rounds
    ]
    assert state_of(story) == state_of(blind)


def test_oscillation_is_damped(tmp_path):
    """Every step overshoots and is a gain: turning round twice halves m, which a gain would have raised."""
    world = World({"maths": quadratic({"maths": 0.5, "code": 0.25, "chat": 0.25}, 1.0)}, untrained=9.0)
    story, result = world.run(tmp_path, THREE, m=0.75, rounds=9, patience=9, rule="scaled")
    (damped,) = [one for one in result["rounds"] if "turned round twice, so steps overshoot" in one["reason"]]
    assert damped["decision"] == "better"
    assert story.rounds[damped["index"] + 1].m == pytest.approx(damped["m"] / 2)
    best = story.rounds[state_of(story).best]
    assert best.mixed.mixture.counts["maths"] / 3000 == pytest.approx(0.5, abs=0.02)
    assert result["warnings"] == []


def test_collapse_is_held_by_bounds_and_told_without(tmp_path):
    """Only one domain is asked for."""
    world = World({"maths": law("maths")})
    _, bare = world.run(tmp_path, THREE, m=1.0, rounds=4, patience=4, rule="scaled")
    assert bare["rounds"][bare["best"]]["counts"]["maths"] > 2700
    assert any("maths makes up" in text and "allocation.cap" in text for text in bare["warnings"])
    _, held = World({"maths": law("maths")}).run(
        tmp_path, THREE, m=1.0, rounds=4, patience=4, rule="scaled", cap=0.6, floor=0.1
    )
    for one in held["rounds"]:
        assert one["counts"]["maths"] <= 1801
        assert min(one["counts"].values()) >= 299
    assert held["warnings"] == []


def test_warnings_stand_in_the_report(tmp_path):
    world = World({"maths": law("maths"), "code": law("code")}, slope_error=(5.0, 0.1))
    _, result = world.run(tmp_path, THREE)
    content = json.loads(
        json.dumps({k: v for k, v in result.items() if k not in ("notes", "warned")}, allow_nan=False)
    )
    assert "the reference sets are too small" in build(content)
