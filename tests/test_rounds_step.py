"""The default step through the loop: influence in, the best mixture of known losses out."""

from __future__ import annotations

import numpy as np
import pytest
from loop_helpers import World, own_domain, state_of

from idealmix.allocation.rules import RETURNS
from idealmix.decision import LoopState, next_step, propose

POWER = 1 / RETURNS - 1


def losses(sizes: dict[str, float]):
    return {name: own_domain(POWER, size)(name) for name, size in sizes.items()}


@pytest.mark.parametrize("wrong", [1.0, 770.0])
def test_one_step_finds_the_best_mixture_whatever_the_scale_of_influence(tmp_path, wrong):
    sizes = {"maths": 0.9, "code": 0.5, "law": 0.25}
    world = World(losses(sizes), wrong=wrong, slope_error=(1e-4, 1e-4), untrained=9.0)
    story, result = world.run(tmp_path, tuple(sizes), rounds=2, rule="equalise")
    best = np.array(list(sizes.values())) ** RETURNS
    counts = np.array([result["rounds"][1]["counts"][name] for name in sizes])
    assert counts / counts.sum() == pytest.approx(best / best.sum(), abs=0.002)
    assert result["rounds"][1]["decision"] == "better"
    assert result["rounds"][0]["allocation"]["rule"] == "equalise"
    assert state_of(story).best == 1


def test_what_nobody_asks_for_shrinks_to_an_eighth_in_one_step(tmp_path):
    world = World(losses({"maths": 0.9, "code": 0.5}), untrained=9.0)
    _, result = world.run(tmp_path, ("maths", "code", "chat"), rounds=3)
    chat = [one["counts"]["chat"] for one in result["rounds"]]
    assert chat[:3] == [1000, 125, pytest.approx(16, abs=1)]


def test_after_a_rejected_step_the_next_is_shorter_though_m_did_not_bound_it(tmp_path):
    """The rule's own step lies within m = 3: half of m would not change it."""
    sizes = {"maths": 0.9, "code": 0.8}
    story, _ = World(losses(sizes), untrained=9.0).run(tmp_path, tuple(sizes), rounds=2, rule="equalise")
    step, decision = story.rounds[0].allocation, story.rounds[1].decision
    assert step is not None
    assert decision is not None
    assert max(abs(move.beta) for move in step.moves.values()) < 0.1
    start = LoopState.start({"maths": 1000, "code": 1000}, m=3.0, rounds=9, patience=9)
    rejected = next_step(
        propose(start, step), type(decision)(**{**decision.__dict__, "outcome": "worse", "value": 1.0})
    )
    again = propose(rejected, step)
    assert (again.action, again.m) == ("allocate", 0.75)
