"""Who helps and who hurts whom: the newest influence as a map of arrows and a table of pairs.

Flows in: the mapping of result.json. Flows out: plain views for the template, and one picture. A sign is claimed only where
the whole table's signs are claimed (`words.signs`), so an arrow never rests on less than the heat map's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from markupsafe import Markup, escape

from idealmix.report import words

_ROW, _LEFT, _RIGHT, _WIDTH = 30, 125, 315, 440
_MOST_PAIRS = 45

RELATIONS = {
    ("helps", "helps"): "symbiosis: each helps the other",
    ("hurts", "hurts"): "conflict: each hurts the other",
    ("helps", "hurts"): "one-sided: {a} helps {b}, {b} hurts {a}",
    ("hurts", "helps"): "one-sided: {a} hurts {b}, {b} helps {a}",
}


def relations(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The map and the pairs of the newest measured round; None without influence."""
    measured = [r for r in result["rounds"] if r.get("influence")]
    if not measured:
        return None
    found = measured[-1]["influence"]
    alpha, se, domains, references = (
        found["alpha"], found.get("se_population"), found["domains"], found["references"],
    )  # fmt: skip
    signs = words.signs(alpha, se, found.get("dof"))
    top = max((abs(a) for row in alpha for a in row if a is not None), default=0.0)
    errors = [s for row in se or [] for s in row if s]
    places = max(words.decimals(top, 3), min(words.decimals(min(errors, default=top), 1), 4))

    def cell(of: str, on: str) -> dict[str, Any]:
        q, i = references.index(on), domains.index(of)
        return {"value": alpha[q][i], "se": se[q][i] if se else None, "sign": signs[q][i]}

    both = [name for name in domains if name in references]
    pairs = []
    for a, b in combinations(both, 2):
        there, back = cell(a, b), cell(b, a)
        relation = _relation(a, b, there["sign"], back["sign"])
        pairs.append({"a": a, "b": b, "there": there, "back": back, "relation": relation})
    told = [pair for pair in pairs if pair["relation"] != "cannot be told"]
    arrows = [
        (i, q, signs[q][i], alpha[q][i], _tip(domain, reference, cell(domain, reference), places))
        for i, domain in enumerate(domains)
        for q, reference in enumerate(references)
        if signs[q][i] in ("helps", "hurts")
    ]
    return {
        "index": measured[-1]["index"],
        "centred": found.get("centred"),
        "places": places,
        "svg": _map(domains, references, arrows, top) if arrows else None,
        "arrows": len(arrows),
        "cells": len(domains) * len(references),
        "pairs": pairs if len(pairs) <= _MOST_PAIRS else told[:_MOST_PAIRS],
        "left_out": 0 if len(pairs) <= _MOST_PAIRS else len(pairs) - len(told[:_MOST_PAIRS]),
    }


def _relation(a: str, b: str, there: str, back: str) -> str:
    if (there, back) in RELATIONS:
        return RELATIONS[there, back].format(a=a, b=b)
    if there in ("helps", "hurts"):
        return f"{a} {there} {b}; the other way cannot be told"
    if back in ("helps", "hurts"):
        return f"{b} {back} {a}; the other way cannot be told"
    return "cannot be told"


def _tip(domain: str, reference: str, cell: Mapping[str, Any], places: int) -> str:
    error = "" if cell["se"] is None else f" ± {words.number(cell['se'], places)}"
    return (
        f"more {domain} {cell['sign']} {reference}: {words.number(cell['value'], places, plus=True)}{error}"
    )


def _map(
    domains: list[str], references: list[str], arrows: Sequence[tuple[int, int, str, float, str]], top: float
) -> Markup:
    """Domains left, reference sets right, a line for each sign that is claimed; width by size."""
    height = _ROW * max(len(domains), len(references)) + 8

    def y(k: int, of: int) -> float:
        return 4 + (height - 8) * (k + 0.5) / of

    out = []
    for i, q, sign, value, tip in sorted(arrows, key=lambda arrow: abs(arrow[3])):
        a, b, middle = y(i, len(domains)), y(q, len(references)), (_LEFT + _RIGHT) / 2
        width = 1 + 5 * abs(value) / top if top else 1
        out.append(
            f'<path class="arrow {sign}" stroke-width="{width:.1f}" data-tip="{escape(tip)}" '
            f'd="M{_LEFT} {a:.1f}C{middle} {a:.1f} {middle} {b:.1f} {_RIGHT} {b:.1f}"/>'
        )
    for names, x, anchor in ((domains, _LEFT - 8, "end"), (references, _RIGHT + 8, "start")):
        for k, name in enumerate(names):
            at = f'x="{x}" y="{y(k, len(names)):.1f}" dy=".33em" text-anchor="{anchor}"'
            out.append(
                f"<text {at}>{escape(name if len(name) <= 16 else name[:15] + '…')}<title>{escape(name)}</title></text>"
            )
    title = "Map of who helps and hurts whom; every figure is in the tables"
    return Markup('<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH,
        f"{height:.0f}",
        title,
        Markup("").join(map(Markup, out)),
    )
