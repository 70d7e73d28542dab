"""The share of the gap from joint to the best known mixture that a method closes, with its error.

Flows in: test figures of joint, of the best mixtures and of a method, by fresh seed. Flows out: plain JSON data and a
Markdown table. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.oracle_methods import BEST, ORDER
from idealmix.comparison.figures import paired

FIGURES = ("loss", "score")
"""Test loss, nats a supervised token, lower is better; exact match, 0 to 1, higher is better. Means over the test sets."""


def closed(
    joint: Sequence[float], method: Sequence[Sequence[float]], best: Sequence[float]
) -> dict[str, Any]:
    """(joint - method) / (joint - best), paired by seed; the same for a figure of which more is better.

    The error over k seeds is the delta method's, sd(a - r b) / (|mean b| sqrt k) with a and b the two differences of a
    seed: what a method shares with joint and best at a seed falls out. Where the search was done several times, the
    spread of the shares between searches is added. Without a gap there is no share: null.

    Args:
        joint, best: (k,) by fresh seed, k at least 2.
        method: (searches, k).
    """
    start, found, goal = np.asarray(joint), np.asarray(method), np.asarray(best)
    gap = start - goal
    if not gap.mean():
        return {"gap_closed": None, "standard_error": None, "by_search": []}
    each = (start - found).mean(axis=1) / gap.mean()
    residual = (start - found.mean(axis=0)) - each.mean() * gap
    variance = float(np.var(residual, ddof=1)) / len(start) / float(gap.mean()) ** 2
    if len(each) > 1:
        variance += float(np.var(each, ddof=1)) / len(each)
    return {
        "gap_closed": float(each.mean()),
        "standard_error": math.sqrt(variance),
        "by_search": each.tolist(),
    }


def of_suite(record: Mapping[str, Any]) -> dict[str, Any]:
    """What one suite showed: the gap over its noise, then every method that was measured so far."""
    rows = record["rows"]
    out: dict[str, Any] = {key: record[key] for key in ("suite", "generator_seed", "budget", "seeds")}
    start, best = rows["joint"], rows.get(BEST)
    if best is None:
        return {**out, "methods": {}}
    for key in FIGURES:
        joint, goal = np.array(start[key][0]), np.array(best[key][0])
        noise = max(float(joint.std(ddof=1)), float(goal.std(ddof=1)))
        out[f"{key}_gap"] = {
            "joint": float(joint.mean()),
            "best": float(goal.mean()),
            "gap": float(joint.mean() - goal.mean()),
            "sd": noise,
            "gap_over_sd": float(abs(joint.mean() - goal.mean()) / noise) if noise else None,
        }
    methods = {}
    for name in (name for name in ORDER if name in rows):
        row = rows[name]
        found = {key: closed(start[key][0], row[key], best[key][0]) for key in FIGURES}
        methods[name] = {
            **found["loss"],
            "cost_epochs": float(np.mean([search["epochs"] for search in row["searches"]])),
            "score": found["score"],
            "means": {key: float(np.mean(row[key])) for key in FIGURES},
            "than_joint": {
                key: paired(np.mean(row[key], axis=0).tolist(), start[key][0], lower_is_better=key == "loss")
                for key in FIGURES
            },
            "searches": row["searches"],
        }
    return {**out, "methods": methods}


def headline(suites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For every method its smallest share over the suites that have it, with that suite's error and cost.

    `suites` says how many have it: not all where a method cannot be asked of one, or was not measured there.
    """
    found = [suite["methods"] for suite in suites if suite["methods"]]
    out: dict[str, Any] = {}
    for name in (name for name in ORDER if any(name in methods for methods in found)):
        having = [methods[name] for methods in found if name in methods]
        lowest = min(having, key=lambda method: method["gap_closed"])
        scores = [method["score"] for method in having]
        score = min(scores, key=lambda each: math.inf if each["gap_closed"] is None else each["gap_closed"])
        out[name] = {
            **{key: lowest[key] for key in ("gap_closed", "standard_error", "cost_epochs")},
            "score": {key: score[key] for key in ("gap_closed", "standard_error")},
            "suites": len(having),
        }
    return out


def table(suite: Mapping[str, Any]) -> str:
    """One suite as Markdown, the largest share first."""
    lines = [
        "| method | share of the gap, loss | test loss | minus joint | exact match | minus joint, points | search, epochs | mixture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    methods = suite["methods"]
    for name in sorted(methods, key=lambda name: -methods[name]["gap_closed"]):
        row = methods[name]
        loss, score = (row["than_joint"][key] for key in FIGURES)
        cells = [
            name,
            _share(row),
            f"{row['means']['loss']:.4f}",
            "" if name == "joint" else f"{loss['value']:+.4f} ± {loss['se']:.4f}".replace("-", "−"),
            f"{100 * row['means']['score']:.1f} %",
            ""
            if name == "joint"
            else f"{100 * score['value']:+.1f} ± {100 * score['se']:.1f}".replace("-", "−"),
            f"{row['cost_epochs']:.1f}",
            _mixture(row["searches"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(found: Mapping[str, Any]) -> str:
    if found["gap_closed"] is None:
        return "–"
    return f"{found['gap_closed']:.2f} ± {found['standard_error']:.2f}".replace("-", "−")


def _mixture(searches: Sequence[Mapping[str, Any]]) -> str:
    """Mean shares in per cent, over searches and the mixtures that each ended with."""
    every = [shares for search in searches for shares in search["shares"]]
    return " / ".join(f"{100 * float(np.mean([shares[name] for shares in every])):.0f}" for name in every[0])
