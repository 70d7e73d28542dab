"""The exact response of a small model: the Gauss-Newton matrix written out, and solved directly.

Flows in: a `GaussNewton`. Flows out: the matrix itself, one product a column, and ``(H + damping)^-1 g`` over layers that are
coupled, or over all parameters, at any number of dampings.

What conjugate gradients need some hundreds of products for, for every gradient and damping, costs here as many products as
there are parameters, once: up to some thousand parameters that is less. And it does not depend on the damping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from idealmix.curvature.exact import Solved, parameter_names
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.curvature.layers import Layer


class Written:
    """A Gauss-Newton matrix in full.

    Args:
        matrix: over some parameters; a float64 model gives float64 precision.

    Attributes:
        H: (size, size) float64, symmetric.
    """

    def __init__(self, matrix: GaussNewton) -> None:
        self._matrix = matrix
        units = torch.diag(matrix.zeros() + 1)
        columns = [matrix.product(unit) for unit in units]
        self.H = torch.stack(columns, 1)
        self.H = (self.H + self.H.T) / 2
        numbers = matrix.named(torch.arange(matrix.size, dtype=torch.float64, device=self.H.device))
        self._places = {name: part.flatten().long() for name, part in numbers.items()}

    def solve(
        self, damping: Mapping[str, float], gradients: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """(H + damping)^-1 g over the parameters that `damping` names, the others as they are.

        Args:
            damping: absolute, by parameter name.
            gradients: by parameter name.
        """
        names = list(damping)
        places = torch.cat([self._places[name] for name in names])
        shift = torch.cat(
            [
                torch.full((len(self._places[name]),), value, dtype=torch.float64, device=self.H.device)
                for name, value in damping.items()
            ]
        )
        g = torch.stack(
            [torch.cat([each[name].double().flatten() for name in names]) for each in gradients], 1
        )
        root = torch.linalg.cholesky(self.H[places][:, places] + torch.diag(shift))
        found = torch.cholesky_solve(g, root)
        sizes = [len(self._places[name]) for name in names]
        return [
            {name: part.view_as(gradients[0][name]) for name, part in zip(names, column.split(sizes))}
            for column in found.T
        ]


class DenseExact:
    """`curvature.exact.Exact` by a written matrix.

    Args:
        written: over the layers' parameters and maybe more.
        damping: absolute, by layer name.
    """

    kind = "exact"

    def __init__(self, written: Written, layers: Sequence[Layer], damping: Mapping[str, float]) -> None:
        self.layers, self.damping, self.solved = list(layers), dict(damping), list[Solved]()
        self._written = written

    def respond_all(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """R g over all layers: (d_out, d_in) float64 by layer name, in and out."""
        damping = {name: self.damping[layer.name] for layer in self.layers for name in parameter_names(layer)}
        asked = {
            n: part for layer in self.layers for n, part in layer.parameters(gradient[layer.name]).items()
        }
        (found,) = self._written.solve(damping, [asked])
        return {layer.name: layer.matrix(found) for layer in self.layers}

    def respond(self, name: str, gradient: Tensor) -> Tensor:
        """R g of one layer by its own block of the matrix, exact but for the coupling with the others: (d_out, d_in) in and out.

        K-FAC and EK-FAC approximate these blocks.
        """
        (layer,) = (each for each in self.layers if each.name == name)
        damping = dict.fromkeys(parameter_names(layer), self.damping[name])
        (found,) = self._written.solve(damping, [layer.parameters(gradient)])
        return layer.matrix(found)
