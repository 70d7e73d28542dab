"""The rows behind an influence matrix: what each one adds, and what a part of them would have said.

Flows in: for every measured row its dot products with the other side's responses, as one stage leaves them. Flows out:
`Measured`, of which `diagnostics` asks its questions without another pass over the model. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Array, Rows


@dataclass(frozen=True)
class NamedRows:
    """One set's measured rows.

    Attributes:
        ids: (N,) row ids, without the set's name.
        losses: (N,) nats, summed over the row's supervised tokens.
        rows: products with the responses of the other side's sets, supervised tokens, repetitions over the fraction.
    """

    ids: tuple[str, ...]
    losses: NDArray[np.float64]
    rows: Rows

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def token_losses(self) -> Array:
        """(N,) nats per supervised token."""
        return self.losses / self.rows.supervised


@dataclass(frozen=True)
class Measured:
    """One influence stage with its rows; D domains, R reference sets.

    Attributes:
        matrix: alpha and its errors.
        drawn, unused: training rows by domain, products (N, R) with R gbar_q; a domain without such rows is left out.
        references: reference rows by set, products (M, 2 D) with R gbar_i of the drawn, then of the unused rows.
    """

    matrix: InfluenceMatrix
    drawn: dict[str, NamedRows]
    unused: dict[str, NamedRows]
    references: dict[str, NamedRows]
