"""A comparison as one self-contained HTML page, in the report's look.

Flows in: the content of ``comparison.json``. Flows out: HTML without a script or a request to anywhere; names are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from idealmix.comparison import tables
from idealmix.report import figures, words
from idealmix.report.page import live_script
from idealmix.report.templates import render


def build(content: Mapping[str, Any], *, live: str | None = None) -> str:
    """The page; `live`: the state that `idealmix view` serves it at."""
    picture, reach = _picture(content)
    return render(
        "comparison.html",
        "idealmix.comparison",
        content=content,
        words=words,
        headline=_headline(content),
        seeds=words.plural(len(content["seeds"]), "seed"),
        picture=picture,
        reach=reach,
        what=tables.HEADLINES[content["headline"]],
        tables=tables.comparison_tables(content),
        live=live,
        **(live_script() if live else {}),
    )


def _headline(content: Mapping[str, Any]) -> str:
    """Which methods are better than joint by more than their error over seeds."""
    methods, headline = content["methods"], content["headline"]
    verdicts = {
        name: methods[name]["figures"][headline]["difference"]["verdict"]
        for name in tables.ordered(content)
        if name not in ("joint", "base")
    }
    if len(content["seeds"]) == 1:
        return "One seed: nothing can be told from joint with an error."
    better = [name for name, says in verdicts.items() if says == "better"]
    worse = [name for name, says in verdicts.items() if says == "worse"]
    parts = (
        [f"{words.listing(better)} {'is' if len(better) == 1 else 'are'} better than joint"] if better else []
    )
    parts += [f"{words.listing(worse)} {'is' if len(worse) == 1 else 'are'} worse"] if worse else []
    said = "; ".join(parts) or "No method can be told from joint"
    return f"{said[0].upper()}{said[1:]}."


def _picture(content: Mapping[str, Any]) -> tuple[list[tuple[str, Markup]], float]:
    """The headline's difference to joint of every other trained method, with its 95% interval; and how far strips reach."""
    methods, headline = content["methods"], content["headline"]
    names = [name for name in tables.ordered(content) if name not in ("joint", "base")]
    differences = {name: methods[name]["figures"][headline]["difference"] for name in names}
    halves = {name: words.half_width(d["se"], d["dof"]) for name, d in differences.items()}
    reach = max((abs(d["value"]) + (halves[name] or 0) for name, d in differences.items()), default=0.0)
    drawn = []
    for name, d in differences.items():
        label = f"{name}: {words.number(d['value'], 4, plus=True)} ({words.interval(d['value'], d['se'], d['dof'])})"
        drawn.append((name, figures.whisker(d["value"], halves[name], reach, d["verdict"], label)))
    return drawn, reach
