"""The report's page: every shape of a result renders, names cannot run, and a browser finds nothing wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_helpers import VARIANTS, sample, variant, watched

from idealmix.errors import InputError
from idealmix.report import build, figures, write

_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", VARIANTS)
def test_every_shape_of_a_result_renders(name: str) -> None:
    html = build(variant(name))
    page = Page(html)
    assert page.open == []
    assert len(html.encode()) < 1_000_000
    assert "None" not in page.text.replace("None.", "")
    assert "nan" not in page.text.lower().split()
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    order = [
        i for i in ids if i in ("what", "losses", "volumes", "influence", "decisions", "facts", "warnings")
    ]
    assert order == ["what", "losses", "volumes", "influence", "decisions", "facts", "warnings"]
    # one script, the project's own: the policy names its hash, and no other runs
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"script-src 'sha256-{digest}';" in html
    for tag, a in page.tags:
        assert tag not in ("img", "iframe", "object", "embed")
        assert tag != "script" or not a or a.get("type") == "application/json"
        assert not any(key.startswith("on") for key in a)
        assert tag != "th" or a.get("scope") in ("row", "col")
        assert tag != "svg" or (a.get("role") == "img" and a.get("aria-label"))
    assert html.count("<table") == html.count("<caption>")


def test_hostile_names_stay_text() -> None:
    page = Page(build(variant("hostile")))
    assert "<script>alert(1)</script>" in page.text
    assert '"><img src=x onerror=alert(2)>' in page.text
    assert [a for t, a in page.tags if t == "meta" and "default-src 'none'" in str(a.get("content"))]


def test_the_page_says_what_to_do() -> None:
    text = " ".join(Page(build(sample())).text.split())
    assert (
        "Put 28% trivia, 28% instruction, 21% reasoning, 14% coding and 9% mathematics into the mixture."
        in text
    )
    assert "Better than joint" in text
    assert "95% interval 0.0387 to 0.0549" in text
    for volume in ("9,000", "1,203,420", "604,331", "152"):
        assert volume in text
    assert "helps" in text
    assert "cannot be told from zero" in text
    assert "coding: 41 of 4,012 rows" in text
    assert "Round 0, influence: model.layers.0.mlp" in text


def test_cells_of_the_heat_map() -> None:
    result = sample(domains=("a", "b", "c"))
    found = result["rounds"][0]["influence"]
    found["alpha"] = [[-0.08, 0.08, 0.001] for _ in found["references"]]
    page = Page(build(result))
    shades = [a.get("class") for t, a in page.tags if t == "td" and a.get("data-label") in ("a", "b", "c")]
    assert shades[:3] == ["help-4", "hurt-4", "flat"]
    # the colour goes by size only where a sign is claimed
    found["se_population"] = [[0.1] * 3 for _ in found["references"]]
    page = Page(build(result))
    shades = [a.get("class") for t, a in page.tags if t == "td" and a.get("data-label") in ("a", "b", "c")]
    assert shades[:3] == ["flat"] * 3


def test_gradient_dots_are_not_called_nats() -> None:
    result = sample()
    for r in result["rounds"][:2]:
        r["influence"]["curvature"] = "identity"
    text = Page(build(result)).text
    assert "a sign and an order, not nats" in text


def test_levels_of_colour() -> None:
    assert [figures.level(v, 1.0) for v in (-1, -0.3, 0, 0.01, 0.9)] == [
        "help-4",
        "help-2",
        "",
        "hurt-1",
        "hurt-4",
    ]
    assert figures.level(0.1, 0.0) == ""


def test_dots_keep_a_far_base_off_the_scale() -> None:
    points = [figures.Point("joint", 1.3, 0.02), figures.Point("round 1", 1.2, None, kept=False, best=True)]
    far = figures.dots("t", points, base=9.0, joined=True)
    near = figures.dots("t", points, base=1.25, joined=True)
    assert "9.0" in far
    assert "↑ off the scale" in far
    assert "off the scale" not in near
    assert 'class="base"' in near
    assert figures.dots("t", [], joined=True) == ""
    assert "circle" in figures.dots("one value, no error", [figures.Point("x", 0.0, None)], joined=True)


def test_many_cells_leave_the_first_matrices_out() -> None:
    result = sample(rounds=4, domains=tuple(f"d{k}" for k in range(32)), layers=60)
    html = build(result)
    assert "Left out to keep this page small" in html
    assert len(html.encode()) < 1_000_000


def test_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"result\.json"):
        write(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(sample()), encoding="utf-8")
    page = write(tmp_path)
    assert page == tmp_path / "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    for broken in ([], {"format": 2}, {"format": 1, "rounds": []}, {**sample(), "best": 9}):
        (tmp_path / "result.json").write_text(json.dumps(broken), encoding="utf-8")
        with pytest.raises(InputError):
            write(tmp_path)


# --- in a browser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_in_a_browser(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    page, said, asked = watched(browser, width, scheme)
    for name in VARIANTS:
        file = tmp_path / f"{name.replace(' ', '-')}.html"
        file.write_text(build(variant(name)), encoding="utf-8")
        asked.clear()
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert said == [], name
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        # no text is wider than the page, unless in a box made to scroll
        lost = page.evaluate(
            "[...document.querySelectorAll('h1,h2,h3,p,li,dd,td,th,figcaption,caption')]"
            ".filter(e => !e.closest('.scroll') && !e.closest('thead') && e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert lost == [], name
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, tmp_path: Path, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for the cells of the heat map and the text around them, opacity counted."""
    context = browser.new_context(viewport={"width": 1440, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    file = tmp_path / "report.html"
    file.write_text(build(sample()), encoding="utf-8")
    page.goto(file.as_uri())
    worst = page.evaluate(
        """() => {
          const rgb = c => c.match(/[\\d.]+/g).map(Number);
          const lum = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
            return .2126 * r + .7152 * g + .0722 * b; };
          const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } };
          const found = [...document.querySelectorAll('p,td,td span,th,caption,h1,h2,h3,.mix span,.tag,dd,dt,a')].map(e => {
            const s = getComputedStyle(e), g = ground(e), o = Number(s.opacity);
            const ink = rgb(s.color).slice(0, 3).map((v, k) => o * v + (1 - o) * g[k]);
            const [a, b] = [lum(ink), lum(g)].sort((x, y) => y - x);
            return [(a + .05) / (b + .05), e.outerHTML.slice(0, 90)]; });
          return found.sort((a, b) => a[0] - b[0])[0]; }"""
    )
    assert worst[0] >= 4.5, worst
    context.close()


def test_what_was_asked_of_a_run_has_a_section_each(tmp_path: Path) -> None:
    (tmp_path / "diagnose").mkdir()
    (tmp_path / "result.json").write_text(json.dumps(sample()), encoding="utf-8")
    assert "asked-" not in write(tmp_path).read_text(encoding="utf-8")
    answer = {
        "format": 1, "question": "conflict", "headline": "Two <b>pairs</b>.", "tables": [["Pairs", ["pair", "verdict"], [["a, b", "helps"]]]],
        "notes": ["A note."], "figures": {}, "facts": {"Round": "1"},
    }  # fmt: skip
    (tmp_path / "diagnose" / "conflict.json").write_text(json.dumps(answer), encoding="utf-8")
    (tmp_path / "diagnose" / "noise.json").write_text('{"format": 1', encoding="utf-8")
    (tmp_path / "diagnose" / "fidelity.json").write_text('{"format": 1, "tables": 3}', encoding="utf-8")
    page = Page(write(tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    headings = [attributes.get("id") for tag, attributes in page.tags if tag == "h2"]
    assert [h for h in headings if str(h).startswith("asked-")] == [
        "asked-conflict",
        "asked-noise",
        "asked-fidelity",
    ]
    assert "Two <b>pairs</b>." in page.text  # as text, not as markup
    for question in ("noise", "fidelity"):
        assert f"diagnose/{question}.json is damaged or of another version" in page.text
