"""K-FAC with pi-split damping by Cholesky: no eigendecomposition and no second pass.

Flows in: A and S of each layer. Flows out: ``respond(layer, G) -> R G``:

    R G = (S + sqrt(delta)/pi I)^-1 G (A + pi sqrt(delta) I)^-1      pi^2 = (tr A / d_in) / (tr S / d_out)

This is not the inverse of A x S + delta I: the split adds the cross terms too. Source: Martens and Grosse (arXiv
1503.05671), section 6.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from idealmix.curvature.basis import Metric, scaled_factors
from idealmix.curvature.damping import absolute_damping
from idealmix.curvature.layers import Layer
from idealmix.curvature.linalg import cholesky
from idealmix.curvature.shelf import Shelves


class Kfac:
    """Block-diagonal Kronecker-factored curvature, converged response.

    Args:
        layers: which.
        A, S: factors by layer name, perhaps on a shelf.
        rho: damping relative to a layer's mean eigenvalue, tr A tr S / (d_in d_out).
        metrics: of the optimiser, by layer name.
        shelves: where their Cholesky factors lie; None: memory.
        among: mean eigenvalues of all layers that are measured, where these are some of them; None: these.
    """

    kind = "kfac"

    def __init__(
        self,
        layers: Sequence[Layer],
        A: Mapping[str, Tensor],
        S: Mapping[str, Tensor],
        rho: float,
        metrics: Mapping[str, Metric] | None = None,
        shelves: Shelves | None = None,
        among: Mapping[str, float] | None = None,
    ) -> None:
        self.layers, self.rho, self._among = list(layers), rho, among
        self._metrics = {
            name: Metric(metric.r.to(S[name]), metric.c.to(A[name]))
            for name, metric in (metrics or {}).items()
            if name in S
        }
        self.A, self.S = A, S
        self._shelves = shelves or Shelves()
        self._roots = self._shelves.shelf(), self._shelves.shelf()

    @cached_property
    def damping(self) -> dict[str, float]:
        """Absolute, by layer name."""
        return absolute_damping(self.means(), self.rho, self._among)

    def means(self) -> dict[str, float]:
        """Each layer's mean eigenvalue."""
        pairs = ((name, *self._factors(name)) for name in self.A)
        return {name: float(a.diagonal().mean() * s.diagonal().mean()) for name, a, s in pairs}

    def respond(self, name: str, G: Tensor) -> Tensor:
        """R G for one layer: (.., d_out, d_in) -> the same shape, in the factors' precision."""
        of_a, of_s = self._roots
        if name not in of_a:
            for shelf, root in zip(self._roots, self._decompose(name)):
                shelf.put(name, root)
        root_a, root_s = of_a[name], of_s[name]
        metric = self._metrics.get(name)
        G = G.to(root_a)
        G = G if metric is None else metric.scale(G)
        G = torch.cholesky_solve(G, root_s.expand(*G.shape[:-2], *root_s.shape))
        G = torch.cholesky_solve(G.mT, root_a.expand(*G.shape[:-2], *root_a.shape)).mT
        return G if metric is None else metric.scale(G)

    def with_damping(self, rho: float) -> Kfac:
        """The same factors at another damping; they are decomposed again."""
        return type(self)(self.layers, self.A, self.S, rho, self._metrics, self._shelves, self._among)

    def among(self, means: Mapping[str, float]) -> Kfac:
        """The same curvature as a part of that of all layers, whose mean eigenvalues these are."""
        return type(self)(self.layers, self.A, self.S, self.rho, self._metrics, self._shelves, means)

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        return scaled_factors(self.A[name], self.S[name], self._metrics.get(name))

    def _decompose(self, name: str) -> tuple[Tensor, Tensor]:
        a, s = self._factors(name)
        mean_a, mean_s = float(a.diagonal().mean()), float(s.diagonal().mean())
        # a dead factor has no scale of its own: split evenly
        pi = math.sqrt(mean_a / mean_s) if mean_a > 0 and mean_s > 0 else 1.0
        root = math.sqrt(self.damping[name])
        return (
            cholesky(_shifted(a, pi * root), f"layer {name}, factor A"),
            cholesky(_shifted(s, root / pi), f"layer {name}, factor S"),
        )


def _shifted(matrix: Tensor, by: float) -> Tensor:
    return matrix + by * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
