"""Figures over seeds against hand-computed values, and how tables say them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from idealmix.comparison.figures import figures, gain_per_epoch, over_seeds, paired
from idealmix.comparison.page import build
from idealmix.comparison.tables import comparison_tables, gains


def run(
    objective: float, test: float, score: float, shares: tuple[float, float] = (0.5, 0.5)
) -> dict[str, Any]:
    mixture = {"shares": dict(zip(("a", "b"), shares)), "counts": {"a": 1, "b": 2}}
    mixture |= {"rows": 3, "tokens": 30, "supervised_tokens": 9, "steps": 2}
    return {
        "seed": 0, "objective": objective, "losses": {}, "tests": {"x": test, "<y>": test + 1}, "scores": {"s": score},
        "mixtures": [mixture], "search": {"epochs": 2.0, "seconds": 1.0},
    }  # fmt: skip


def content(**methods: list[dict[str, Any]]) -> dict[str, Any]:
    told = {
        name: {
            "figures": (found := figures(runs, methods["joint"])),
            "search_epochs": 0.0 if name == "joint" else 2.0,
            "search_seconds": 1.0,
            "gain_per_epoch": gain_per_epoch(
                found["test_loss"]["difference"], 0.0 if name == "joint" else 2.0
            ),
            "runs": runs,
        }
        for name, runs in methods.items()
    }
    return {
        "format": 1, "name": "n", "model": "m", "objective": "mean_loss", "headline": "test_loss",
        "budget": {"unit": "tokens", "epochs": 1.0, "rows": 3, "tokens": 30, "supervised_tokens": 9, "steps": 2},
        "domains": ["a", "b"], "references": ["a"], "tests": ["x", "<y>"], "scores": ["s"],
        "seeds": list(range(len(methods["joint"]))), "methods": told, "warnings": ["<careful>"],
        "facts": {"idealmix": "0", "hardware": "none"}, "timing": {"total_s": 1.0, "phases": {}},
    }  # fmt: skip


def test_mean_and_standard_error_over_seeds() -> None:
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, se sqrt(7 / 3)
    assert over_seeds([1.0, 2.0, 6.0]) == {"mean": 3.0, "se": pytest.approx(math.sqrt(7 / 3)), "n": 3}
    assert over_seeds([4.0]) == {"mean": 4.0, "se": None, "n": 1}


def test_difference_is_paired_by_seed() -> None:
    # seeds differ by a lot, the method is 0.1 lower at each but for a little
    found = paired([1.0, 2.0, 3.0], [1.1, 2.11, 3.09], lower_is_better=True)
    assert found["value"] == pytest.approx(-0.1)
    assert found["se"] == pytest.approx(0.01 / math.sqrt(3))
    assert found["dof"] == 2
    assert found["verdict"] == "better"
    assert found["p"] == pytest.approx(0.0033, abs=2e-4)  # t = -17.32 at 2 degrees of freedom
    assert paired([1.0, 2.0], [1.2, 1.9], lower_is_better=True)["verdict"] == "undecided"
    assert paired([0.9, 0.91, 0.9], [0.5, 0.5, 0.5], lower_is_better=False)["verdict"] == "better"


def test_one_seed_claims_nothing() -> None:
    found = paired([1.0], [2.0], lower_is_better=True)
    assert found == {"value": -1.0, "se": None, "dof": None, "p": None, "verdict": "undecided"}


def test_figures_by_name() -> None:
    found = figures([run(1.0, 2.0, 0.5)], [run(1.5, 2.5, 0.25)])
    assert found["test_loss"]["mean"] == 2.5  # of 2 and 3
    assert found["test_loss.<y>"]["mean"] == 3.0
    assert found["objective"]["difference"]["value"] == -0.5
    assert found["score.s"]["difference"]["value"] == 0.25
    assert gain_per_epoch({"value": -0.5}, 2.0) == 0.25
    assert gain_per_epoch({"value": -0.5}, 0.0) is None


def test_tables_are_sorted_and_say_how_sure() -> None:
    joint = [run(2, 2.0, 0.5), run(2, 2.2, 0.5), run(2, 2.1, 0.5)]
    good = [run(1, 1.5, 0.6), run(1, 1.7, 0.6), run(1, 1.61, 0.6)]
    title, columns, rows = gains(content(base=[run(3, 3.0, 0.0)] * 3, joint=joint, good=good))
    assert "3 methods, 3 seeds, each on 30 training tokens and 2 optimiser steps" in title
    assert [row[0] for row in rows] == ["good", "joint", "base"]
    assert rows[0][columns.index("than joint")] == "better"
    assert rows[1][columns.index("minus joint")] == ""
    assert rows[0][columns.index("gain per extra epoch")] == "+0.2483"  # 0.4967 / 2
    one = gains(content(base=joint[:1], joint=joint[:1], good=good[:1]))
    assert "one seed: no error" in one[2][0]
    shares = comparison_tables(content(base=joint, joint=joint, good=[run(1, 1, 1, (0.2, 0.8))] * 3))[-1]
    assert shares[2][0] == ["good", "20 %", "80 %"]


def test_page_is_whole_escaped_and_asks_nobody() -> None:
    joint = [run(2, 2.0, 0.5), run(2, 2.2, 0.5), run(2, 2.1, 0.5)]
    good = [run(1, 1.5, 0.6), run(1, 1.7, 0.6), run(1, 1.61, 0.6)]
    page = build(content(base=[run(3, 3.0, 0.0)] * 3, joint=joint, good=good))
    assert "Good is better than joint." in page
    assert "&lt;careful&gt;" in page
    assert "<y>" not in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 1  # of the one method that is neither base nor joint
