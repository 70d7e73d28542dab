"""The page's map of who helps whom, its layer grid, its rounds and its exact figures, in a browser and without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import sample, variant, watched
from whatif_helpers import Run

from idealmix.report import build, write
from idealmix.report.layers import by_reference, layers
from idealmix.report.matrix import _layers, in_sizes
from idealmix.report.relations import relations


def told(alpha: list[list[float]], names: tuple[str, ...] = ("a", "b", "c")) -> dict[str, Any]:
    """A result whose newest influence is `alpha` with small errors; the references bear the domains' names."""
    result = sample(rounds=1, domains=names)
    found = result["rounds"][0]["influence"]
    result["references"] = found["references"] = list(names)
    found["alpha"] = alpha
    found["se_population"] = [[0.01] * len(names)] * len(names)
    found["dof"] = [[100.0] * len(names)] * len(names)
    return result


def test_relations_in_words() -> None:
    #        more of a, b, c
    alpha = [[-1.0, -0.5, 0.4], [-0.3, -1.0, 0.2], [0.3, 0.001, -1.0]]  # loss on a, b, c
    found = relations(told(alpha))
    assert found is not None
    assert [(p["a"], p["b"], p["relation"]) for p in found["pairs"]] == [
        ("a", "b", "symbiosis: each helps the other"),
        ("a", "c", "conflict: each hurts the other"),
        ("b", "c", "c hurts b; the other way cannot be told"),
    ]
    # "there" is the first's domain on the second's loss: a column a, row b
    assert found["pairs"][0]["there"]["value"] == -0.3
    assert found["pairs"][0]["back"]["value"] == -0.5
    assert found["arrows"] == 8
    alpha[1][0] = 0.3
    found = relations(told(alpha))
    assert found is not None
    assert found["pairs"][0]["relation"] == "one-sided: a hurts b, b helps a"
    nothing = relations(told([[0.001] * 3] * 3))
    assert nothing is not None
    assert nothing["svg"] is None
    assert {p["relation"] for p in nothing["pairs"]} == {"cannot be told"}
    assert relations(variant("no influence")) is None


def test_many_pairs_leave_the_untold_out() -> None:
    names = tuple(f"d{k:02d}" for k in range(14))
    alpha = [[-1.0 if i == q else 0.5 if (q, i) == (0, 1) else 0.0001 for i in range(14)] for q in range(14)]
    found = relations(told(alpha, names))
    assert found is not None
    assert [(p["a"], p["b"]) for p in found["pairs"]] == [("d00", "d01")]
    assert found["left_out"] == 90


@pytest.mark.parametrize(
    ("objective", "slope"),
    [("mean_loss", [0.5, 0.5]), ("worst", [1.0, 0.0]), ("relative", [0.5 / 4.0, 0.5 / 0.5])],
)
def test_parts_by_layer_are_of_the_objective_that_was_asked_for(objective: str, slope: list[float]) -> None:
    first = {"losses": {"p": {"mean": 4.0}, "q": {"mean": 0.5}}}
    one = {
        "index": 1,
        "losses": {"p": {"mean": 3.0}, "q": {"mean": 0.6}},
        "influence": {
            "references": ["p", "q"],
            "domains": ["a"],
            "layers": [{"name": "x", "alpha": [[-1.0], [0.5]]}],
        },
    }
    result = {"objective": objective, "weights": {"p": 1.0, "q": 1.0}, "rounds": [first, one], "base": {}}
    assert list(by_reference(result, one).values()) == pytest.approx(slope)
    assert layers(result)["share"] == pytest.approx(slope)  # type: ignore[index]
    (largest,) = _layers(one, result)["largest"]  # type: ignore[index]
    assert largest[2] == pytest.approx(-slope[0] + 0.5 * slope[1])


def test_layers_stand_by_kind_and_depth() -> None:
    result = told([[-1.0, 0.2, 0.3]] * 3)
    found = result["rounds"][0]["influence"]
    names = [f"model.layers.{k}.{kind}" for k in (0, 1) for kind in ("self_attn.q_proj", "mlp.up_proj")]
    found["layers"] = [{"name": name, "alpha": [[0.12345] * 3] * 3} for name in names]
    found["damping_absolute"] = {names[0]: 1.23456e-7}
    grid = layers(result)
    assert grid is not None
    assert grid["kinds"] == ["self_attn.q_proj", "mlp.up_proj"]
    assert grid["depths"] == 2
    assert [layer["at"] for layer in grid["layers"]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert grid["layers"][0]["alpha"][0][0] == 0.123
    assert grid["layers"][0]["damping"] == 1.23e-7
    assert grid["layers"][1]["damping"] is None
    for layer, name in zip(found["layers"], ("conv", "conv.0.a", "conv.0.a", "x")):  # names twice: one row
        layer["name"] = name
    assert layers(result)["depths"] == 4  # type: ignore[index]
    found["layers"] *= 2000
    assert layers(result) is None


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    yield page
    assert page.said == []
    context.close()


def test_exact_figures_by_pointer_and_by_key(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(build(told([[-1.0, -0.5, 0.4], [-0.3, -1.0, 0.2], [0.3, 0.001, -1.0]])), encoding="utf-8")
    page.goto(file.as_uri())
    figure = page.locator("svg.map")
    figure.locator("[data-tip]").last.hover(force=True, position={"x": 1, "y": 1})
    figure.focus()
    seen = set()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
        assert page.locator(".tip").is_visible()
        assert page.inner_text(".tip") == page.locator("p.hidden[role=status]").last.text_content()
        seen.add(page.inner_text(".tip"))
    assert len(seen) == 8
    assert "more b helps a: −0.50 ± 0.01" in seen
    page.keyboard.press("Escape")
    assert not page.locator(".tip").is_visible()
    page.locator("svg.dots circle").first.hover()
    assert page.inner_text(".tip").startswith("joint: ")


def test_layer_grid(page: Any, tmp_path: Path) -> None:
    result = told([[-1.0, 0.2, 0.3]] * 3)
    found = result["rounds"][0]["influence"]
    names = [f"h.{k}.fc" for k in range(3)]
    found["layers"] = [
        {"name": n, "alpha": [[k + 1.0, -k, 0.0], [0.0] * 3, [0.0] * 3]} for k, n in enumerate(names)
    ]
    found["damping_absolute"] = dict(zip(names, (1e-8, 1e-6, 1e-4)))
    file = tmp_path / "report.html"
    file.write_text(build(result), encoding="utf-8")
    page.goto(file.as_uri())

    def cells() -> list[tuple[str, str]]:
        return [tuple(c) for c in page.eval_on_selector_all("#layers-grid rect", "cs => cs.map(c => [c.dataset.tip, c.getAttribute('class')])")]  # fmt: skip

    page.select_option("#layers-on", "a")
    assert cells() == [("h.0.fc: 1.00", "hurt-2"), ("h.1.fc: 2.00", "hurt-3"), ("h.2.fc: 3.00", "hurt-4")]
    assert "sum to 6.00" in page.inner_text("#layers-said")
    page.select_option("#layers-of", "b")
    assert [c for _, c in cells()] == ["flat", "help-2", "help-4"]
    page.select_option("#layers-on", index=0)
    assert cells()[2][0] == "h.2.fc: −0.667"
    page.select_option("#layers-on", "damping")
    assert [c for _, c in cells()] == ["scale-1", "scale-3", "scale-4"]
    assert page.locator("#layers-of").is_disabled()


def test_rounds_one_after_the_other(page: Any, tmp_path: Path) -> None:
    result = sample(rounds=3)
    file = tmp_path / "report.html"
    file.write_text(build(result), encoding="utf-8")
    page.goto(file.as_uri())
    assert page.inner_text("#rounds-said").startswith("Round 2: objective ")
    slider = page.locator("#rounds-at")
    slider.focus()
    page.keyboard.press("Home")
    assert page.inner_text("#rounds-said").startswith("Joint (round 0): ")
    assert slider.get_attribute("aria-valuetext") == "Joint (round 0)"
    assert page.eval_on_selector(".bar-now", "e => getComputedStyle(e).transitionDuration") == "0s"
    page.click("#rounds-play")
    assert page.inner_text("#rounds-play") == "Stop"
    page.wait_for_selector("#rounds-said:has-text('Round 2')", timeout=10_000)
    assert page.inner_text("#rounds-play") == "Play"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_a_whole_run_at_every_width(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    page, said, asked = watched(browser, width, scheme)
    file = write(Run(tmp_path / "run", 4, domains=6, references=4).folder)
    assert file.stat().st_size < 1_000_000
    page.goto(file.as_uri())
    for part in ("#whatif", "#layers", "#rounds"):
        assert page.locator(part).is_visible()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    assert not page.locator("#whatif-form").is_visible()
    assert page.locator("#whatif-rows").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_sizes_are_told_of_responses_that_have_them():
    """A tenth of the slope, and with a held budget what the others' giving way adds; only entries told from zero."""
    found = {
        "domains": ["maths", "chat"],
        "references": ["maths", "code"],
        "alpha": [[-0.088, 0.09], [0.001, 0.02]],
        "se_population": [[0.01, 0.02], [0.01, 0.004]],
        "token_shares": {"maths": 0.2, "chat": 0.8},
        "centred": True,
        "response": "finite",
    }
    signs = [["helps", "hurts"], ["cannot be told from zero", "hurts"]]
    assert in_sizes(found, signs) == [
        "chat changes the loss on maths by +0.045 ± 0.010",
        "maths changes the loss on maths by −0.011 ± 0.001",
        "chat changes the loss on code by +0.010 ± 0.002",
    ]
    assert in_sizes(found, signs, most=1) == ["chat changes the loss on maths by +0.045 ± 0.010"]
    free = in_sizes(found | {"centred": False}, signs)
    assert free[0] == "chat changes the loss on maths by +0.0090 ± 0.0020"
    assert in_sizes(found | {"response": "converged"}, signs) == []
    result = told([[-1.0, 0.5, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
    assert "In sizes" not in build(result)
    result["rounds"][0]["influence"] |= {"response": "finite", "token_shares": {"a": 0.5, "b": 0.2, "c": 0.3}}
    assert "the others giving way, a changes the loss on a by −0.20 ± 0.00" in build(result)
    assert in_sizes(found | {"token_shares": None}, signs) == []
