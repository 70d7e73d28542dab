"""The sums behind the curvature: Kronecker factors, then eigenvalues in their eigenbasis.

Flows in: signals of the mixture's rows. Flows out: A and S of each layer, and lambda.

    A = (1/P) sum over non-pad positions of a a'
    S = (1/T) sum over non-pad positions of s s'
    lambda = (1/T) sum over sequences n of (Q_S' G_n Q_A)^2

P non-pad positions, T supervised positions, both with rows counted as often as their weights say. Sources: K-FAC,
Martens and Grosse (arXiv 1503.05671), section 3; EK-FAC, George et al. (arXiv 1806.03884), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idealmix.curvature.basis import Bases
from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Collector, Losses, Signal
from idealmix.curvature.layers import Layer
from idealmix.curvature.precision import gram, wide
from idealmix.curvature.processes import Processes
from idealmix.errors import IdealmixError

# Per-sequence gradients are held together up to this many numbers (128 MiB in float32).
HELD = 2**25


@dataclass(frozen=True)
class Factors:
    """Of each layer, by name. Layers that read the same input share one A (the same object).

    Attributes:
        A: (d_in, d_in), per non-pad position.
        S: (d_out, d_out), nats^2 per supervised token.
        positions: P.
        supervised: T.
        losses: of this process's rows, with the labels that were used.
    """

    A: dict[str, Tensor]
    S: dict[str, Tensor]
    positions: float
    supervised: float
    losses: list[Losses]


def fit_factors(
    collector: Collector, batches: Sequence[Batch], label_seed: int | None, sums: FactorSums | None = None
) -> Factors:
    """A and S of every layer, from one forward and backward.

    Args:
        collector: the model, its layers, who shares the work.
        batches: the mixture's rows, repetitions as weights.
        label_seed: of the sampled labels; None: the data's own (the empirical Fisher).
        sums: where to add up; default `FactorSums`.

    Raises:
        IdealmixError: no supervised token, or a layer that never ran.
    """
    sums = sums or FactorSums(collector.layers)
    losses = list(collector.sweep(batches, sums, label_seed=label_seed, detail="covariances"))
    return sums.total(losses, collector.processes)


class FactorSums:
    """A visitor that adds up a a' and s s'."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self._aa: dict[str, Tensor] = {}  # by leader
        self._ss: dict[str, Tensor] = {}
        self._leaders: dict[str, str] = {}

    def __call__(self, signal: Signal) -> None:
        name, leader = signal.layer.name, signal.leader
        if self._leaders.setdefault(name, leader) != leader:
            raise IdealmixError(
                f"it reads the same input as {leader} in one batch and as {self._leaders[name]} in another",
                where=f"layer {name}",
                mend="leave this layer out with influence.layers",
            )
        if name == leader:
            self._add(self._aa, name, self.covariance(signal.a, signal.weights))
        self._add(self._ss, name, self.covariance(signal.s, signal.weights))

    def covariance(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over rows and positions of x x'."""
        return gram(x, weights)

    def zeros(self, size: int, like: Tensor) -> Tensor:
        """Where a sum begins: float32 or better."""
        return torch.zeros(size, size, dtype=wide(like.dtype), device=like.device)

    def _add(self, sums: dict[str, Tensor], name: str, term: Tensor) -> None:
        if name not in sums:
            sums[name] = self.zeros(len(term), term)
        sums[name] += term

    def _sum(self, sums: dict[str, Tensor], name: str, layer: Layer, size: int) -> Tensor:
        """A sum, or zeros where the layer did not run in this process's share."""
        weight: Any = layer.modules[0].weight
        return sums.pop(name) if name in sums else self.zeros(size, weight)

    def total(self, losses: list[Losses], processes: Processes) -> Factors:
        """Sums over all processes, divided once."""
        for others in processes.gather(self._leaders):
            self._leaders = {**others, **self._leaders}
        silent = [layer.name for layer in self.layers if layer.name not in self._leaders]
        if silent:
            raise IdealmixError(
                f"no gradient reached {len(silent)} selected layers: {', '.join(silent[:5])}",
                where="influence.layers",
                mend="select only layers that run on these rows",
            )
        positions, supervised = counts(losses, processes)
        A: dict[str, Tensor] = {}
        S: dict[str, Tensor] = {}
        for layer in self.layers:
            name, leader = layer.name, self._leaders[layer.name]
            if leader not in A:  # the same order everywhere: every process takes part in every sum
                A[leader] = processes.all_sum(self._sum(self._aa, leader, layer, layer.d_in)) / positions
            A[name] = A[leader]
            S[name] = processes.all_sum(self._sum(self._ss, name, layer, layer.d_out)) / supervised
        return Factors(A, S, positions, supervised, losses)


class EigenvalueSums:
    """A visitor that adds up each sequence's squared gradient in the eigenbasis."""

    def __init__(self, layers: Sequence[Layer], bases: Bases) -> None:
        self.layers, self.bases = layers, bases
        self._sums: dict[str, Tensor] = {}
        self._turned: tuple[Tensor, str, Tensor] | None = (
            None  # the last a, its leader, a in the leader's basis
        )

    def __call__(self, signal: Signal) -> None:
        name, squares = signal.layer.name, self.squares(signal)
        self._sums[name] = self._sums[name].add_(squares) if name in self._sums else squares

    def squares(self, signal: Signal) -> Tensor:
        """Weighted sum over sequences of (Q_S' G_n Q_A)^2, (d_out, d_in).

        The square is of the sequence's whole gradient: neither of a token's nor of the batch's.
        """
        layer = signal.layer
        total = torch.zeros(layer.d_out, layer.d_in, dtype=wide(signal.s.dtype), device=signal.s.device)
        for rows, gradients in self._rotated(signal):
            root = signal.weights[rows].sqrt().to(gradients.dtype)
            total += gradients.mul_(root[:, None, None]).square_().sum(0)
        return total

    def _rotated(self, signal: Signal) -> Iterator[tuple[slice, Tensor]]:
        """Each sequence's gradient in the eigenbasis: each side turned by the cheaper of two orders.

        The inputs' side costs M d_in^2 multiplications a row by tokens (once for layers that share it), d_out d_in^2 by
        gradients; the outputs' side M d_out^2 or d_in d_out^2. The products need M d_in d_out in every order.
        """
        basis, layer = self.bases[signal.layer.name], signal.layer
        QA, QS = basis.into()
        length = signal.a.shape[1]
        a, s = signal.a, signal.s.to(QS.dtype)
        leader = layer.name if basis.metric else self.bases.leaders[layer.name]
        turns_a, turns_s = length <= layer.d_out or self._has(a, leader), length <= layer.d_in
        a = self._turn(a, QA, leader) if turns_a else a
        s = s @ QS if turns_s else s
        step = max(1, HELD // (layer.d_in * layer.d_out))
        for begin in range(0, len(s), step):
            rows = slice(begin, begin + step)
            gradients = s[rows].mT @ a[rows].to(s.dtype)
            gradients = gradients if turns_a else gradients @ QA
            yield rows, gradients if turns_s else QS.T @ gradients

    def _has(self, a: Tensor, leader: str) -> bool:
        return self._turned is not None and self._turned[0] is a and self._turned[1] == leader

    def _turn(self, a: Tensor, QA: Tensor, leader: str) -> Tensor:
        if self._turned is None or not self._has(a, leader):
            self._turned = a, leader, a.to(QA.dtype) @ QA
        return self._turned[2]

    def total(self, losses: list[Losses], processes: Processes) -> dict[str, Tensor]:
        """lambda by layer: sums over all processes, divided by supervised tokens."""
        _, supervised = counts(losses, processes)
        found = {}
        for layer in self.layers:  # the same order everywhere: every process takes part in every sum
            weight: Any = layer.modules[0].weight
            mine = self._sums.pop(layer.name, None)
            if mine is None:  # it did not run in this process's share
                mine = torch.zeros(layer.d_out, layer.d_in, dtype=wide(weight.dtype), device=weight.device)
            found[layer.name] = processes.all_sum(mine).div_(supervised)
        return found


def fit_eigenvalues(
    collector: Collector,
    batches: Sequence[Batch],
    label_seed: int | None,
    bases: Bases,
    sums: EigenvalueSums | None = None,
) -> dict[str, Tensor]:
    """lambda of every layer, (d_out, d_in), nats^2 per supervised token: a second forward and backward.

    Args:
        collector, batches, label_seed: as for `fit_factors`; the same seed gives the same labels.
        bases: from `basis.eigenbases`.
        sums: where to add up; default `EigenvalueSums`.
    """
    sums = sums or EigenvalueSums(collector.layers, bases)
    losses = list(collector.sweep(batches, sums, label_seed=label_seed, detail="eigenvalues"))
    return sums.total(losses, collector.processes)


def counts(losses: Sequence[Losses], processes: Processes) -> tuple[float, float]:
    """Non-pad and supervised positions over all processes, repetitions counted.

    Raises:
        IdealmixError: there is no supervised position.
    """
    mine = (
        sum(float(each.weights @ each.positions.double()) for each in losses),
        sum(float(each.weights @ each.supervised.double()) for each in losses),
    )
    every = processes.gather(mine)
    positions, supervised = sum(p for p, _ in every), sum(t for _, t in every)
    if not supervised:
        raise IdealmixError("no row has a supervised token", mend="check the rows' labels")
    return positions, supervised


def weighted(x: Tensor, weights: Tensor) -> Tensor:
    """(B, M, d) times each row's weight, in `wide` precision."""
    kind = wide(x.dtype)
    return x.to(kind) * weights.to(kind)[:, None, None]
