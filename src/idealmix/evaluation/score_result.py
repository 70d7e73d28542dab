"""What a score came to: its mean, its error over rows, and each row's figure.

Flows in: figures by row id. Flows out: a `ScoreResult`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoreResult:
    """One score of one model.

    Attributes:
        name: the score's.
        mean: over rows (or what the user's function returned).
        se: its standard error over rows; None where only the mean is known.
        n: rows.
        per_row: by row id; None where only the mean is known.
    """

    name: str
    mean: float
    se: float | None
    n: int
    per_row: dict[str, float] | None

    def figures(self) -> dict[str, Any]:
        """What a table shows, in plain types."""
        return {"mean": self.mean, "se": self.se, "n": self.n, "dof": max(self.n - 1, 1)}

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoreResult:
        """The inverse of `to_json`."""
        return cls(**data)


def from_rows(name: str, per_row: Mapping[str, float]) -> ScoreResult:
    """Mean and standard error, sd / sqrt(n).

    Where every row is right, or every row wrong, that would be 0; then it is the binomial error at (k + 1) / (n + 2)
    (Laplace's rule): 0 of 150 is not a certainty.
    """
    values = np.array(list(per_row.values()), dtype=float)
    n, mean = len(values), float(values.mean())
    if mean in (0.0, 1.0) and np.all(values == mean):
        p = (mean * n + 1) / (n + 2)
        error: float | None = math.sqrt(p * (1 - p) / n)
    else:
        error = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return ScoreResult(name, mean, error, n, dict(per_row))
