"""The influence of each round as the page shows it: the heat map's cells, the moves, the parts by layer.

Flows in: the mapping of result.json. Flows out: plain views for the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idealmix.report import figures, words
from idealmix.report.layers import by_reference

MARKS = {"helps": "▼", "hurts": "▲", "cannot be told from zero": "≈", "not tested": "?", "not measured": "–"}
# A page with more cells of influence than this leaves out the earliest rounds' matrices, to stay below 1 MB.
_MOST_CELLS = 2000
_STRIP_BINS = 48


def matrices(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One view for each round whose influence was measured, in order."""
    measured = [r for r in result["rounds"] if r.get("influence")]
    cells = 0
    shown: list[dict[str, Any]] = []
    for r in reversed(measured):
        cells += len(r["influence"]["references"]) * len(r["influence"]["domains"])
        shown.append(_influence(r, result, drawn=cells <= _MOST_CELLS or not shown))
    return shown[::-1]


def _influence(of_round: Mapping[str, Any], result: Mapping[str, Any], *, drawn: bool) -> dict[str, Any]:
    found = of_round["influence"]
    alpha, se = found["alpha"], found.get("se_population")
    references, domains = found["references"], found["domains"]
    sizes = [abs(a) for row in alpha for a in row if a is not None]
    top = max(sizes, default=0.0)
    signs = words.signs(alpha, se, found.get("dof"))
    moves = (of_round.get("allocation") or {}).get("moves") or {}
    rows = []
    for q, reference in enumerate(references):
        row = []
        for i, domain in enumerate(domains):
            sign, a = signs[q][i], alpha[q][i]
            shade = figures.level(a, top) if sign in ("helps", "hurts") else ""
            row.append(
                {"domain": domain, "value": a, "se": se[q][i] if se else None, "sign": sign, "shade": shade}
            )
        rows.append({"name": reference, "cells": row})
    unused = found.get("alpha_unused")
    exhausted = [
        d
        for i, d in enumerate(domains)
        if unused and all(row[i] is None for row in unused) and any(row[i] is not None for row in alpha)
    ]
    return {
        "index": of_round["index"],
        "drawn": drawn,
        "held": bool(found.get("centred")),
        "rows": rows,
        "domains": domains,
        "places": words.decimals(top, 3),
        "wide": len(domains) > 7,
        "slopes": [moves.get(d) for d in domains] if any(moves.get(d) for d in domains) else None,
        "allocation": of_round.get("allocation"),
        "exhausted": exhausted,
        "dot": found.get("curvature") == "identity",
        "units": found.get("units") or "",
        "how": _how(found),
        "sizes": in_sizes(found, signs),
        "layers": _layers(of_round, result) if drawn else None,
    }


def in_sizes(found: Mapping[str, Any], signs: list[list[words.Sign]], most: int = 4) -> list[str]:
    """What a tenth more of a domain does to a loss, in words: the largest entries that are told from zero.

    Only of responses whose size retraining has confirmed within a factor of two, over all entries together; single
    ones can be further off (docs/results/fidelity.md). alpha is the slope by the relative volume; with a held budget
    the others' giving way moves the domain's share by 1 / (1 - share) more.
    """
    shares, se = found.get("token_shares") or {}, found.get("se_population")
    if found.get("response") not in ("finite", "unrolled") or not shares or not se:
        return []
    said = []
    for q, reference in enumerate(found["references"]):
        for i, domain in enumerate(found["domains"]):
            left = 1 - shares.get(domain, 1.0) if found.get("centred") else 1.0
            if signs[q][i] in ("helps", "hurts") and left > 0:
                change, error = 0.1 * found["alpha"][q][i] / left, 0.1 * se[q][i] / left
                places = words.decimals(change, 2)
                text = f"{domain} changes the loss on {reference} by {words.number(change, places, plus=True)} ± {words.number(error, places)}"
                said.append((-abs(change), text))
    return [text for _, text in sorted(said)[:most]]


def _how(found: Mapping[str, Any]) -> str:
    parts = [f"curvature {found['curvature']}"] if found.get("curvature") else []
    parts += [f"response {found['response']}"] if found.get("response") else []
    parts += [f"{found['fisher']} labels"] if found.get("fisher") else []
    if found.get("centred") is not None:
        parts.append("centred (volume held)" if found["centred"] else "not centred (volume free)")
    if found.get("damping") is not None:
        parts.append(f"damping {found['damping']:g}")
    if found.get("sample_fraction") is not None:
        least = f", at least {found['least_rows']:,} of a domain" if found.get("least_rows") else ""
        parts.append(f"{words.percent(found['sample_fraction'])} of the rows measured{least}")
    return ", ".join(parts)


def _layers(of_round: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each domain's weighted influence by layer: coloured strips, and the three largest parts by name."""
    found = of_round["influence"]
    layers, domains, references = found.get("layers") or [], found["domains"], found["references"]
    if not layers:
        return None
    slopes = by_reference(result, of_round)
    parts = [
        [sum(slopes[q] * (row[i] or 0) for q, row in zip(references, layer["alpha"])) for i in range(len(domains))]
        for layer in layers
    ]  # fmt: skip
    each = -(-len(layers) // min(_STRIP_BINS, len(layers)))  # neighbours added up when there are many layers
    bins = [[sum(column) for column in zip(*parts[k : k + each])] for k in range(0, len(parts), each)]
    top = max((abs(v) for row in bins for v in row), default=0.0)
    strips = [
        {"name": d, "svg": figures.strip([row[i] for row in bins], top, f"{d}, by layer")}
        for i, d in enumerate(domains)
    ]
    largest = sorted(
        ((layer["name"], d, parts[k][i]) for k, layer in enumerate(layers) for i, d in enumerate(domains)),
        key=lambda part: -abs(part[2]),
    )[:3]
    return {
        "count": len(layers),
        "each": each,
        "strips": strips,
        "largest": largest,
        "places": words.decimals(top, 3),
    }
