"""The eigenbasis of a layer's Kronecker factors, in the metric of its optimiser.

Flows in: A and S, and for AdamW a scale for each row and column. Flows out: orthogonal Q_A and Q_S, and how a
gradient matrix (d_out, d_in) is turned into their basis and back: ``G~ = Q_S' G Q_A``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idealmix.curvature.layers import Layer
from idealmix.curvature.linalg import eigenbasis
from idealmix.curvature.processes import Processes
from idealmix.curvature.shelf import Shelf, Shelves
from idealmix.errors import Doubt, IdealmixError


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
    return (A, S) if metric is None else (_scaled(A, metric.c), _scaled(S, metric.r))


def _scaled(factor: Tensor, scale: Tensor) -> Tensor:
    """The factor of tokens times `scale`."""
    return factor * torch.outer(scale, scale)


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
    processes: Processes | None = None,
) -> tuple[Bases, dict[str, tuple[Tensor, Tensor]]]:
    """Bases of all layers, and the factors' own eigenvalues (of S, then of A), whose outer product is K-FAC's.

    A factor that several layers share is decomposed once, by one process, to whom it is dealt by its cost; the others are sent
    what it found.

    Args:
        A, S: by layer name. Both are emptied on the way: of the factors and their bases only one is held.
        metrics: of the optimiser, by layer name.
        shelves: where the bases lie; None: memory.
        processes: who shares the work; all have the same A and S. None: this process alone.

    Raises:
        IdealmixError: a decomposition failed in every way, on whichever process; the layer is named.
    """
    shelves, processes = shelves or Shelves(), processes or Processes()
    QA, QS = shelves.shelf(), shelves.shelf()
    # in an optimiser's metric each layer has its own scale
    leaders = {name: name for name in A} if metrics else shared(A)
    factors = [(QA, A, leader, "A") for leader in dict.fromkeys(leaders.values())]
    factors += [(QS, S, name, "S") for name in leaders]
    owners = processes.deal([float(len(side[name])) ** 3 for _, side, name, _ in factors])
    scales: dict[str, Metric] = {}
    if metrics:
        scales = {
            name: Metric(metrics[name].r.to(S[name]), metrics[name].c.to(A[name]))
            for name in leaders
            if name in metrics
        }
    for name, leader in leaders.items():
        if name != leader:
            A.pop(name)  # the same matrix, which would be held as long as a name for it is
    values: dict[tuple[str, str], Tensor] = {}
    likes: dict[tuple[str, str], Tensor] = {}
    failed: IdealmixError | None = None
    with warnings.catch_warnings(record=processes.size > 1) as told:
        if processes.size > 1:
            warnings.simplefilter("always")
        for (shelf, side, name, letter), owner in zip(factors, owners):
            factor = side.pop(name)
            likes[letter, name] = factor.new_empty(len(factor))
            if owner != processes.rank or failed:
                continue
            if name in scales:
                factor = _scaled(factor, scales[name].c if letter == "A" else scales[name].r)
            try:
                values[letter, name], vectors = eigenbasis(factor, f"layer {name}, factor {letter}")
            except IdealmixError as error:
                failed = error
                continue
            shelf.put(name, vectors)
            del factor, vectors
    if processes.size > 1:
        _exchange(processes, failed, told or [], factors, owners, values, likes)
    elif failed:
        raise failed
    spectra = {name: (values["S", name], values["A", leader]) for name, leader in leaders.items()}
    return Bases(QA, QS, leaders, scales), spectra


def _exchange(
    processes: Processes,
    failed: IdealmixError | None,
    told: Sequence[warnings.WarningMessage],
    factors: Sequence[tuple[Shelf, dict[str, Tensor], str, str]],
    owners: Sequence[int],
    values: dict[tuple[str, str], Tensor],
    likes: Mapping[tuple[str, str], Tensor],
) -> None:
    """Everybody gets everybody's bases, eigenvalues, doubts; and fails where one has failed."""
    processes.agree(failed)
    for doubt in (text for of_one in processes.gather([str(one.message) for one in told]) for text in of_one):
        warnings.warn(doubt, Doubt, stacklevel=3)
    for (shelf, _, name, letter), owner in zip(factors, owners):
        mine, like = owner == processes.rank, likes[letter, name]
        values[letter, name] = processes.send(values[letter, name] if mine else torch.empty_like(like), owner)
        vectors = processes.send(
            shelf[name].contiguous() if mine else like.new_empty(len(like), len(like)), owner
        )
        if not mine:
            shelf.put(name, vectors)
