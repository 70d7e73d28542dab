"""The loss of a model on one set, row by row, and how sure it is.

Flows in: summed losses and token counts of each row. Flows out: means, standard errors clustered by row, paired
differences. Pure numpy.

A set's loss is a ratio of two sums over rows, r = sum s_n / sum c_n (nats, supervised tokens). Its error treats rows as
the independent draws, not tokens. It is the delete-one jackknife's, as in `idealmix.moments` and for its reasons: without row n, r moves
by e_n / (1 - h_n), with e_n = (s_n - r c_n) / C, h_n = c_n / C and C = sum c_n, so

    Var r = (N - 1) / N  sum e_n^2 / (1 - h_n)^2        degrees of freedom = 1 / sum h_n^2 - 1

For rows of equal length that is N/(N-1) sum e_n^2, with N - 1 (Cochran, Sampling Techniques, 3rd ed., eq. 6.13).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idealmix.certainty import satterthwaite as satterthwaite  # for who sums such errors
from idealmix.errors import IdealmixError

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A figure, its standard error (inf: unknown, from a single row) and the error's degrees of freedom."""

    value: float
    se: float
    dof: float

    def to_json(self) -> dict[str, float | None]:
        """Plain types; an unknown error is null."""
        return {"value": self.value, "se": known(self.se), "dof": self.dof}


@dataclass(frozen=True)
class SetLoss:
    """One model's supervised loss on one set.

    Attributes:
        name: the set's.
        row_ids: N identifiers, in the set's order.
        loss_sums: (N,) float64, nats summed over a row's supervised tokens.
        counts: (N,) int64, a row's supervised tokens.
    """

    name: str
    row_ids: tuple[str, ...]
    loss_sums: Array
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.row_ids) == len(self.loss_sums) == len(self.counts):
            raise ValueError("row_ids, loss_sums and counts differ in length")

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def tokens(self) -> int:
        """Supervised tokens of the set."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Nats per supervised token: sum over sum, so long rows weigh more."""
        return float(self.loss_sums.sum() / self.tokens)

    @property
    def influences(self) -> Array:
        """(N,) e_n, what each row adds to the error of `mean` to first order; sums to 0."""
        return (self.loss_sums - self.mean * self.counts) / self.tokens

    @property
    def se(self) -> float:
        """Standard error of `mean`, clustered by row."""
        return math.sqrt(variance(self.influences, self.counts))

    def figures(self) -> dict[str, Any]:
        """What a table shows, in plain types."""
        return {
            "mean": self.mean,
            "se": known(self.se),
            "dof": freedom(self.counts),
            "rows": len(self),
            "supervised_tokens": self.tokens,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain types; `mean` and `se` are for readers, `from_json` computes them anew."""
        return {
            "name": self.name,
            "mean": self.mean,
            "se": known(self.se),
            "rows": len(self),
            "supervised_tokens": self.tokens,
            "row_ids": list(self.row_ids),
            "loss_sums": self.loss_sums.tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SetLoss:
        """The inverse of `to_json`, exact to the last bit."""
        return cls(
            data["name"],
            tuple(data["row_ids"]),
            np.array(data["loss_sums"], dtype=np.float64),
            np.array(data["counts"], dtype=np.int64),
        )


def variance(influences: Array, counts: NDArray[np.int64]) -> float:
    """Variance of an estimate from its rows' influences and supervised tokens; inf for one row."""
    n = len(influences)
    if n < 2:
        return math.inf
    without = influences / (1 - counts / counts.sum())
    return float((n - 1) / n * np.sum(without**2))


def freedom(counts: NDArray[np.int64]) -> float:
    """Degrees of freedom of such a variance: rows that would be as many if they were of one length, minus 1; at least 1."""
    return max(float(counts.sum()) ** 2 / float(np.sum(counts.astype(float) ** 2)) - 1, 1.0)


def paired_difference(new: SetLoss, old: SetLoss) -> Estimate:
    """Mean loss of `new` minus that of `old`, two models on the same rows; negative: `new` is better.

    The error is that of the rows' differences, usually far below that of either loss.

    Raises:
        IdealmixError: the rows are not the same.
    """
    same_rows(new, old)
    error = math.sqrt(variance(new.influences - old.influences, new.counts))
    return Estimate(new.mean - old.mean, error, freedom(new.counts))


def same_rows(a: SetLoss, b: SetLoss) -> None:
    """Refuse to pair losses of different rows, or of rows that were cut differently."""
    if a.row_ids != b.row_ids or not np.array_equal(a.counts, b.counts):
        raise IdealmixError(
            f"two evaluations of it have different rows or tokens ({_size(a)} and {_size(b)})",
            where=a.name,
            mend="evaluate both models on the same data with the same tokenizer and max_length",
        )


def known(error: float) -> float | None:
    """An error for JSON, which has no infinity."""
    return error if math.isfinite(error) else None


def _size(loss: SetLoss) -> str:
    return f"{len(loss)} rows of {loss.tokens} supervised tokens"
