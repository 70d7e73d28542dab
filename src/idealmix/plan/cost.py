"""Floating-point operations and seconds of each phase: pure functions of sizes and tokens.

A multiplication and an addition count as two operations. A forward pass multiplies each token with every parameter but the
look-up table, 2 N, and with every key, 4 x heads x head size x length a block (Kaplan et al., arXiv 2001.08361, table 1);
a backward with weight gradients costs twice the forward, without them once. Experts of a mixture count as if all ran.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from idealmix.plan.machine import Machine
from idealmix.plan.shapes import Linear, Shape

# Bytes a second read from a scratch folder: a common NVMe drive; an assumption.
DISK_RATE = 2e9


@dataclass(frozen=True)
class Cost:
    """Operations by the precision they run in: the model's passes in its own, the curvature's sums in float32.

    Attributes:
        passes: forward and backward of the model.
        sums: products of the curvature and of gradients.
        decompositions: eigenvalues or Cholesky factors.
        read: bytes read back from a scratch folder: every batch reads each layer's matrices again.
    """

    passes: float = 0.0
    sums: float = 0.0
    decompositions: float = 0.0
    read: float = 0.0

    def seconds(self, machine: Machine, dtype: str) -> float:
        """On a machine: passes at its share of the rate; large products in float32 at twice that share, at most 0.8;
        decompositions at a tenth of float32's rate (LAPACK's and cuSOLVER's do half their work on vectors).
        """
        wide = machine.rate("float32")
        return (
            self.passes / (machine.share * machine.rate(dtype))
            + self.sums / (min(0.8, 2 * machine.share) * wide)
            + self.decompositions / (0.1 * wide)
            + self.read / DISK_RATE
        )


def forward(shape: Shape, tokens: float, length: float) -> float:
    """One forward pass over `tokens` in rows of `length`."""
    return tokens * (2.0 * shape.multiplied + 4.0 * shape.attention * length)


def training(shape: Shape, tokens: float, length: float, checkpointing: bool) -> Cost:
    """Forward, backward, and the forward again under checkpointing; adapters need no gradients of frozen weights."""
    times = (3.0 if shape.trained == shape.parameters else 2.0) + (1.0 if checkpointing else 0.0)
    return Cost(passes=times * forward(shape, tokens, length))


def evaluation(shape: Shape, tokens: float, length: float) -> Cost:
    """One forward."""
    return Cost(passes=forward(shape, tokens, length))


def frozen(shape: Shape, tokens: float, length: float) -> float:
    """Forward and backward without weight gradients."""
    return 2 * forward(shape, tokens, length)


def covariances(shape: Shape, layers: Sequence[Linear], tokens: float, length: float) -> Cost:
    """A once for layers that read the same input, S for each."""
    each = sum(_symmetric(x.d_in) * (x.name == x.leader) + _symmetric(x.d_out) for x in layers)
    return Cost(passes=frozen(shape, tokens, length), sums=tokens * each)


def _symmetric(size: int) -> float:
    """Operations of one token's x x', by panels on and above the diagonal as `curvature.precision.gram` makes it."""
    panels = math.ceil(size / max(128, size // 8))
    return 2.0 * size**2 * (panels + 1) / (2 * panels)


def decompositions(layers: Sequence[Linear], curvature: str) -> Cost:
    """Eigenvectors of a d x d matrix: 9 d^3 (Golub and Van Loan, section 8.3); Cholesky: d^3 / 3, each layer's own."""
    if curvature == "kfac":
        return Cost(decompositions=sum(x.d_in**3 + x.d_out**3 for x in layers) / 3)
    return Cost(decompositions=9.0 * sum(x.d_in**3 * (x.name == x.leader) + x.d_out**3 for x in layers))


def eigenvalues(shape: Shape, layers: Sequence[Linear], tokens: float, length: float) -> Cost:
    """Each row's gradient in the eigenbasis, each side by its cheaper order, as `curvature.factors.EigenvalueSums` chooses."""
    rows, total = tokens / length, 0.0
    for x in layers:
        inputs = min(tokens * (x.name == x.leader), rows * x.d_out) * 2.0 * x.d_in**2
        outputs = min(tokens, rows * x.d_in) * 2.0 * x.d_out**2
        total += inputs + outputs + tokens * 2.0 * x.d_in * x.d_out
    return Cost(passes=frozen(shape, tokens, length), sums=total)


def gradients(
    shape: Shape, layers: Sequence[Linear], tokens: float, length: float, queries: int, responses: int
) -> Cost:
    """Rows' gradients, their dots with `queries` matrices, and `responses` rotations into the eigenbasis and back."""
    size = sum(float(x.d_in * x.d_out) for x in layers)
    turn = sum(4.0 * x.d_in * x.d_out * (x.d_in + x.d_out) for x in layers)
    dots = 2.0 * size * (tokens + queries * tokens / length)
    return Cost(passes=frozen(shape, tokens, length), sums=dots + responses * turn)
