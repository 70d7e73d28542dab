"""The damped Fisher of all layers together, inverted exactly through its rows: for LoRA adapters.

Flows in: a collector and the mixture's batches. Flows out: ``respond_all({layer: G}) -> {layer: (R G) of the layer}``.
With g_n a row's summed gradient through all layers, w_n its repetitions, T the supervised tokens, and D the layers'
dampings on the diagonal,

    H = (1/T) sum over rows n of w_n g_n g_n'
    R = (H + D)^-1 = D^-1 - D^-1 G' (T I + G D^-1 G')^-1 G D^-1       rows of G: sqrt(w_n) g_n

Nothing is approximated but H itself, which has no Kronecker form and no blocks: what layers have in common counts.
Source: Woodbury's identity, as in Ren and Goldfarb (arXiv 1906.02353), equation 8. Costs: N row gradients are kept, and
one N x N Cholesky factor; so it is for few rows and few parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Collector
from idealmix.curvature.damping import absolute_damping
from idealmix.curvature.factors import counts
from idealmix.curvature.layers import Layer
from idealmix.curvature.linalg import cholesky
from idealmix.curvature.precision import wide
from idealmix.curvature.signals import Signal
from idealmix.errors import InputError

MOST = 2**32
"""Bytes of row gradients that are kept at most."""


class Woodbury:
    """Converged response of all layers together.

    Args:
        layers: which.
        rows: (N, d_out * d_in) by layer name, each row's summed gradient times the root of its weight.
        supervised: T.
        rho: damping relative to a layer's mean eigenvalue, the squared norm of its rows by T d_out d_in.
    """

    kind = "woodbury"

    def __init__(
        self, layers: Sequence[Layer], rows: Mapping[str, Tensor], supervised: float, rho: float
    ) -> None:
        self.layers, self.rho, self._rows, self._supervised = list(layers), rho, dict(rows), supervised
        self.damping = absolute_damping(self.means(), rho)
        kernel = sum(
            (matrix.double() @ matrix.double().T / self.damping[name] for name, matrix in self._rows.items()),
            start=torch.zeros((), dtype=torch.float64),
        )
        kernel = kernel + supervised * torch.eye(len(kernel), dtype=torch.float64, device=kernel.device)
        self._root = cholesky(kernel, "the rows' kernel")

    def means(self) -> dict[str, float]:
        """Each layer's mean eigenvalue."""
        return {
            name: float(matrix.double().square().sum()) / (self._supervised * matrix.shape[1])
            for name, matrix in self._rows.items()
        }

    def respond_all(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """R g for a gradient through all layers: (.., d_out, d_in) by name -> the same shapes."""
        along = sum(
            (self._along(name, gradients[name]) for name in self._rows),
            start=torch.zeros((), dtype=torch.float64),
        )
        weights = torch.cholesky_solve(along[..., None], self._root.expand(*along.shape[:-1], -1, -1))[..., 0]
        return {name: self._answer(name, gradients[name], weights) for name in self._rows}

    def respond(self, name: str, G: Tensor) -> Tensor:
        """The part in one layer of the response to a gradient in that layer alone: R's diagonal block.

        Summed over layers this is not R g: `respond_all` is.
        """
        along = self._along(name, G)
        weights = torch.cholesky_solve(along[..., None], self._root.expand(*along.shape[:-1], -1, -1))[..., 0]
        return self._answer(name, G, weights)

    def with_damping(self, rho: float) -> Woodbury:
        """The same rows at another damping."""
        return type(self)(self.layers, self._rows, self._supervised, rho)

    def _along(self, name: str, G: Tensor) -> Tensor:
        """G_l D_l^-1 g: (.., N), float64."""
        rows = self._rows[name]
        return (G.to(rows).flatten(-2) @ rows.T).double() / self.damping[name]

    def _answer(self, name: str, G: Tensor, weights: Tensor) -> Tensor:
        rows = self._rows[name]
        seen = (weights.to(rows) @ rows).view(*G.shape)
        return (G.to(rows) - seen) / self.damping[name]


def fit_woodbury(
    collector: Collector, batches: Sequence[Batch], *, rho: float = 1e-3, label_seed: int | None = None
) -> Woodbury:
    """Measure it on the mixture's rows: one forward and backward.

    Args:
        collector: the model and its layers.
        batches: rows with repetitions as weights.
        rho: damping relative to each layer's mean eigenvalue.
        label_seed: of labels sampled from the model; None: the data's own labels (the empirical Fisher).

    Raises:
        InputError: the rows' gradients would take more than `MOST` bytes.
        IdealmixError: something is not finite, or there is no supervised token.
    """
    layers = collector.layers
    numbers = sum(len(batch.row_ids) for batch in batches) * sum(each.d_out * each.d_in for each in layers)
    if 4 * numbers > MOST:
        raise InputError(
            f"curvature woodbury keeps every row's gradient, here {4 * numbers / 2**30:.1f} GiB",
            where="influence.curvature",
            mend="use ekfac, train LoRA adapters of a smaller rank, or lower influence.sample_fraction",
        )
    gradients = _RowGradients()
    losses, mine = [], []
    for each in collector.sweep(batches, gradients, label_seed=label_seed, detail="row gradients"):
        losses.append(each)
        mine.append((each.weights, gradients.take()))
    every = collector.processes.whole(mine)
    device, kind = gradients.place
    rows: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for weights, found in every:
        for layer in layers:  # an expert without tokens has no gradient
            part = found.get(layer.name)
            part = torch.zeros(len(weights), layer.d_out * layer.d_in) if part is None else part
            rows[layer.name].append(part.to(device, kind) * weights.sqrt().to(device, kind)[:, None])
    _, supervised = counts(losses, collector.processes)
    return Woodbury(layers, {name: torch.cat(parts) for name, parts in rows.items()}, supervised, rho)


class _RowGradients:
    """A visitor that keeps each row's gradient, one batch at a time."""

    def __init__(self) -> None:
        self._current: dict[str, Tensor] = {}
        self.place = torch.device("cpu"), torch.float32

    def __call__(self, signal: Signal) -> None:
        kind = wide(signal.s.dtype)
        self.place = signal.s.device, kind
        gradient = (signal.s.to(kind).mT @ signal.a.to(kind)).flatten(1).cpu()
        name = signal.layer.name
        self._current[name] = self._current[name] + gradient if name in self._current else gradient

    def take(self) -> dict[str, Tensor]:
        """The finished batch's (B, d_out * d_in) by layer; the next batch begins anew."""
        found, self._current = self._current, {}
        return found
