"""The exact response: conjugate gradients on Gauss-Newton products, over layers that are coupled, or all parameters.

Flows in: a `GaussNewton` and a damping for each parameter; for layers, an approximate curvature that gives both the
damping and the preconditioner. Flows out: x with (H + damping) x = g, and for each solution its residual and iterations.

Nothing is block-diagonal, Kronecker-factored or sampled here, so this is what the approximations are judged by. A
solution costs some tens to hundreds of products, each about two passes over the mixture's rows. Source: Hestenes and
Stiefel (1952); the Gauss-Newton matrix is semi-definite and the damping positive, so the method applies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Collector
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.curvature.kfac import Kfac
from idealmix.curvature.layers import Layer
from idealmix.errors import IdealmixError, InputError

GUIDE_DAMPING = 1.0
"""The preconditioner is damped by at least a layer's mean eigenvalue: directions in which sampled labels found no curvature
would else be blown up, and cost more iterations than they save."""

Map = Callable[[Tensor], Tensor]
"""A linear map of flat float64 vectors."""


@dataclass(frozen=True)
class Solved:
    """How a system was solved.

    Attributes:
        residual: |g - (H + damping) x| / |g|, computed anew from x at the end.
        iterations: products that were needed.
    """

    residual: float
    iterations: int


class Exact:
    """The response of layers that know of each other: one system for all of them.

    Args:
        matrix: H over the parameters of the layers and no others.
        guide: an approximation of the same layers on the same rows; its damping is used, and its response, more
            strongly damped, is the preconditioner.
        tolerance: on the relative residual. float32 passes cannot go much below 1e-5.
        limit: of iterations.
    """

    kind = "exact"

    def __init__(
        self, matrix: GaussNewton, guide: Ekfac | Kfac, tolerance: float = 1e-4, limit: int = 3000
    ) -> None:
        self.layers, self.damping = guide.layers, guide.damping
        self.solved: list[Solved] = []
        self._matrix, self._guide = matrix, guide.with_damping(max(guide.rho, GUIDE_DAMPING))
        self._tolerance, self._limit = tolerance, limit
        each = {n: self.damping[layer.name] for layer in self.layers for n in parameter_names(layer)}
        self._shift = constant(matrix, each)

    def respond_all(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """R g over all layers: (d_out, d_in) float64 by layer name, in and out.

        Raises:
            IdealmixError: the residual does not come down to the tolerance.
        """
        found, solved = conjugate_gradients(
            lambda v: self._matrix.product(v) + self._shift * v,
            self._joined(gradient),
            self._precondition,
            tolerance=self._tolerance,
            limit=self._limit,
        )
        self.solved.append(solved)
        return self._matrices(found)

    def _precondition(self, vector: Tensor) -> Tensor:
        return self._joined({n: self._guide.respond(n, G) for n, G in self._matrices(vector).items()})

    def _joined(self, matrices: Mapping[str, Tensor]) -> Tensor:
        return self._matrix.flat(
            {n: part for layer in self.layers for n, part in layer.parameters(matrices[layer.name]).items()}
        )

    def _matrices(self, vector: Tensor) -> dict[str, Tensor]:
        named = self._matrix.named(vector)
        return {layer.name: layer.matrix(named) for layer in self.layers}


def exact_layers(
    collector: Collector, batches: Sequence[Batch], guide: Ekfac | Kfac, tolerance: float = 1e-4
) -> Exact:
    """`Exact` for a collector's layers on the rows of `batches`.

    Raises:
        InputError: the guide is of another response than the converged one, or a layer's weight is not its own.
    """
    if isinstance(guide, Ekfac) and guide.tau is not None:
        raise InputError(
            "exact curvature has no eigenbasis, which the finite response needs",
            where="influence.response",
            mend="use response: converged, or curvature: ekfac",
        )
    names = [name for layer in guide.layers for name in parameter_names(layer)]
    matrix = GaussNewton(collector.model, batches, names, collector.task, collector.processes)
    return Exact(matrix, guide, tolerance)


def parameter_names(layer: Layer) -> list[str]:
    """Of a layer's weight and, if there is one, its bias."""
    return [f"{layer.name}.weight"] + [f"{layer.name}.bias"] * layer.bias


def constant(matrix: GaussNewton, values: Mapping[str, float]) -> Tensor:
    """(size,) vector with one value for each parameter."""
    zeros = matrix.named(matrix.zeros())
    return matrix.flat({name: part + values[name] for name, part in zeros.items()})


def conjugate_gradients(
    product: Map, g: Tensor, precondition: Map, *, tolerance: float, limit: int
) -> tuple[Tensor, Solved]:
    """Solve ``product(x) = g`` for a positive definite map.

    The residual that the recursion carries drifts from the true one when products are rounded, so at the end the true
    one is computed; where it is too large the iteration begins anew from there, with what is left as right-hand side.

    Args:
        precondition: a positive definite map near the inverse.
        tolerance: on the true residual's norm over |g|.
        limit: of products.

    Raises:
        IdealmixError: not solved within the limit, no longer getting better, or not positive definite.
    """
    norm, x, left, used = float(g.norm()), torch.zeros_like(g), g, 0
    if not norm:
        return x, Solved(0.0, 0)
    while used < limit:
        before = float(left.norm()) / norm
        step, count = _descend(product, left, precondition, tolerance * norm, limit - used)
        x, used = x + step, used + count + 1
        left = g - product(x)
        residual = float(left.norm()) / norm
        if residual <= tolerance:
            return x, Solved(residual, used)
        if used < limit and residual > before / 2:
            raise _unsolved(f"stays at a residual of {residual:.1e}, above the tolerance of {tolerance:.0e}")
    raise _unsolved(f"have a residual of {residual:.1e} after {used} iterations, above {tolerance:.0e}")


def _descend(product: Map, r: Tensor, precondition: Map, target: float, limit: int) -> tuple[Tensor, int]:
    """Conjugate gradients from 0 until the recursion's residual is below `target`."""
    x, z = torch.zeros_like(r), precondition(r)
    d, rho = z, float(r @ z)
    count = 0
    while count < limit:
        count += 1
        image = product(d)
        curvature = float(d @ image)
        if not curvature > 0 or not rho > 0:
            raise _unsolved("met a direction without positive curvature")
        x, r = x + rho / curvature * d, r - rho / curvature * image
        if float(r.norm()) <= target:
            break
        z = precondition(r)
        rho, last = float(r @ z), rho
        d = z + rho / last * d
    return x, count


def _unsolved(what: str) -> IdealmixError:
    return IdealmixError(
        f"conjugate gradients {what}",
        where="influence.curvature",
        mend="raise influence.damping, load the model in float64, or use curvature: ekfac",
    )
