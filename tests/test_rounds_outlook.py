"""Whether a further round is worth its training: against losses that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loop_helpers import World
from scipy.optimize import minimize

from idealmix.rounds.outlook import outlook

SIZES = {"maths": 0.2, "code": 2.0, "law": 0.8}


def own(name: str):
    return lambda shares: 4.0 * (1 + shares[name] * 30 / SIZES[name]) ** -0.45


def world(**given) -> World:
    return World({name: own(name) for name in SIZES}, slope_error=(1e-4, 1e-4), untrained=4.0, **given)


def objective(z) -> float:
    return float(np.mean([own(name)(dict(zip(SIZES, z))) for name in SIZES]))


def test_what_is_left_is_foretold_and_worth_a_round(tmp_path):
    start = {"maths": 200, "code": 2000, "law": 800}
    _, result = world(row_noise=1e-4).run(tmp_path, tuple(SIZES), rounds=2, m=0.3, start=start)
    found = result["outlook"]
    now = np.array([result["rounds"][result["best"]]["counts"][name] for name in SIZES])
    now = now / now.sum()
    best = minimize(
        objective, now, bounds=list(zip(now / 1.3, now * 1.3)), constraints={"type": "eq", "fun": lambda z: z.sum() - 1}
    ).fun  # fmt: skip
    assert found["expected"] == pytest.approx(best - objective(now), rel=0.25)
    assert -found["expected"] > found["visible"] > 0
    assert found["text"].endswith(
        "A further round is worth its training: raise allocation.rounds (the same folder goes on)."
    )


def test_rounds_that_ended_with_patience_are_not_told_to_go_on_in_number(tmp_path):
    """More rounds would end at the same place: patience is asked before their number."""
    start = {"maths": 200, "code": 2000, "law": 800}
    given = {"rounds": 2, "m": 0.3, "start": start, "patience": 0}
    story, _ = world(row_noise=1e-4).run(tmp_path, tuple(SIZES), **given)
    assert story.state.failures == 0
    story.state = replace(story.state, failures=1)
    assert "they ended with allocation.patience" in outlook(story, dict.fromkeys(SIZES, 1.0)).text


def test_what_noise_would_hide_is_not(tmp_path):
    _, result = world(seed_noise=0.05).run(tmp_path, tuple(SIZES), rounds=3)
    found = result["outlook"]
    assert found["expected"] <= 0
    assert -found["expected"] < found["visible"]
    assert found["text"].endswith("A further round is not worth its training.")


def test_there_is_none_without_a_comparison_or_by_the_papers_rule(tmp_path):
    assert world().run(tmp_path, tuple(SIZES), rounds=1)[1]["outlook"] is None
    paper = {"method": "ideal-paper", "budget": {"hold": False}, "rule": "scaled", "m": 0.15, "gate": False}
    assert (
        world().run(tmp_path, tuple(SIZES), rounds=3, influence={"centred": False}, **paper)[1]["outlook"]
        is None
    )
