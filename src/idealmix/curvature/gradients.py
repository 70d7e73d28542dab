"""Gradients of sets of rows: their sum, and each row's dot product with given matrices.

Flows in: a collector and batches (the data's own labels). Flows out: G = sum_t s_t a_t' of each layer, with the counts
to divide by; or for every row the scalars <G_n, U_q>, without keeping one gradient for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Collector, Losses, Signal
from idealmix.curvature.factors import HELD, counts, weighted
from idealmix.curvature.layers import Layer
from idealmix.curvature.precision import product, wide
from idealmix.curvature.processes import Processes


@dataclass(frozen=True)
class RowLosses:
    """Of all rows of a set, in the order of the batches; on the CPU.

    Attributes:
        row_ids: N identifiers.
        weights: (N,) float64, repetitions.
        sums: (N,) float64, nats over the row's supervised tokens.
        supervised: (N,) supervised tokens.
    """

    row_ids: tuple[str, ...]
    weights: Tensor
    sums: Tensor
    supervised: Tensor


@dataclass(frozen=True)
class SumGradient:
    """The summed gradient of a set's loss, rows counted by their weights.

    Attributes:
        matrices: (d_out, d_in) by layer name, nats; bias in the last column.
        supervised: supervised tokens, weighted: what to divide by for the mean.
        positions: non-pad positions, weighted.
        rows: every row's loss.
    """

    matrices: dict[str, Tensor]
    supervised: float
    positions: float
    rows: RowLosses

    def mean(self) -> dict[str, Tensor]:
        """The gradient of the loss per supervised token."""
        return {name: matrix / self.supervised for name, matrix in self.matrices.items()}


@dataclass(frozen=True)
class RowDots:
    """Every row's dot products with Q queries.

    Attributes:
        dots: (N, Q) float64, sum over layers of <G_n, U_q>; not multiplied by weights.
        rows: identifiers, weights, losses and supervised tokens, in the order of `dots`.
        by_layer: (Q,) float64 by layer name, summed over rows with their weights.
        gradient: the rows' summed gradient, if it was asked for.
    """

    dots: Tensor
    rows: RowLosses
    by_layer: dict[str, Tensor]
    gradient: SumGradient | None


def sum_gradient(collector: Collector, batches: Sequence[Batch]) -> SumGradient:
    """The summed gradient over rows: one forward and backward, nothing kept for a row but its loss.

    Raises:
        IdealmixError: something is not finite, or there is no supervised token.
    """
    sums = GradientSums(collector.layers)
    losses = list(collector.sweep(batches, sums, detail="gradients"))
    return sums.total(losses, collector.processes)


def row_dots(
    collector: Collector, batches: Sequence[Batch], queries: Mapping[str, Tensor], *, total: bool = False
) -> RowDots:
    """Each row's <G_n, U_q>, summed over the layers that `queries` names.

    Args:
        collector, batches: as for `sum_gradient`.
        queries: (Q, d_out, d_in) by layer name; on any device: each is moved when its layer is reached.
        total: give the summed gradient too, from the same pass.

    Raises:
        IdealmixError: something is not finite, or there is no supervised token.
    """
    sums = GradientSums(collector.layers) if total else None
    dots = DotSums(queries, sums)
    losses, mine = [], []
    for each in collector.sweep(batches, dots, detail="gradients"):
        losses.append(each)
        mine.append(dots.take(len(each.row_ids)))
    processes = collector.processes
    every = processes.whole([part.cpu() for part in mine])
    parts = processes.gather({name: values.cpu() for name, values in dots.by_layer.items()})
    by_layer = {name: torch.stack([part[name] for part in parts]).sum(0) for name in queries}
    return RowDots(
        torch.cat(every),
        _rows(losses, processes),
        by_layer,
        sums.total(losses, processes) if sums else None,
    )


class GradientSums:
    """A visitor that adds up s a', rows counted by their weights."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._sums: dict[str, Tensor] = {}

    def __call__(self, signal: Signal) -> None:
        self.add(signal.layer.name, product(weighted(signal.s, signal.weights), signal.a))

    def add(self, name: str, term: Tensor) -> None:
        """Add a (d_out, d_in) term, weights included, to a layer's sum."""
        self._sums[name] = self._sums[name].add_(term) if name in self._sums else term

    def total(self, losses: list[Losses], processes: Processes) -> SumGradient:
        """Sums over all processes."""
        positions, supervised = counts(losses, processes)
        matrices = {}
        for layer in self._layers:  # a layer that did not run (an expert without tokens) has no gradient
            weight: Any = layer.modules[0].weight
            shape = layer.d_out, layer.d_in
            mine = self._sums.pop(layer.name, None)
            if mine is None:
                mine = torch.zeros(shape, dtype=wide(weight.dtype), device=weight.device)
            matrices[layer.name] = processes.all_sum(mine)
        return SumGradient(matrices, supervised, positions, _rows(losses, processes))


class DotSums:
    """A visitor that turns each row's gradient into its dot products with the queries.

    Args:
        queries: (Q, d_out, d_in) by layer name.
        sums: gets each layer's summed gradient as well.
    """

    def __init__(self, queries: Mapping[str, Tensor], sums: GradientSums | None = None) -> None:
        self._queries, self._sums = queries, sums
        self._count = len(next(iter(queries.values()))) if queries else 0
        self.by_layer = {name: torch.zeros(self._count, dtype=torch.float64) for name in queries}
        self._current: Tensor | None = None

    def __call__(self, signal: Signal) -> None:
        name = signal.layer.name
        if name not in self._queries:
            if self._sums:
                self._sums(signal)
            return
        kind = wide(signal.s.dtype)
        a, s = signal.a.to(kind), signal.s.to(kind)
        queries = self._queries[name].to(a)
        dots = torch.cat([part.double() for part in self._dots(name, a, s, queries, signal.weights)])
        self._current = dots if self._current is None else self._current + dots
        self.by_layer[name] = self.by_layer[name].to(dots.device) + signal.weights.double() @ dots

    def take(self, rows: int) -> Tensor:
        """The finished batch's dots, (rows, Q) float64; the next batch begins at zero."""
        dots, self._current = self._current, None
        return torch.zeros(rows, self._count, dtype=torch.float64) if dots is None else dots

    def _dots(self, name: str, a: Tensor, s: Tensor, queries: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """(rows, Q) parts. By tokens, s' (U a): Q M d_in d_out multiplications a row. By the row's gradient:
        (M + Q) d_in d_out, and the gradients' sum comes with it.
        """
        d_out, d_in = queries.shape[1:]
        if len(queries) == 1 and self._sums is None:
            yield ((a @ queries[0].T) * s).sum((1, 2))[:, None]
            return
        step = max(1, HELD // (d_in * d_out))
        for begin in range(0, len(s), step):
            rows = slice(begin, begin + step)
            gradients = (s[rows].mT @ a[rows]).flatten(1)
            yield gradients @ queries.flatten(1).T
            if self._sums:
                self._sums.add(name, (weights[rows].to(gradients) @ gradients).view(d_out, d_in))


def _rows(losses: Sequence[Losses], processes: Processes) -> RowLosses:
    every = processes.whole(list(losses))
    return RowLosses(
        tuple(row for each in every for row in each.row_ids),
        torch.cat([each.weights for each in every]),
        torch.cat([each.sums for each in every]),
        torch.cat([each.supervised for each in every]),
    )
