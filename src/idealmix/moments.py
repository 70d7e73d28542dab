"""From the rows' dot products to means, and to how sure they are.

Flows in: for each row its dot products with the responses of the other side's mean gradients. Flows out: `Moments`,
from which the whole influence matrix and all its errors follow linearly. Pure numpy.

Each mean is a ratio of two sums over rows, r = sum w x / sum w t (x a row's product, t its supervised tokens, w its
repetitions). Rows are the independent draws, not tokens. The error is the delete-one jackknife's: without row n, r moves
by e / (1 - h), with e = w (x - r t) / sum w t (the delta method's part of the row) and h = w t / sum w t (its share), so

    Cov r = (N - 1) / N  sum over rows of  e e' / (1 - h)^2        degrees of freedom = 1 / sum h^2 - 1

For rows of equal length these are the delta method's N/(N-1) sum e e' and N - 1. For unequal ones the delta method is too
sure: measured with 15 rows of lognormal length (sigma 1), its nominal 95% intervals hold 88%, these 95%. Sources: Efron
and Stein (1981) for the jackknife; Kish (1965) for the effective number of rows, 1 / sum h^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idealmix.certainty import satterthwaite

Array = NDArray[np.float64]


class Rows(NamedTuple):
    """One set's measured rows.

    products: (N, K), <g_n, R gbar_k> for the K sets of the other side; nats^2, not multiplied by weights.
    supervised: (N,), supervised tokens. weights: (N,), repetitions. fraction: share of all the set's rows.
    """

    products: Array
    supervised: Array
    weights: Array
    fraction: float = 1.0


class Estimate(NamedTuple):
    """Figures, their standard errors and the errors' degrees of freedom (Satterthwaite 1946); one shape."""

    value: Array
    se: Array
    dof: Array


@dataclass(frozen=True)
class Moments:
    """Means of products of gradients, between Q reference sets and S sets of training rows, with their errors.

    Attributes:
        mean: (Q, S), gbar_q' R gbar_s; 0 where s has no rows.
        training: (S, Q, Q), covariance of mean[:, s] over its rows; 0 where it cannot be known (one row; see
            `lent`).
        reference: (Q, S, S), covariance of mean[q, :] over the rows of q; the same.
        rows: (S,), measured rows of each training set.
        fraction: (S,), their share of all rows of the set.
        reference_rows: (Q,), rows of each reference set.
        dof: (S + Q,), degrees of freedom of each set's covariance, training sets first; 0: not known.
    """

    mean: Array
    training: Array
    reference: Array
    rows: Array
    fraction: Array
    reference_rows: Array
    dof: Array

    @classmethod
    def of(cls, training: Sequence[Rows | None], references: Sequence[Rows]) -> Moments:
        """From rows.

        Args:
            training: S sets, products with the R gbar_q of the Q reference sets; None: no rows.
            references: Q sets, products with the R gbar_s of the S training sets (anything where s has no rows).
        """
        Q, S = len(references), len(training)
        mean, covariance = np.zeros((Q, S)), np.zeros((S, Q, Q))
        empty = np.array([rows is None for rows in training])
        for s, rows in enumerate(training):
            if rows is not None:
                mean[:, s], covariance[s] = _ratio(rows)
        reference = np.array([_ratio(rows)[1] for rows in references])
        reference[:, empty, :] = reference[:, :, empty] = 0.0
        return cls(
            mean=mean,
            training=covariance,
            reference=reference,
            rows=np.array([0.0 if rows is None else float(len(rows.weights)) for rows in training]),
            fraction=np.array([1.0 if rows is None else rows.fraction for rows in training]),
            reference_rows=np.array([float(len(rows.weights)) for rows in references]),
            dof=np.array([0.0 if rows is None else _freedom(rows) for rows in [*training, *references]]),
        )

    @property
    def lent(self) -> Array:
        """`training`, with a covariance lent to the sets of one row: that of one row of the most scattered set.

        (S, Q, Q). A single row tells nothing about its scatter. Where it only takes part in a sum over all sets, leaving
        it out would make the sum too sure, and infinity would hide what is known of the others; the largest scatter
        of a row in any set (by trace) is the guess on the safe side. NaN where no set has two rows.
        """
        one_row = self.training * self.rows[:, None, None]
        largest = np.argmax(np.trace(one_row, axis1=1, axis2=2))
        guess = one_row[largest] if (self.rows > 1).any() else np.full_like(one_row[largest], np.nan)
        return np.where((self.rows == 1)[:, None, None], guess, self.training)

    def unknown(self, K: Array, own: NDArray[np.bool_] | None = None) -> Array:
        """(I,), which rows of K rest on a covariance that nothing is known of.

        Args:
            own: (I, S), the sets that a row of K is about; there a single row is not enough. None: all.
        """
        about = np.ones(K.shape, dtype=bool) if own is None else own
        nothing_lent = not (self.rows > 1).any()
        return np.asarray(((K != 0) & (self.rows == 1) & (about | nothing_lent)).any(1))

    def combine(
        self, w: Array, K: Array, own: NDArray[np.bool_] | None = None, *, subsample: bool = False
    ) -> Estimate:
        """``sum_q sum_s w_q K[i, s] mean[q, s]`` for every row i of K.

        Args:
            w: (Q,), weights of the reference sets.
            K: (I, S), coefficients of the training sets.
            own: (I, S), see `unknown`: which errors a set of one row makes infinite. The others are lent one, with
                one degree of freedom.
            subsample: only the error of having measured a sample of the training rows (finite population: 0 where
                all were measured); else that of other rows from the same sources, on both sides.

        Both factors of a product carry noise, and each side's error is computed with the other's noise in it: the
        part that is the product of both noises is counted twice, which errs on the safe side.
        """
        variance = np.nan_to_num(np.einsum("q,sqp,p->s", w, self.lent, w))
        by_training = K**2 * variance
        by_reference = w**2 * np.einsum("is,qst,it->iq", K, self.reference, K)
        by_training[self.unknown(K, own)[:, None] & (K != 0) & (self.rows == 1) & bool(np.any(w))] = np.inf
        by_reference[np.any(K, 1)[:, None] & (w != 0) & (self.reference_rows == 1)] = np.inf
        if subsample:
            left = 1 - self.fraction
            by_training = np.where(left > 0, by_training * np.where(left > 0, left, 1.0), 0.0)
            by_reference = np.zeros_like(by_reference)
        parts = np.concatenate([by_training, by_reference], 1)
        sets = np.concatenate([self.rows, self.reference_rows])
        dof = np.where(sets == 1, 1.0, self.dof)
        freedom = np.array([satterthwaite(row, dof) for row in parts])
        return Estimate(K @ (self.mean.T @ w), np.sqrt(parts.sum(1)), freedom)

    def to_json(self) -> dict[str, Any]:
        """Nested lists by attribute."""
        return {each.name: getattr(self, each.name).tolist() for each in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Moments:
        """The inverse of `to_json`, exact to the last bit."""
        return cls(**{each.name: np.array(data[each.name], dtype=float) for each in fields(cls)})


def _ratio(rows: Rows) -> tuple[Array, Array]:
    """(K,) means per supervised token and their (K, K) covariance; see the module."""
    tokens = rows.weights * rows.supervised
    mean, share, n = rows.weights @ rows.products / tokens.sum(), tokens / tokens.sum(), len(tokens)
    if n == 1:
        return mean, np.zeros((len(mean), len(mean)))
    errors = (rows.weights[:, None] * rows.products - tokens[:, None] * mean) / tokens.sum()
    errors /= np.where(share < 1, 1 - share, 1.0)[:, None]
    return mean, (n - 1) / n * errors.T @ errors


def _freedom(rows: Rows) -> float:
    tokens = rows.weights * rows.supervised
    effective = float(tokens.sum() ** 2 / (tokens @ tokens))
    return max(effective - 1, 1.0) if len(tokens) > 1 else 0.0
