"""From rows to a curvature: the one call that other rooms need.

Flows in: a collector, the mixture's batches, and which approximation. Flows out: an object with ``layers``,
``damping`` (absolute, by layer) and ``respond(layer name, G) -> R G``, or ``respond_all`` where layers are coupled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from idealmix.curvature.basis import Metric, eigenbases, shared
from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Collector
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.exact import exact_layers
from idealmix.curvature.factors import Factors, fit_eigenvalues, fit_factors
from idealmix.curvature.kfac import Kfac
from idealmix.curvature.layers import Layer
from idealmix.curvature.shelf import Shared, Shelf, Shelves
from idealmix.curvature.woodbury import fit_woodbury


class Curvature(Protocol):
    """What a gradient does to trained parameters, layer by layer."""

    kind: str
    layers: list[Layer]

    @property
    def damping(self) -> dict[str, float]:
        """Absolute, by layer name; empty where there is none."""
        ...

    def respond(self, name: str, G: Tensor) -> Tensor:
        """R G: (.., d_out, d_in) -> the same shape."""
        ...


@runtime_checkable
class Coupled(Protocol):
    """A curvature whose layers act on each other."""

    kind: str
    layers: list[Layer]

    @property
    def damping(self) -> dict[str, float]:
        """Absolute, by layer name; empty where there is none."""
        ...

    def respond_all(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """R times the gradient of all layers, each (d_out, d_in), by layer name."""
        ...


class Identity:
    """R = I: the gradient dot product, the baseline that curvature has to beat. Its units are not nats."""

    kind = "identity"

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.damping: dict[str, float] = {}

    def respond(self, name: str, G: Tensor) -> Tensor:
        """G itself."""
        return G


def fit_curvature(
    kind: Literal["ekfac", "kfac", "exact", "woodbury", "identity"],
    collector: Collector,
    batches: Sequence[Batch],
    *,
    for_factors: Sequence[Batch] | None = None,
    rho: float = 1e-3,
    label_seed: int | None = 0,
    tau: float | None = None,
    metrics: Mapping[str, Metric] | None = None,
    shelves: Shelves | None = None,
) -> Curvature | Coupled:
    """Measure a curvature on the mixture's rows.

    Args:
        kind: ``ekfac`` (two passes), ``kfac`` (one), ``identity`` (none), ``exact`` (two, then some hundreds for each
            gradient), ``woodbury`` (one; its layers are few, as adapters').
        collector: the model and its layers.
        batches: rows with repetitions as weights.
        for_factors: the rows of A and S where fewer will do: EK-FAC takes only directions from them, and measures how
            much curvature lies in each on `batches`. None: `batches`. Ignored by ``kfac``, whose sizes come from A and S.
        rho: damping relative to each layer's mean eigenvalue.
        label_seed: of labels sampled from the model; None: the data's own labels (empirical Fisher).
        tau: sum of the step sizes: the finite response; None: the converged one.
        metrics: by layer name, from `adam_metric`; None: plain gradient descent.
        shelves: where factors, bases and eigenvalues lie; None: memory.

    Raises:
        IdealmixError: something is not finite, does not decompose, or no gradient reaches a layer.
    """
    if kind == "identity":
        return Identity(collector.layers)
    if kind == "woodbury":
        return fit_woodbury(collector, batches, rho=rho, label_seed=label_seed)
    fewer = for_factors if kind == "ekfac" and for_factors is not None else batches
    factors = fit_factors(collector, fewer, label_seed)
    shelves = shelves or Shelves()
    if kind == "kfac" and tau is None:
        return Kfac(collector.layers, *_put_away(factors, shelves), rho, metrics, shelves)
    bases, spectra = eigenbases(factors.A, factors.S, metrics, shelves, collector.processes)
    eigenvalues = shelves.shelf()
    if kind == "kfac":
        for name, pair in spectra.items():
            eigenvalues.put(name, torch.outer(*pair))
    else:
        found = fit_eigenvalues(collector, batches, label_seed, bases)
        for name in list(found):
            eigenvalues.put(name, found.pop(name))
    ekfac = Ekfac(collector.layers, bases, eigenvalues, rho, tau)
    return ekfac if kind != "exact" else exact_layers(collector, batches, ekfac)


def _put_away(factors: Factors, shelves: Shelves) -> tuple[Shared, Shelf]:
    """A and S on shelves, an A that several layers share once; `factors` is emptied."""
    a, s = shelves.shelf(), shelves.shelf()
    leaders = shared(factors.A)
    for name, leader in leaders.items():
        matrix = factors.A.pop(name)
        if leader == name:
            a.put(name, matrix)
        s.put(name, factors.S.pop(name))
    return Shared(a, leaders), s
