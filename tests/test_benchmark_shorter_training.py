"""The benchmark of a training at a quarter of the budget: the step without it and with it, and the elasticity between both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import shorter_training


def test_elasticity_is_the_slope_of_log_fall_by_log_volume() -> None:
    assert shorter_training.elasticity(0.8, 0.8 * 0.25**0.3) == pytest.approx(0.3)
    assert shorter_training.elasticity(0.5, -0.1) is None


def test_the_quarter_is_given_to_one_of_the_two_steps(monkeypatch) -> None:
    joint = {"counts": {"a": 100}, "deciding": {"a": 1.0}, "test": {"a": 1.0}}
    short = {"counts": {"a": 25}, "deciding": {"a": 1.5}}
    asked = []

    def step(rule, seen, matrix):
        asked.append((rule, seen))
        return {"a": 100 * len(seen)}

    def trained(counts, influence):
        return {**joint, "counts": counts, "test": {"a": 0.5 + counts["a"] / 1000}}, None

    lab = SimpleNamespace(suite=1, seed=2, start=joint["counts"], base={"a": 3.0}, trained=trained, step=step)
    monkeypatch.setattr(shorter_training, "quarter", lambda lab: short)
    found = shorter_training.compared(lab, "curves:7")
    assert (found["joint"], found["without"], found["with"]) == (0.6, 0.6, 0.7)
    assert found["skills"]["a"] == {
        "fall": 1.099,
        "quarter": 0.693,
        "elasticity": pytest.approx(0.332, abs=1e-3),
    }
    (_, alone), (_, both) = asked
    assert [one["counts"]["a"] for one in alone] == [100]
    assert [one["counts"]["a"] for one in both] == [25, 100]  # the step starts from the last
