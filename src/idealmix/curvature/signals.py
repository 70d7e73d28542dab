"""What one batch gives: at each layer a `Signal`, and each row's loss. Flows between the passes and the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idealmix.curvature.layers import Layer


@dataclass(frozen=True)
class Signal:
    """One layer's part of one batch. M is L times the number of the layer's calls in the forward pass,
    or, with one row, as many positions as reached the layer.

    Attributes:
        layer: which.
        a: (B, M, d_in) inputs, a column of ones last where there is a bias; zero at pads.
        s: (B, M, d_out) gradient of the batch's summed supervised loss (nats) at the layer's output; zero at pads.
            Where memory did not suffice for a whole batch, its rows come in several signals, the others at zero.
        weights: (B,) repetitions of the rows, on the model's device.
        leader: name of the first layer that read the same input tensors (its own, if it is the first). Layers
            with one leader that follow each other get the same `a` object.
    """

    layer: Layer
    a: Tensor
    s: Tensor
    weights: Tensor
    leader: str


@dataclass(frozen=True)
class Losses:
    """Of one batch's rows, on the CPU.

    Attributes:
        row_ids: B identifiers.
        weights: (B,) float64.
        sums: (B,) float64, nats, summed over the row's supervised positions.
        supervised: (B,) positions with a label after the shift.
        positions: (B,) non-pad positions.
    """

    row_ids: tuple[str, ...]
    weights: Tensor
    sums: Tensor
    supervised: Tensor
    positions: Tensor


Visitor = Callable[[Signal], None]
"""Adds a signal up."""


def joined(parts: Sequence[Losses]) -> Losses:
    """Losses of one batch that was measured in parts, in the order of its rows."""
    return Losses(
        tuple(row for part in parts for row in part.row_ids),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.sums for part in parts]),
        torch.cat([part.supervised for part in parts]),
        torch.cat([part.positions for part in parts]),
    )
