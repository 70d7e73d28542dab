"""EK-FAC: the response of trained parameters to a gradient, in the eigenbasis of the Kronecker factors.

Flows in: bases and eigenvalues of each layer. Flows out: ``respond(layer, G) -> R G``. K-FAC's own products of
eigenvalues give K-FAC in its eigenbasis by the same algebra.

    R G = Q_S (G~ * f(lambda)) Q_A'    G~ = Q_S' G Q_A
    converged: f = 1 / (lambda + damping)
    finite:    f = (1 - exp(-tau lambda)) / lambda, tau where lambda -> 0; no damping

Sources: George et al. (arXiv 1806.03884), equation 8; Grosse et al. (arXiv 2308.03296), equation 20 for the damped
inverse; Bae et al. (arXiv 2405.12186), equation 15 for the finite form. In an optimiser's metric P the response is
P^(1/2) R' P^(1/2) with R' that of the scaled curvature P^(1/2) H P^(1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from idealmix.curvature.basis import Basis, Metric
from idealmix.curvature.damping import absolute_damping
from idealmix.curvature.layers import Layer

Turn = Callable[[Metric, Tensor], Tensor]


class Ekfac:
    """Block-diagonal curvature in an eigenbasis for each layer.

    Args:
        layers: which.
        bases: by layer name.
        eigenvalues: (d_out, d_in) by layer name, nats^2 per supervised token.
        rho: damping relative to a layer's mean eigenvalue.
        tau: sum of the step sizes, for the finite response; None: converged.
        among: mean eigenvalues of all layers that are measured, where these are some of them; None: these.
    """

    kind = "ekfac"

    def __init__(
        self,
        layers: Sequence[Layer],
        bases: Mapping[str, Basis],
        eigenvalues: Mapping[str, Tensor],
        rho: float,
        tau: float | None = None,
        among: Mapping[str, float] | None = None,
    ) -> None:
        self.layers, self.bases, self.eigenvalues = list(layers), bases, eigenvalues
        self.rho, self.tau, self._among = rho, tau, among

    @cached_property
    def damping(self) -> dict[str, float]:
        """Absolute, by layer name."""
        return absolute_damping(self.means(), self.rho, self._among)

    def means(self) -> dict[str, float]:
        """Each layer's mean eigenvalue."""
        return {name: float(values.mean()) for name, values in self.eigenvalues.items()}

    def respond(self, name: str, G: Tensor) -> Tensor:
        """R G for one layer: (.., d_out, d_in) -> the same shape, in the factors' precision."""
        basis = self.bases[name]
        return basis.restore(self.rotate(name, G) * self.response(name))

    def rotate(self, name: str, G: Tensor) -> Tensor:
        """G in the eigenbasis. The dot of two rotated gradients, weighted by `response`, is ``<G, R G'>``: with
        gradients rotated once, every damping is free.
        """
        basis = self.bases[name]
        return basis.rotate(G.to(basis.QS))

    def carry(self, name: str, D: Tensor) -> Tensor:
        """What the steps of tau leave of a deviation D of the parameters: P^(1/2) exp(-tau P^(1/2) H P^(1/2)) P^(-1/2) D.

        Raises:
            ValueError: the response is the converged one, which leaves nothing.
        """
        return self._decayed(name, D, lambda m, x: m.unscale(x), lambda m, x: m.scale(x))

    def carry_back(self, name: str, U: Tensor) -> Tensor:
        """The transpose of `carry`: P^(-1/2) exp(..) P^(1/2) U."""
        return self._decayed(name, U, lambda m, x: m.scale(x), lambda m, x: m.unscale(x))

    def _decayed(self, name: str, X: Tensor, before: Turn, after: Turn) -> Tensor:
        if self.tau is None:
            raise ValueError("the converged response has no step sizes")
        basis = self.bases[name]
        X = X.to(basis.QS)
        X = X if basis.metric is None else before(basis.metric, X)
        X = (
            basis.QS
            @ (basis.QS.T @ X @ basis.QA * torch.exp(-self.tau * self.eigenvalues[name]))
            @ basis.QA.T
        )
        return X if basis.metric is None else after(basis.metric, X)

    def response(self, name: str) -> Tensor:
        """f(lambda), (d_out, d_in)."""
        values = self.eigenvalues[name]
        if self.tau is None:
            return 1 / (values + self.damping[name])
        safe = values.clamp_min(torch.finfo(values.dtype).tiny)
        return torch.where(self.tau * values < 1e-12, self.tau, -torch.expm1(-self.tau * safe) / safe)

    def with_damping(self, rho: float) -> Ekfac:
        """The same curvature at another damping; nothing is fitted again."""
        return type(self)(self.layers, self.bases, self.eigenvalues, rho, self.tau, self._among)

    def among(self, means: Mapping[str, float]) -> Ekfac:
        """The same curvature as a part of that of all layers, whose mean eigenvalues these are."""
        return type(self)(self.layers, self.bases, self.eigenvalues, self.rho, self.tau, means)
