"""What each training row does: its own influence on the objective, and how that compares with its loss.

Flows in: a measured stage, the objective's weights. Flows out: a `Row` for every measured row, by domain. Pure numpy.

Each token of domain i has the weight v_i / T_i in what is trained. One more copy of row n then changes the objective by

    influence(n) = - (v_i / T_i) sum_q w_q <g_n, R gbar_q>

nats per supervised token, to first order, volume free (c = 0: with a held budget the same room is lost for every row). Over a
domain's drawn rows, counted with their repetitions, it adds up to alpha. The products come from the stage's own passes;
no row's gradient is kept. A row has no error of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from idealmix.influence_rows import Measured
from idealmix.moments import Array


@dataclass(frozen=True)
class DomainRows:
    """A domain's measured rows, drawn ones first.

    Attributes:
        ids: (N,) row ids.
        drawn: (N,) bool, the row is in the mixture.
        influence: (N,) what one more copy does to the objective; negative: it helps.
        by_reference: (N, R) the same on each reference set, not weighted.
        loss: (N,) the row's own loss, nats per supervised token.
        tokens: (N,) supervised tokens.
    """

    ids: tuple[str, ...]
    drawn: NDArray[np.bool_]
    influence: Array
    by_reference: Array
    loss: Array
    tokens: Array

    @property
    def harmful(self) -> NDArray[np.int64]:
        """(N,) places, the most harmful row first."""
        return np.argsort(-self.influence, kind="stable")

    @property
    def like_loss(self) -> float:
        """Rank correlation of influence with the row's own loss; NaN for fewer than three rows."""
        return float(spearmanr(self.influence, self.loss).statistic) if len(self.ids) > 2 else float("nan")


def row_influence(found: Measured, weights: Mapping[str, float]) -> dict[str, DomainRows]:
    """Every measured row's influence, by domain; domains outside the mixture are left out.

    Args:
        found: a stage; its c does not matter.
        weights: dO/dL_q by reference set.
    """
    matrix = found.matrix
    w = np.array([weights.get(name, 0.0) for name in matrix.references])
    v = np.array([matrix.step_weights[name] for name in matrix.domains])
    rows = {}
    for i, name in enumerate(matrix.domains):
        if name not in found.drawn:
            continue
        trained = found.drawn[name].rows
        scale = v[i] / float(trained.weights @ trained.supervised)
        parts = [part for part in (found.drawn[name], found.unused.get(name)) if part is not None]
        by_reference = -scale * np.concatenate([part.rows.products for part in parts])
        rows[name] = DomainRows(
            ids=tuple(row for part in parts for row in part.ids),
            drawn=np.concatenate([np.full(len(part), part is parts[0]) for part in parts]),
            influence=by_reference @ w,
            by_reference=by_reference,
            loss=np.concatenate([part.token_losses for part in parts]),
            tokens=np.concatenate([part.rows.supervised for part in parts]),
        )
    return rows
