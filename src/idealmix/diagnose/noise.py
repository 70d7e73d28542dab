"""``idealmix diagnose --noise``: the most helpful and the most harmful training rows of each domain, and those of the highest loss.

Flows in: a checkpoint. Flows out: an `Answer`, from one influence stage over all drawn and all unused rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from idealmix.data.conversation import Conversation
from idealmix.diagnose.answer import Answer, Table
from idealmix.diagnose.checkpoint import Checkpoint
from idealmix.diagnostics.noise import DomainRows, row_influence
from idealmix.report import words

TEXT = 110
"""Characters of a row's text that are shown."""
LISTS = {
    "harmful": "the most harmful rows",
    "helpful": "the most helpful rows",
    "high_loss": "the rows of the highest own loss",
}


def noise(at: Checkpoint, rows: int) -> Answer:
    """Rank every row.

    Args:
        rows: how many of the most harmful and of the most helpful rows of each domain are listed.
    """
    (found,) = at.measure("measuring every row", all_unused=True, sample_fraction=1.0)
    ranked = row_influence(found, at.weights)
    listed = {name: _listed(at, name, each, rows) for name, each in ranked.items()}
    tables: list[Table] = [_summary(ranked)]
    for name, lists in listed.items():
        tables += [_texts(f"{name}: {LISTS[kind]}", found_rows) for kind, found_rows in lists.items()]
    every = sum(len(each.ids) for each in ranked.values())
    return Answer(
        question="noise",
        headline=_headline(ranked, every),
        tables=tables,
        notes=[
            "A row's influence: what one more copy of it does to the objective, in nats per supervised token, to first order, "
            "nothing else giving way to it. Positive: it hurts. Signs and order are what it is good for; a single row has no error bar.",
            "Harmful rows are to be looked at, not to be deleted unseen: a wrong label, a rare kind of row and a hard one look alike.",
            "For wrong labels alone a row's own loss is the better sign (measured: docs/results/diagnose.md). Influence tells which rows, wrong "
            "or not, pull away from what the reference sets ask for.",
        ],
        figures={
            "domains": {name: _figures(each) for name, each in ranked.items()},
            "listed": listed,
            "warnings": list(found.matrix.warnings),
        },
        facts=at.facts,
    )


def _headline(ranked: dict[str, DomainRows], every: int) -> str:
    worst = max(ranked, key=lambda name: float((ranked[name].influence > 0).mean()))
    share = float((ranked[worst].influence > 0).mean())
    return (
        f"Of {words.whole(every)} rows ranked, {worst} has the largest share that hurts the objective: "
        f"{words.percent(share)} of its rows."
    )


def _summary(ranked: dict[str, DomainRows]) -> Table:
    columns = ["domain", "rows", "in the mixture", "hurt", "mean influence", "rank correlation with loss"]
    rows = [
        [
            name,
            f"{len(each.ids):,}",
            f"{int(each.drawn.sum()):,}",
            words.percent(float((each.influence > 0).mean())),
            f"{each.influence.mean():+.3g}",
            words.number(each.like_loss, 2),
        ]
        for name, each in ranked.items()
    ]
    return "Training rows by what one more copy of each does to the objective", columns, rows


def _listed(at: Checkpoint, name: str, each: DomainRows, rows: int) -> dict[str, list[dict[str, Any]]]:
    pool, order = at.inputs.domains[name], each.harmful

    def told(n: int) -> dict[str, Any]:
        row = each.ids[n]
        return {
            "id": row,
            "influence": float(each.influence[n]),
            "loss": float(each.loss[n]),
            "in_mixture": bool(each.drawn[n]),
            "text": shortened(pool.conversation(pool.index[row])),
        }

    return {
        "harmful": [told(n) for n in order[:rows] if each.influence[n] > 0],
        "helpful": [told(n) for n in order[::-1][:rows] if each.influence[n] < 0],
        "high_loss": [told(n) for n in np.argsort(-each.loss, kind="stable")[:rows]],
    }


def shortened(row: Conversation) -> str:
    """A row's prompt and answer on one line; the middle of what is too long is left out."""
    if row.text is not None:
        return _cut(row.text, TEXT)
    last = row.prompt[-1].get("content") or "" if row.prompt else ""
    answer = (row.answer or {}).get("content") or ""
    return f"{_cut(last, TEXT // 2)} → {_cut(answer, TEXT // 2)}"


def _cut(text: Any, most: int) -> str:
    plain = "".join(c if c.isprintable() else " " for c in (text if isinstance(text, str) else str(text)))
    plain = " ".join(plain.split())
    return (
        plain if len(plain) <= most else f"{plain[: most * 2 // 3]} … {plain[len(plain) - most // 3 + 3 :]}"
    )


def _texts(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = ["row", "influence", "own loss", "in the mixture", "text"]
    return (
        title,
        columns,
        [
            [
                row["id"],
                f"{row['influence']:+.3g}",
                f"{row['loss']:.3g}",
                "yes" if row["in_mixture"] else "no",
                row["text"],
            ]
            for row in rows
        ]
        or [["none", "", "", "", ""]],
    )


def _figures(each: DomainRows) -> dict[str, Any]:
    """Every row's influence and loss, and the domain's quantiles."""
    return {
        "rows": len(each.ids),
        "drawn": int(each.drawn.sum()),
        "hurt": float((each.influence > 0).mean()),
        "mean": float(each.influence.mean()),
        "quantiles": np.quantile(each.influence, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
        "rank_correlation_with_loss": None if np.isnan(each.like_loss) else each.like_loss,
    }
