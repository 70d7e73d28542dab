"""The eigenbasis of a layer's Kronecker factors, in the metric of its optimiser.

Flows in: A and S, and for AdamW a scale for each row and column. Flows out: orthogonal Q_A and Q_S, and how a
gradient matrix (d_out, d_in) is turned into their basis and back: ``G~ = Q_S' G Q_A``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from idealmix.curvature.layers import Layer
from idealmix.curvature.linalg import eigenbasis


@dataclass(frozen=True)
class Metric:
    """The square root of a diagonal preconditioner, as a rank-one matrix: P^(1/2) = r c'.

    Attributes:
        r: (d_out,) positive.
        c: (d_in,) positive.
    """

    r: Tensor
    c: Tensor

    def scale(self, G: Tensor) -> Tensor:
        """P^(1/2) times a (.., d_out, d_in) matrix, elementwise."""
        return G * self.r[:, None] * self.c


def adam_metric(layer: Layer, second_moments: Mapping[str, Tensor], eps: float) -> Metric:
    """AdamW's preconditioner of a layer: P = 1 / (sqrt(v) + eps), its root fitted by a rank-one matrix.

    Args:
        layer: which.
        second_moments: bias-corrected ``exp_avg_sq`` by parameter name.
        eps: AdamW's epsilon.

    The fit is least squares of the logarithm, exact where P^(1/2) has rank one; in logarithms the few elements that
    never had a gradient cannot drown the others.

    Raises:
        KeyError: a parameter of the layer has no second moment.
    """
    log = -0.5 * torch.log(layer.matrix(second_moments).double().sqrt() + eps)
    rows, columns, mean = log.mean(1), log.mean(0), log.mean()
    return Metric(torch.exp(rows - mean / 2), torch.exp(columns - mean / 2))


@dataclass(frozen=True)
class Basis:
    """Of one layer.

    Attributes:
        QA: (d_in, d_in), eigenvectors of A in columns.
        QS: (d_out, d_out), eigenvectors of S in columns.
        metric: of the optimiser; None: plain gradient descent.
    """

    QA: Tensor
    QS: Tensor
    metric: Metric | None = None

    def into(self) -> tuple[Tensor, Tensor]:
        """The two matrices that turn tokens: rows a -> a @ first, s -> s @ second, metric included."""
        if self.metric is None:
            return self.QA, self.QS
        return self.metric.c[:, None] * self.QA, self.metric.r[:, None] * self.QS

    def rotate(self, G: Tensor) -> Tensor:
        """(.., d_out, d_in) -> Q_S' G Q_A."""
        return self.QS.T @ self._scaled(G) @ self.QA

    def restore(self, G: Tensor) -> Tensor:
        """Back: Q_S G Q_A', and the metric's other half."""
        return self._scaled(self.QS @ G @ self.QA.T)

    def _scaled(self, G: Tensor) -> Tensor:
        return G if self.metric is None else self.metric.scale(G)


def scaled_factors(A: Tensor, S: Tensor, metric: Metric | None) -> tuple[Tensor, Tensor]:
    """The factors of inputs c * a and gradients r * s."""
    if metric is None:
        return A, S
    return A * torch.outer(metric.c, metric.c), S * torch.outer(metric.r, metric.r)


def eigenbases(
    A: Mapping[str, Tensor], S: Mapping[str, Tensor], metrics: Mapping[str, Metric] | None = None
) -> tuple[dict[str, Basis], dict[str, Tensor]]:
    """Bases of all layers, and K-FAC's eigenvalues in them: products of the factors' own, (d_out, d_in).

    A factor that several layers share is decomposed once.

    Raises:
        IdealmixError: a decomposition failed in every way; the layer is named.
    """
    bases: dict[str, Basis] = {}
    products: dict[str, Tensor] = {}
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for name in A:
        metric = (metrics or {}).get(name)
        if metric is not None:
            metric = Metric(metric.r.to(S[name]), metric.c.to(A[name]))
        a, s = scaled_factors(A[name], S[name], metric)
        if metric is not None or id(A[name]) not in done:
            done[id(A[name])] = eigenbasis(a, f"layer {name}, factor A")
        values_a, QA = done[id(A[name])]
        values_s, QS = eigenbasis(s, f"layer {name}, factor S")
        bases[name] = Basis(QA, QS, metric)
        products[name] = torch.outer(values_s, values_a)
    return bases, products
