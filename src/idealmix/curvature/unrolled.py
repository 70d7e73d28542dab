"""The response of a training that is unrolled into segments, each with its own model, curvature and step sizes.

Flows in: one `Ekfac` a segment, in the order of the training, each with its tau and its optimiser's metric. Flows out: what
every segment's mean gradient has to be multiplied by for the final parameters, seen from the end or from the start.

In segment l a gradient g moves the parameters by ``- R_l g``, and every later segment k turns a deviation d into ``C_k d``:

    R_l = P^(1/2) F(P^(1/2) H P^(1/2)) P^(1/2)           F(x) = (1 - exp(-tau x)) / x
    C_k = P^(1/2) exp(-tau P^(1/2) H P^(1/2)) P^(-1/2)   = I - R_k H_k

so the final parameters' change is ``- sum_l C_L .. C_(l+1) R_l g_l``. Source: Bae et al. (arXiv 2405.12186), equations 12 to
16; P, H and tau are the segment's own, and no basis is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idealmix.curvature.ekfac import Ekfac


class Unrolled:
    """The segments' responses, joined.

    Args:
        segments: in the order of the training.
    """

    kind = "unrolled"

    def __init__(self, segments: Sequence[Ekfac]) -> None:
        self.segments = list(segments)

    def pull(self, name: str, U: Tensor) -> list[Tensor]:
        """From the end: ``R_l C_(l+1)' .. C_L' U`` of every segment, each shaped like U, (.., d_out, d_in)."""
        found = []
        for segment in reversed(self.segments):
            found.append(segment.respond(name, U))
            U = segment.carry_back(name, U)
        return found[::-1]

    def push(self, name: str, gradients: Sequence[Tensor]) -> Tensor:
        """From the start: ``sum_l C_L .. C_(l+1) R_l G_l``, shaped like each G, (.., d_out, d_in)."""
        total = torch.zeros_like(gradients[0])
        for segment, G in zip(self.segments, gradients):
            total = segment.carry(name, total) + segment.respond(name, G)
        return total
