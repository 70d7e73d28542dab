"""``idealmix diagnose --conflict``: who helps and who hurts whom.

Flows in: a checkpoint. Flows out: an `Answer`, from one influence stage with the volume free.
"""

from __future__ import annotations

import numpy as np

from idealmix.certainty import p_text
from idealmix.diagnose.answer import Answer, Table
from idealmix.diagnose.checkpoint import Checkpoint
from idealmix.diagnostics.conflict import Relation, likeness, relations
from idealmix.moments import Array
from idealmix.report import words

SHOWN = 40
"""Pairs in the table; all are in the figures."""
ALIKE = 0.8
"""Domains whose effects on the reference rows have this cosine or more are named."""


def conflict(at: Checkpoint) -> Answer:
    """Measure, and say which relations there are."""
    (found,) = at.measure("measuring influence")
    pairs, alike = relations(found.matrix), likeness(found)
    domains = list(found.matrix.domains)
    hurts = [r for r in pairs if r.says == "hurts"]
    tables = [_pairs(pairs)]
    if near := _near(domains, alike):
        tables.append(near)
    return Answer(
        question="conflict",
        headline=_headline(pairs, hurts),
        tables=tables,
        notes=[
            "Volume free (c = 0): what more of a domain does by itself. With a held budget every domain also takes room from the others.",
            f"“By itself” judges each pair at its own 5% level: of {len(pairs)} pairs without any relation about "
            f"{words.number(0.05 * len(pairs), 1)} would be named. “Together” holds all pairs to 5% in all (Holm).",
            "Slopes at this model, to first order: a relation may turn where volumes change much.",
        ],
        figures={
            "relations": [r.to_json() for r in pairs],
            "likeness": {
                "domains": domains,
                "cosine": np.where(np.isfinite(alike), alike, np.array(None, dtype=object)).tolist(),
            },
            "units": found.matrix.units,
            "warnings": list(found.matrix.warnings),
        },
        facts=at.facts,
    )


def _headline(pairs: list[Relation], hurts: list[Relation]) -> str:
    helps = sum(r.says == "helps" for r in pairs)
    text = f"Of {words.plural(len(pairs), 'pair')} of a domain and a capability {helps} help and {len(hurts)} hurt."
    if not hurts:
        return text
    named = [f"{r.domain} hurts {r.reference}" for r in hurts[:5]]
    return f"{text} {words.listing(named)}{' (and others)' if len(hurts) > 5 else ''}."


def _pairs(pairs: list[Relation]) -> Table:
    columns = ["more of", "loss on", "per doubling", "± standard error", "p", "by itself", "together"]
    rows = [
        [
            r.domain,
            r.reference,
            "–" if r.says == "not measured" else f"{r.value:+.3g}",
            "–" if not np.isfinite(r.se) else f"{r.se:.2g}",
            p_text(r.p),
            _short(r.alone),
            _short(r.says),
        ]
        for r in pairs[:SHOWN]
    ]
    left = f"; the clearest {SHOWN} of {len(pairs)}" if len(pairs) > SHOWN else ""
    return f"Who helps and who hurts whom (negative helps{left})", columns, rows


def _near(domains: list[str], alike: Array) -> Table | None:
    """Domains that act alike, or opposite, on the reference rows."""
    found = [
        (float(alike[i, j]), a, b)
        for i, a in enumerate(domains)
        for j, b in enumerate(domains[:i])
        if abs(alike[i, j]) >= ALIKE
    ]
    rows = [[f"{b}, {a}", f"{x:+.3f}"] for x, a, b in sorted(found, key=lambda one: -abs(one[0]))]
    return (
        ("Domains that act alike on the reference rows (−1: opposite)", ["domains", "cosine"], rows)
        if rows
        else None
    )


def _short(says: str) -> str:
    return "unclear" if says == "cannot be told from zero" else says
