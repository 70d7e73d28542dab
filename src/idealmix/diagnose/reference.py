"""``idealmix diagnose --reference``: how many reference rows are enough, and whether it matters which.

Flows in: a checkpoint. Flows out: an `Answer`, from one influence stage: parts of the reference rows need no other pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from idealmix.diagnose.answer import Answer, Table
from idealmix.diagnose.checkpoint import Checkpoint
from idealmix.diagnostics.conclusions import NEAR, Agreement, Conclusions
from idealmix.diagnostics.reference import Part, halves, of_part, part_size, random_parts
from idealmix.influence_rows import Measured
from idealmix.report import words

FRACTIONS = (0.1, 0.25, 0.5)
PARTS = 40
"""Random parts of each size."""
ENOUGH = 0.9
"""A size is called enough where this share of its parts leads near the step of all rows, and none turns a sign."""

COLUMNS = [
    "rows",
    "cosine of slopes",
    "signs told",
    "signs turned",
    "volume elsewhere",
    f"within {NEAR:.0%}",
    "± × ",
]


def reference(at: Checkpoint) -> Answer:
    """Measure once; then look at parts."""
    (found,) = at.measure("measuring influence")
    every = {name: np.arange(len(each)) for name, each in found.references.items()}
    whole = _conclusions(at, found, every)
    sizes = {
        fraction: Agreement.mean(
            Agreement.of(_conclusions(at, found, part), whole)
            for part in random_parts(found, fraction, PARTS, at.config.seed)
        )
        for fraction in FRACTIONS
    }
    rows = {
        fraction: {name: part_size(len(each), fraction) for name, each in found.references.items()}
        for fraction in FRACTIONS
    }
    kinds = {
        "shorter answers": (lambda each: each.rows.supervised, 0), "longer answers": (lambda each: each.rows.supervised, 1),
        "rows of low loss": (lambda each: each.token_losses, 0), "rows of high loss": (lambda each: each.token_losses, 1),
    }  # fmt: skip
    composed = {
        kind: Agreement.of(_conclusions(at, found, halves(found, by)[side]), whole)
        for kind, (by, side) in kinds.items()
    }
    return Answer(
        question="reference",
        headline=_headline(sizes, rows, whole),
        tables=[_sizes(sizes, rows, every), _composition(composed, sizes[0.5]), _all_rows(at, whole)],
        notes=[
            "Signs told: of the signs that all rows tell (Holm), the share that the part tells too; turned: the share that it tells "
            "the other way. Volume elsewhere: the share of the volume that the part's step puts into other domains; "
            f"within {NEAR:.0%}: how often that is so little. ± ×: its standard errors over those of all rows.",
            "All rows are the yardstick, with errors of their own: parts agree with it the more, the larger they are, because they share "
            "its rows. Where all rows gate everything, a part that does the same has told nothing.",
            "A half that is chosen by length or loss and lies further off than random halves do says that it matters which rows are in the set.",
        ],
        figures={
            "reference_rows": {name: len(places) for name, places in every.items()},
            "parts": PARTS,
            "sizes": {f"{f:g}": {"rows": rows[f], **sizes[f].to_json()} for f in FRACTIONS},
            "composition": {kind: each.to_json() for kind, each in composed.items()},
            "moves": whole.moves,
            "warnings": list(found.matrix.warnings),
        },
        facts=at.facts,
    )


def _conclusions(at: Checkpoint, found: Measured, part: Part) -> Conclusions:
    return at.conclusions(of_part(found, part))


def _headline(sizes: dict[float, Agreement], rows: dict[float, dict[str, int]], whole: Conclusions) -> str:
    if not any(whole.moves.values()):
        return "All rows of the reference sets together move no domain: they are too few to steer by here."
    near = f"{NEAR:.0%}"
    enough = [f for f in FRACTIONS if sizes[f].near >= ENOUGH and not sizes[f].turned > 0]
    if not enough:
        half = words.percent(sizes[FRACTIONS[-1]].near)
        return f"Half of the reference rows lead within {near} of all rows' step in {half} of the cases: more rows might still change it."
    few = sorted(set(rows[enough[0]].values()))
    span = f"{few[0]}" if len(few) == 1 else f"{few[0]} to {few[-1]}"
    return f"{words.percent(enough[0])} of the reference rows ({span} of each set) lead within {near} of the volume of the step of all rows."


def _cells(each: Agreement) -> list[str]:
    return [
        words.number(each.cosine, 3),
        words.percent(each.told) if np.isfinite(each.told) else "–",
        words.percent(each.turned) if np.isfinite(each.turned) else "–",
        words.percent(each.apart),
        words.percent(each.near),
        words.number(each.se, 2),
    ]


def _sizes(sizes: dict[float, Agreement], rows: dict[float, dict[str, int]], every: Part) -> Table:
    """One line a size; the last one is the yardstick itself."""
    lines = [[f"{words.percent(f)} ({_span(rows[f])})", *_cells(sizes[f])] for f in FRACTIONS]
    lines.append(
        [
            f"100% ({_span({name: len(places) for name, places in every.items()})})",
            *["the yardstick"],
            *[""] * 5,
        ]
    )
    return f"Random parts of the reference rows against all of them ({PARTS} parts a size)", COLUMNS, lines


def _span(rows: dict[str, int]) -> str:
    low, high = min(rows.values()), max(rows.values())
    return f"{low}" if low == high else f"{low} to {high}"


def _composition(composed: dict[str, Agreement], random: Agreement) -> Table:
    lines = [[kind, *_cells(each)] for kind, each in composed.items()]
    lines.append(["random halves, mean", *_cells(random)])
    return "Halves by a property of the rows against all of them", COLUMNS, lines


def _all_rows(at: Checkpoint, whole: Conclusions) -> Table:
    says = {-1: "shrinks", 0: "stays", 1: "grows"}
    before: dict[str, Any] = at.shares(at.mixture.counts)
    lines = [
        [name, f"{words.percent(before[name])} → {words.percent(whole.shares[name])}", says[move]]
        for name, move in whole.moves.items()
    ]
    return "The step by all reference rows", ["domain", "share of the volume", "so it"], lines
