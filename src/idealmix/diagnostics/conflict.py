"""Who helps and who hurts whom, and which domains pull the same way.

Flows in: a measured stage. Flows out: a `Relation` of every domain and reference set, and the likeness of every two
domains. Pure numpy.

Volume is taken as free (c = 0): with a held budget every domain takes room from the others, which is no conflict of what
they teach. Two levels are told: Holm's over all pairs (the chance that any relation is claimed where there is none is at
most 5%), and each pair's own 5% (of a hundred pairs that have nothing to do with each other, five are named).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from idealmix.certainty import LEVEL, p_value
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_rows import Measured
from idealmix.moments import Array


@dataclass(frozen=True)
class Relation:
    """What more of a domain does to the loss on a reference set, volume free.

    Attributes:
        domain, reference: names.
        value, se, dof: alpha with c = 0, its population error.
        p: two-sided, of no relation; 1 where the error is not known.
        says: ``helps``, ``hurts``, ``cannot be told from zero`` (Holm over all pairs) or ``not measured``.
        alone: the same at the pair's own 5% level.
    """

    domain: str
    reference: str
    value: float
    se: float
    dof: float
    p: float
    says: str
    alone: str

    def to_json(self) -> dict[str, Any]:
        """Plain types; not finite is null."""
        return {
            key: None if isinstance(x, float) and not np.isfinite(x) else x for key, x in asdict(self).items()
        }


def relations(matrix: InfluenceMatrix) -> list[Relation]:
    """Of every pair, the clearest first; pairs that were not measured last."""
    free = replace(matrix, centred=False)
    value, se, dof = free.entries()
    says = free.signs()
    found = []
    for q, reference in enumerate(free.references):
        for i, domain in enumerate(free.domains):
            figures = (float(value[q, i]), float(se[q, i]), float(dof[q, i]))
            p = p_value(*figures)
            found.append(
                Relation(domain, reference, *figures, p, says[q][i], _alone(figures[0], p, says[q][i]))
            )
    return sorted(found, key=lambda r: (r.says == "not measured", r.p, -abs(r.value / r.se) if r.se else 0.0))


def likeness(found: Measured) -> Array:
    """(D, D) how alike two domains act on the reference rows; NaN where a domain was not measured.

    The cosine, over the rows of all reference sets, of the two domains' effects on a row's loss per token: 1 for a domain
    and its duplicate, -1 for one that teaches the opposite. A domain acts by its unused rows, or by the drawn ones where
    there are none. It has no error of its own.
    """
    D = len(found.matrix.domains)
    rows = [each.rows.products / each.rows.supervised[:, None] for each in found.references.values()]
    effects = np.concatenate(rows)
    has = found.matrix.moments.rows > 0
    columns = np.where(has[D:], np.arange(D, 2 * D), np.arange(D))
    chosen = np.where(has[:D], effects[:, columns], np.nan)
    norms = np.sqrt((chosen**2).sum(0))
    return np.asarray(chosen.T @ chosen / np.outer(norms, norms))


def _alone(value: float, p: float, says: str) -> str:
    if says == "not measured":
        return says
    return ("helps" if value < 0 else "hurts") if p <= LEVEL else "cannot be told from zero"
