"""The eigenbasis of a layer's Kronecker factors, in the metric of its optimiser.

Flows in: A and S, and for AdamW a scale for each row and column. Flows out: orthogonal Q_A and Q_S, and how a
gradient matrix (d_out, d_in) is turned into their basis and back: ``G~ = Q_S' G Q_A``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from idealmix.curvature.layers import Layer
from idealmix.curvature.linalg import eigenbasis
from idealmix.curvature.shelf import Shelf, Shelves


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

    def unscale(self, G: Tensor) -> Tensor:
        """P^(-1/2) times it."""
        return G / self.r[:, None] / self.c


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


def shared(A: Mapping[str, Tensor]) -> dict[str, str]:
    """By layer, the first one that has the same factor (the same object)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(factor), name) for name, factor in A.items()}


class Bases(Mapping[str, Basis]):
    """The basis of every layer by name; layers that read the same input share Q_A.

    Args:
        QA: by leader. QS: by layer name.
        leaders: the layer whose Q_A a layer has.
        metrics: of the optimiser, by layer name.
    """

    def __init__(
        self, QA: Shelf, QS: Shelf, leaders: Mapping[str, str], metrics: Mapping[str, Metric]
    ) -> None:
        self._QA, self._QS, self.leaders, self._metrics = QA, QS, leaders, metrics

    def __getitem__(self, name: str) -> Basis:
        return Basis(self._QA[self.leaders[name]], self._QS[name], self._metrics.get(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaders)

    def __len__(self) -> int:
        return len(self.leaders)


def eigenbases(
    A: dict[str, Tensor],
    S: dict[str, Tensor],
    metrics: Mapping[str, Metric] | None = None,
    shelves: Shelves | None = None,
) -> tuple[Bases, dict[str, tuple[Tensor, Tensor]]]:
    """Bases of all layers, and the factors' own eigenvalues (of S, then of A), whose outer product is K-FAC's.

    A factor that several layers share is decomposed once.

    Args:
        A, S: by layer name. Both are emptied on the way: of the factors and their bases only one is held.
        metrics: of the optimiser, by layer name.
        shelves: where the bases lie; None: memory.

    Raises:
        IdealmixError: a decomposition failed in every way; the layer is named.
    """
    shelves = shelves or Shelves()
    QA, QS = shelves.shelf(), shelves.shelf()
    # in an optimiser's metric each layer has its own scale
    leaders = {name: name for name in A} if metrics else shared(A)
    scales: dict[str, Metric] = {}
    spectra: dict[str, Tensor] = {}
    values: dict[str, tuple[Tensor, Tensor]] = {}
    for name, leader in leaders.items():
        a, s = A.pop(name), S.pop(name)
        if metrics and name in metrics:
            scales[name] = Metric(metrics[name].r.to(s), metrics[name].c.to(a))
            a, s = scaled_factors(a, s, scales[name])
        if leader not in spectra:
            spectra[leader], vectors = eigenbasis(a, f"layer {name}, factor A")
            QA.put(leader, vectors)
        del a
        values_s, vectors = eigenbasis(s, f"layer {name}, factor S")
        QS.put(name, vectors)
        values[name] = values_s, spectra[leader]
    return Bases(QA, QS, leaders, scales), values
