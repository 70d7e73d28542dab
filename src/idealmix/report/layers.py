"""The parts of the newest influence by layer, and the damping of each: what the page's layer grid is drawn from.

Flows in: the mapping of result.json. Flows out: compact data for page.js; None where there is none or too much of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from idealmix.evaluation.objective import objective_gradient

_MOST = 24_000  # figures


def layers(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Layers as places in a grid of kinds (rows) by depth (columns), with their figures to three digits."""
    measured = [r for r in result["rounds"] if r.get("influence") and r["influence"].get("layers")]
    if not measured:
        return None
    found = measured[-1]["influence"]
    parts, domains, references = found["layers"], found["domains"], found["references"]
    if len(parts) * len(domains) * len(references) > _MOST:
        return None
    slopes = by_reference(result, measured[-1])
    kinds, depths, places = _grid([layer["name"] for layer in parts])
    damping = found.get("damping_absolute") or {}
    if not isinstance(damping, Mapping):
        damping = {}
    return {
        "index": measured[-1]["index"],
        "domains": domains,
        "references": references,
        "share": [slopes[q] for q in references],
        "kinds": kinds,
        "depths": depths,
        "layers": [
            {
                "name": layer["name"],
                "at": place,
                "alpha": [[_short(a) for a in row] for row in layer["alpha"]],
                "damping": _short(damping.get(layer["name"])),
            }
            for layer, place in zip(parts, places)
        ],
        "damped": bool(damping),
    }


def by_reference(result: Mapping[str, Any], of_round: Mapping[str, Any]) -> dict[str, float]:
    """dO/dL_q at a round, by reference set of its matrix; 0 for those of no weight."""
    names = of_round["influence"]["references"]
    asked, start = result.get("weights") or {}, result["rounds"][0]
    of = (of_round, start, result.get("base") or {})
    losses, first, base = ({q: one["mean"] for q, one in (part.get("losses") or {}).items()} for part in of)
    known = {q: asked.get(q, 1) for q in names}
    means = {q: losses.get(q, 1.0) for q in names}
    found = objective_gradient(means, known, result.get("objective") or "mean_loss", first, base)
    return {q: found.get(q, 0.0) for q in names}


def _grid(names: list[str]) -> tuple[list[str], int, list[tuple[int, int]]]:
    """Kinds, number of depths, and every layer's (kind, depth): the first number in a name is its depth."""
    found = [re.match(r"(.*?)\.?(\d+)\.(.*)", name) for name in names]
    keys = [(f"{m[1]} {m[3]}", int(m[2])) if m else (name, 0) for m, name in zip(found, names)]
    if len(set(keys)) < len(keys):  # not a stack of blocks: one row
        return ["layers"], len(names), [(0, k) for k in range(len(names))]
    kinds = list(dict.fromkeys(kind for kind, _ in keys))
    heads = {kind.partition(" ")[0] for kind in kinds}
    labels = [kind.partition(" ")[2] or kind for kind in kinds] if len(heads) == 1 else kinds
    depths = max(depth for _, depth in keys) + 1
    return labels, depths, [(kinds.index(kind), depth) for kind, depth in keys]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
