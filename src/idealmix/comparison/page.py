"""A comparison as one self-contained HTML page, in the report's look.

Flows in: the content of ``comparison.json``. Flows out: HTML without a script or a request to anywhere; names are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from idealmix.comparison import tables
from idealmix.report import figures, words


def build(content: Mapping[str, Any]) -> str:
    """The page."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("idealmix.comparison", ""), PackageLoader("idealmix.report", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html").render(
        content=content,
        words=words,
        headline=_headline(content),
        seeds=words.plural(len(content["seeds"]), "seed"),
        picture=_picture(content),
        what=tables.HEADLINES[content["headline"]],
        tables=tables.comparison_tables(content),
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


def _picture(content: Mapping[str, Any]) -> Markup:
    """The headline figure of every trained method with its 95% interval over seeds; the base model as a line."""
    methods, headline = content["methods"], content["headline"]
    points = []
    for name in ["joint", *(name for name in tables.ordered(content) if name not in ("joint", "base"))]:
        found = methods[name]["figures"][headline]
        half = words.half_width(found["se"], found["n"] - 1 or None)
        points.append(figures.Point(name, found["mean"], half, best=name == tables.ordered(content)[0]))
    base = methods["base"]["figures"][headline]["mean"]
    return figures.dots(f"{tables.HEADLINES[headline]} by method", points, base=base, joined=False)
