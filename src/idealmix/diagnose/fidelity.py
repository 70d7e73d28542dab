"""``idealmix diagnose --fidelity``: how near the curvatures come to the exact one.

Flows in: a checkpoint. Flows out: an `Answer` about a few rows of every set, the mixture's drawn ones once each.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from idealmix.curvature import make_batches
from idealmix.data.seeding import seeded_order
from idealmix.diagnose.answer import Answer, Table
from idealmix.diagnose.checkpoint import Checkpoint
from idealmix.diagnostics.fidelity import Fidelity, Sets, measure_fidelity
from idealmix.errors import InputError
from idealmix.rounds.phases import memory_errors

if TYPE_CHECKING:
    from idealmix.curvature import Batch
    from idealmix.data.pools import Pool

COLUMNS = ["curvature", "cosine, median", "lowest", "size", "worst layer"]


def fidelity(at: Checkpoint, rows: int) -> Answer:
    """Compare curvatures with exact influence.

    Args:
        rows: of every domain and reference set, at most.
    """
    inputs, settings = at.inputs, at.config.influence
    drawn = {name: list(dict.fromkeys(ids)) for name, ids in at.mixture.row_ids.items() if ids}
    if len(drawn) < 2:
        raise InputError(
            f"the mixture has rows of {', '.join(drawn)} alone, and curvatures are compared by how influence differs between domains",
            where=f"round {at.index}",
            mend="ask a run whose mixture has two domains or more",
        )

    def batches(name: str, pool: Pool, ids: list[str]) -> list[Batch]:
        order = seeded_order(ids, at.config.seed, "fidelity", name)[:rows]
        chosen = [pool.row(pool.index[ids[k]]) for k in sorted(order)]
        listed = [(f"{name}/{row.id}", row.input_ids, row.labels, 1.0) for row in chosen]
        return make_batches(listed, settings.batch_tokens)

    mixed = {name: batches(name, inputs.domains[name], ids) for name, ids in drawn.items()}
    sets = Sets(
        mixed,
        mixed,
        {name: batches(name, pool, list(pool.ids)) for name, pool in inputs.gradient_halves.items()},
        {name: at.record.step_weights.get(name, 0.0) for name in drawn},
    )
    at.watch.begin("comparing curvatures")
    with memory_errors("fidelity"):
        found = measure_fidelity(
            at.model.float(),
            sets,
            layers=settings.layers,
            rho=settings.damping,
            label_seed=at.config.seed,
            watch=lambda text: at.watch.begin(f"fidelity: {text}"),
        )
    at.watch.end(0.0, reused=False)
    return Answer(
        question="fidelity",
        headline=_headline(found),
        tables=[_table(found)],
        notes=_notes(found),
        figures=found.to_json(),
        facts=at.facts,
    )


def _headline(found: Fidelity) -> str:
    (ekfac,) = (one for one in found.approximation if one.curvature == "ekfac")
    return f"EK-FAC's influence has the cosine {ekfac.median:.3f} with the exact one (median over reference sets)."


def _table(found: Fidelity) -> Table:
    rows = [
        [
            one.curvature,
            f"{one.median:.3f}",
            f"{min(one.cosines.values()):.3f}",
            f"{statistics.median(one.sizes.values()):.3g}",
            f"{np.nanmin(list(one.by_layer.values())):.3f}",
        ]
        for one in found.approximation
    ]
    return "Cosine of influence with the exact one, rows centred over domains", COLUMNS, rows


def _notes(found: Fidelity) -> list[str]:
    notes = [
        "Exact: conjugate gradients on the Gauss-Newton matrix of the same layers, rows and damping; "
        f"{sum(one.iterations for one in found.solved)} products, residuals at most "
        f"{max(one.residual for one in found.solved):.1e}.",
        "This says how well the curvature is approximated on a small sample of rows, not whether influence predicts retraining.",
    ]
    if not found.informative:
        notes.append(
            "The plain dot of gradients does well here too: this run cannot tell one curvature from another."
        )
    return notes
