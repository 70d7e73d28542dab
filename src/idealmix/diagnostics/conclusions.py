"""What an influence matrix concludes, and how two of them agree.

Flows in: matrices, and the step that each leads to. Flows out: `Agreement`. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idealmix.allocation import Allocation
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Array


@dataclass(frozen=True)
class Conclusions:
    """Of one matrix; D domains, R reference sets.

    Attributes:
        slopes: (D,) of the objective.
        signs: (R, D) -1 helps, 1 hurts, 0 not told (Holm).
        se: (R, D) population errors.
        moves: by domain, -1 shrinks, 1 grows, 0 stays.
        shares: each domain's share of the volume after the step.
    """

    slopes: Array
    signs: NDArray[np.int64]
    se: Array
    moves: dict[str, int]
    shares: dict[str, float]

    @classmethod
    def of(
        cls,
        matrix: InfluenceMatrix,
        weights: Mapping[str, float],
        step: Allocation,
        shares: Mapping[str, float],
    ) -> Conclusions:
        """Of a matrix and the step that it leads to.

        Args:
            weights: dO/dL_q by reference set.
            shares: of the volume, by domain, after the step.
        """
        words = np.array(matrix.signs())
        return cls(
            slopes=matrix.weighted(weights).value,
            signs=np.where(words == "helps", -1, np.where(words == "hurts", 1, 0)),
            se=matrix.se_population,
            moves={
                name: int(np.sign(step.moves[name].after - step.moves[name].before))
                for name in matrix.domains
            },
            shares=dict(shares),
        )


NEAR = 0.05
"""Two steps are near each other where they put at most this share of the volume into different domains."""


@dataclass(frozen=True)
class Agreement:
    """One set of conclusions against another that counts as the yardstick.

    Attributes:
        cosine: of the objective's slopes.
        told: share of the yardstick's signs that are told too, the same way; NaN where it tells none.
        turned: share of the yardstick's signs that are told the other way; NaN where it tells none.
        apart: share of the volume that the two steps put into different domains.
        near: that is at most `NEAR` (a share of the cases, in a mean).
        se: median over entries of the standard error over the yardstick's.
    """

    cosine: float
    told: float
    turned: float
    apart: float
    near: float
    se: float

    @classmethod
    def of(cls, one: Conclusions, yardstick: Conclusions) -> Agreement:
        """Of two."""
        known = yardstick.signs != 0
        elsewhere = apart(one.shares, yardstick.shares)
        ratio = one.se / np.where(yardstick.se > 0, yardstick.se, np.nan)
        return cls(
            cosine=cosine(one.slopes, yardstick.slopes),
            told=_share(one.signs == yardstick.signs, known),
            turned=_share(one.signs == -yardstick.signs, known),
            apart=elsewhere,
            near=float(elsewhere <= NEAR),
            se=float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan"),
        )

    @classmethod
    def mean(cls, every: Iterable[Agreement]) -> Agreement:
        """Over several; what is not defined is left out."""
        rows = np.array([list(asdict(one).values()) for one in every], dtype=float)
        known = np.isfinite(rows).any(0)
        return cls(*(float(np.nanmean(column)) if k else float("nan") for column, k in zip(rows.T, known)))

    def to_json(self) -> dict[str, Any]:
        """Plain types; not defined is null."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}


def cosine(one: Array, other: Array) -> float:
    """Of two vectors; entries that either lacks are left out, NaN where nothing is left."""
    known = np.isfinite(one) & np.isfinite(other)
    norm = float(np.linalg.norm(one[known]) * np.linalg.norm(other[known]))
    return float(one[known] @ other[known]) / norm if norm > 0 else float("nan")


def apart(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Half the sum of the absolute differences of two mixtures' shares."""
    return 0.5 * sum(abs(one[name] - other[name]) for name in one)


def _share(right: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(right[among].mean()) if among.any() else float("nan")
