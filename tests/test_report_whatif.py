"""The page's sliders: the browser's counts are those of idealmix.allocation to the row; the lines to copy are a config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from whatif_helpers import Run

from idealmix import certainty
from idealmix import config as schema
from idealmix.report import write
from idealmix.report.whatif import embedded, load

KINDS: list[dict[str, Any]] = [
    {},
    {"unit": "rows"},
    {"unit": "supervised_tokens", "objective": "relative"},
    {"objective": "worst", "allocation": {"gate": False}},
    {"domains": 2, "references": 1},
    {"domains": 6, "references": 5, "allocation": {"floor": 0.05, "cap": 0.5}},
    {"hold": False},
    {"hold": False, "method": "ideal-paper", "allocation": {"m": 0.15, "gate": False}},
    {
        "allocation": {"gate": False, "rule": "scaled"},
    },
    {
        "allocation": {"gate": False, "rule": "equalise"},
        "sets": {"constraints": {"r1": {"max_increase": 0}, "r2": {"max_increase": 0.0001}}},
    },
    {"unit": "rows", "allocation": {"m": 0.5, "max_repeats": 2, "gate": False}},
    {"allocation": {"rule": "scaled"}},
    {"domains": 6, "allocation": {"rule": "exponentiated", "m": 1.0, "gate": False}},
    {"domains": 5, "objective": "relative", "allocation": {"m": 3.0, "gate": False}},
    {"domains": 5, "objective": "progress", "allocation": {"m": 3.0, "gate": False}},
    {"domains": 5, "references": 4, "allocation": {"m": 3.0}},
    {"domains": 5, "allocation": {"rule": "equalise", "m": 3.0, "gate": False}},
    {"allocation": {"rule": "equalise"}},
    {"learned": False, "allocation": {"m": 7.0, "gate": False}},
]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    yield page
    context.close()


def opened(page: Any, run: Run) -> Any:
    page.goto(write(run.folder).as_uri())
    assert page.said == []
    return page


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_browser_counts_as_idealmix_does(page: Any, tmp_path: Path, kind: int) -> None:
    """40 seeded choices a kind, over four runs; also which choices are impossible."""
    refused = moved = limited = 0
    for seed in range(4):
        run = Run(tmp_path / str(seed), seed + 100 * kind, **KINDS[kind])
        opened(page, run)
        assert page.locator("#whatif").is_visible()
        rng = np.random.default_rng(seed)
        choices = [run.choice(rng) for _ in range(10)]
        if not run.config.allocation.budget.hold:
            choices = [{**choice, "budget": run.amount} for choice in choices]
        got = page.evaluate(
            """choices => {
              const data = Allocation.load(JSON.parse(document.getElementById("whatif-data").textContent));
              return choices.map(c => { try { return Allocation.propose(data, data.rounds[0], c).counts; } catch { return null; } });
            }""",
            choices,
        )
        for choice, found in zip(choices, got):
            expected = run.counts(choice)
            assert found == expected, choice
            refused += expected is None
            moved += expected is not None and expected != [run.start[n] for n in sorted(run.names)]
        limited += run.limited
    assert limited or "sets" not in KINDS[kind]
    assert moved > 8, "the choices hardly move anything, so the test shows nothing"
    assert kind != 0 or refused


def test_sliders_keys_table_and_lines(page: Any, tmp_path: Path) -> None:
    """Through the controls themselves: by value, by keyboard, back; 40 settings."""
    run = Run(tmp_path / "run", 5, domains=5)
    opened(page, run)
    rng = np.random.default_rng(0)
    names = sorted(run.names)
    base = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))

    def shown() -> list[int] | None:
        if not page.locator("#whatif-result").is_visible():
            return None
        return [
            int(c)
            for c in page.eval_on_selector_all(
                "#whatif-rows td[data-rows]", "cells => cells.map(c => c.dataset.rows)"
            )
        ]

    def put(key: str, value: float, at: int = 0) -> None:
        page.eval_on_selector(
            f'input[data-key="{key}"][data-at="{at}"], input[type=checkbox][data-key="{key}"]',
            "(e, v) => { if (e.type === 'checkbox') e.checked = v; else e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }",
            value,
        )

    first = run.counts(
        {
            "weights": [s.weight for s in run.config.references.values()],
            "m": 0.3,
            "budget": run.amount,
            "floor": [0.0] * 5,
            "cap": [1.0] * 5,
            "max_repeats": 4,
            "gate": True,
        }
    )
    assert shown() == first
    assert "This is what the run proposed" in page.inner_text("#whatif-said")
    for _ in range(40):
        choice = run.choice(rng)
        share = round(float(rng.uniform(50, 200)))
        choice["budget"] = math.floor(run.amount * share / 100 + 0.5)
        for at, weight in enumerate(choice["weights"]):
            choice["weights"][at] = round(weight * 20) / 20
            put("weight", choice["weights"][at], at)
        for key in ("floor", "cap"):
            put(key, choice[key][0])
        for key, value in (
            ("m", choice["m"]),
            ("budget", share),
            ("max_repeats", choice["max_repeats"]),
            ("gate", choice["gate"]),
        ):
            put(key, value)
        expected = run.counts(choice)
        assert shown() == expected, choice
        if expected is None:
            assert page.inner_text("#whatif-said").endswith(".")
            continue
        given = yaml.safe_load(page.inner_text("#whatif-lines"))
        assert given["allocation"]["start"] == dict(zip(names, expected))
        merged = {**base, "allocation": {**base["allocation"], **given["allocation"]}}
        merged["references"] = {
            q: {**base["references"][q], **given.get("references", {}).get(q, {})} for q in run.references
        }
        config = schema.Config.model_validate(merged)
        assert [config.references[q].weight for q in run.references] == choice["weights"]
        assert config.allocation.m == choice["m"]
        assert config.allocation.max_repeats == choice["max_repeats"]
        assert config.allocation.gate == choice["gate"]
        assert config.allocation.floor == choice["floor"][0]
        assert (1.0 if config.allocation.cap is None else config.allocation.cap) == choice["cap"][0]
    page.click("#whatif-reset")
    assert shown() == first
    # by keyboard: the slider takes the focus, shows it, and an arrow moves it by one step
    slider = page.locator('input[data-key="m"]')
    page.locator('input[data-key="budget"]').focus()
    page.keyboard.press("Shift+Tab")
    assert slider.evaluate("e => e === document.activeElement && getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "0.31"
    assert slider.get_attribute("aria-valuetext") == "31%"
    assert all(
        page.eval_on_selector_all(
            "#whatif-form input",
            "es => es.map(e => e.labels.length === 1 && e.labels[0].textContent.trim() !== '')",
        )
    )
    page.wait_for_timeout(700)
    assert page.inner_text("#whatif-live") == page.inner_text("#whatif-said")
    assert page.get_attribute("#whatif-live", "aria-live") == "polite"
    assert page.said == []


def test_large_pools_are_told_to_within_some_rows(page: Any, tmp_path: Path) -> None:
    """Only every third prefix sum is known: counts come near, and the page says how near."""
    run = Run(tmp_path / "run", 12, allocation={"gate": False}, most=400)
    opened(page, run)
    assert page.locator("#whatif").is_visible()
    assert "to within some rows" in page.inner_text("#whatif-exact")
    stride = json.loads((run.folder / "draw.json").read_text(encoding="utf-8"))["domains"][run.names[0]][
        "stride"
    ]
    assert stride > 1
    found = page.eval_on_selector_all(
        "#whatif-rows td[data-rows]", "cells => cells.map(c => Number(c.dataset.rows))"
    )
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    moves = result["rounds"][0]["allocation"]["moves"]
    off = max(abs(n - moves[name]["after"]) for n, name in zip(found, sorted(run.names)))
    assert off <= 2 * stride
    assert f"within {off})" in page.inner_text("#whatif-exact")


def test_p_values(page: Any, tmp_path: Path) -> None:
    opened(page, Run(tmp_path / "run", 5))
    rng = np.random.default_rng(1)
    cases = [
        (float(t), float(nu))
        for nu in (1, 1.3, 2, 5.7, 30, 411.5, 1e5, 1e9)
        for t in [0, 1e-3, 0.5, 1.7, 2.5, 8, *rng.exponential(3, 4)]
    ]
    got = page.evaluate("cases => cases.map(c => Allocation.pValue(c[0], 1, c[1]))", cases)
    for (t, nu), p in zip(cases, got):
        # 1e9 stands for the normal; there 1 - x holds eight digits
        near = pytest.approx(certainty.p_value(t, 1.0, nu), rel=1e-9 if nu < 1e9 else 1e-6, abs=1e-300)
        assert p == near, (t, nu)
    odd = [[1, 0, 5], [0, 0, 5], [None, 1, 5]]
    assert page.evaluate("odd => odd.map(o => Allocation.pValue(...o))", odd) == [0, 1, 1]


def test_no_sliders_where_the_page_cannot_compute(page: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 3)
    # an arithmetic that does not give the run's own counts back is not shown
    result = json.loads((run.folder / "result.json").read_text(encoding="utf-8"))
    moves = result["rounds"][0]["allocation"]["moves"]
    moves[run.names[0]]["after"] += 1
    (run.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    opened(page, run)
    assert not page.locator("#whatif").is_visible()
    assert page.locator("#whatif-differs").is_visible()

    def why(**change: Any) -> str:
        config = run.config.model_dump(mode="json")
        for key, value in change.items():
            config[key] = value
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        found = load(run.folder, result)
        assert found.data is None
        return found.why

    assert "of the method doremi" in why(method="doremi")
    assert "another version" in why(surprise=1)
    assert "do not fit together" in why(seed=99)
    (run.folder / "draw.json").unlink()
    assert "draw.json is missing" in why()
    (run.folder / "config.yaml").unlink()
    assert "no config.yaml" in load(run.folder, result).why
    assert "No sliders here." in write(run.folder).read_text(encoding="utf-8")


def test_data_in_the_page_cannot_run() -> None:
    hostile = {"name": "</script><script>alert(1)</script><!--", "other": "\u2028&amp;"}
    text = embedded(hostile)
    assert json.loads(text) == hostile
    assert not re.search("[<>&\u2028]", text)
