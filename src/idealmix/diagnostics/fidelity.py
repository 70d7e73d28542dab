"""How near the approximate curvatures come to the exact one, on one trained model.

Flows in: a model, batches of the mixture, of what a change would act on and of the references, the domains' weights. Flows
out: for each curvature and damping the cosine with exact influence, by reference set and by layer, in two errors apart:

    the approximation   against conjugate gradients on the true Gauss-Newton matrix of the same layers
    the parameters      exact influence of the layers against exact influence of all parameters

Everything else is shared: rows, gradients, the absolute damping of each layer, v_i, and c = 1. The cosine is between rows
of alpha from which the row's mean over domains is taken: allocation asks which domain is better, not how good all are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from idealmix.curvature import Batch, Collector, fit_curvature, select_layers, sum_gradient
from idealmix.curvature.dense import DenseExact, Written
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.exact import (
    Exact,
    Solved,
    conjugate_gradients,
    constant,
    exact_layers,
    parameter_names,
)
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.curvature.kfac import Kfac
from idealmix.errors import IdealmixError

Array = NDArray[np.float64]
Parts = dict[str, Array]
"""(references, domains) of alpha by layer."""
Watch = Callable[[str], None]

AGREED = 1e-6
"""How far apart two ways to solve a system may be, relative to the solution."""

UNINFORMATIVE = 0.8
"""Where the plain dot of gradients has this cosine or more, the case does not tell curvatures apart."""


@dataclass(frozen=True)
class Sets:
    """The rows.

    Attributes:
        drawn: the mixture's batches by domain, repetitions as weights; the curvature rests on them.
        acting: batches of the rows that gbar_i comes from, by domain; `drawn` itself serves.
        references: batches by reference set.
        step_weights: v_i by domain.
    """

    drawn: Mapping[str, Sequence[Batch]]
    acting: Mapping[str, Sequence[Batch]]
    references: Mapping[str, Sequence[Batch]]
    step_weights: Mapping[str, float]

    @property
    def mixture(self) -> list[Batch]:
        """All drawn rows, numbered anew."""
        every = [batch for batches in self.drawn.values() for batch in batches]
        return [replace(batch, index=number) for number, batch in enumerate(every)]


@dataclass(frozen=True)
class Nearness:
    """One curvature at one damping against the exact one.

    Attributes:
        curvature: its name.
        damping: in multiples of the default.
        cosines: of row-centred rows of alpha, by reference set; NaN where a row is zero.
        sizes: norm of the row over the exact row's norm.
        by_layer: median over references of the cosine of each layer's own part.
    """

    curvature: str
    damping: float
    cosines: dict[str, float]
    sizes: dict[str, float]
    by_layer: dict[str, float]

    @property
    def median(self) -> float:
        """Over references."""
        return float(np.median(list(self.cosines.values())))


@dataclass(frozen=True)
class Fidelity:
    """The comparison.

    Attributes:
        approximation: every curvature at every damping, against exact influence of the same layers.
        parameters: the layers' exact influence against that of all parameters, at the default damping; None: not asked.
        solved: residual and iterations of every system.
        informative: the dot of gradients stays below `UNINFORMATIVE` at the default damping.
    """

    approximation: list[Nearness]
    parameters: Nearness | None
    solved: list[Solved]
    informative: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-safe, with medians; null for what is not defined, such as the cosine of a layer without influence."""
        every = [
            _finite(asdict(one) | {"median": one.median})
            for one in (*self.approximation, self.parameters)
            if one
        ]
        return {
            "informative": self.informative,
            "approximation": every[: len(self.approximation)],
            "parameters": every[len(self.approximation)] if self.parameters else None,
            "residual": max((one.residual for one in self.solved), default=0.0),
            "iterations": [one.iterations for one in self.solved],
        }


def measure_fidelity(
    model: nn.Module,
    sets: Sets,
    *,
    layers: str | Sequence[str] = "linear",
    rho: float = 1e-3,
    dampings: Sequence[float] = (1.0,),
    fractions: Sequence[float] = (0.5, 0.25, 0.125),
    label_seed: int = 0,
    label_draws: int = 4,
    all_parameters: bool = False,
    tolerance: float = 1e-3,
    written: bool = False,
    watch: Watch = lambda text: None,
) -> Fidelity:
    """Compare EK-FAC, K-FAC, their samples, the empirical Fisher and the identity with the exact response.

    Args:
        model: trained, on its device.
        layers: which, as ``influence.layers``.
        rho: the default damping, relative to each layer's mean eigenvalue by EK-FAC on all rows with `label_seed`; its
            absolute values are used for every curvature.
        dampings: multiples of rho.
        fractions: EK-FAC from these shares of the mixture's batches' rows.
        label_seed: of EK-FAC's sampled labels.
        label_draws: EK-FAC is also fitted with this many labels for each position, which shows what sampling costs.
        all_parameters: measure what the parameters outside the layers change.
        tolerance: of the solutions' relative residuals.
        written: write the matrix out instead of solving by conjugate gradients; for models of a few thousand parameters, in
            float64. One system is solved both ways, and has to agree to `AGREED`. The matrix's blocks by layer ("block") are then
            one more curvature: what its cosine lacks is lost by leaving out the coupling between layers.
        watch: told what begins.

    Raises:
        InputError: the layers match nothing, or one's weight is not a parameter of its own.
        IdealmixError: conjugate gradients do not converge, or do not agree with the written matrix.
    """
    collector, mixture = Collector(model, select_layers(model, layers)), sets.mixture
    watch("gradients")
    references = [sum_gradient(collector, batches).mean() for batches in sets.references.values()]
    drawn = [sum_gradient(collector, batches).mean() for batches in sets.drawn.values()]
    acting = [sum_gradient(collector, batches).mean() for batches in sets.acting.values()]
    weights = [sets.step_weights[name] for name in sets.drawn]
    names = [layer.name for layer in collector.layers]
    changes = {n: _changes([g[n] for g in acting], [g[n] for g in drawn], weights) for n in names}

    def parts(respond: Callable[[str, Tensor], Tensor]) -> Parts:
        return {n: _products([respond(n, g[n]) for g in references], changes[n]) for n in names}

    watch("curvatures")
    fitted = _curvatures(collector, mixture, rho, label_seed, label_draws, fractions)
    guide = fitted["ekfac"]
    approximation: list[Nearness] = []
    solved: list[Solved] = []
    default: Parts = {}
    full: Written | None = None
    if written:
        names_of = [n for layer in collector.layers for n in parameter_names(layer)]
        matrix = GaussNewton(model, mixture, None if all_parameters else names_of)
        watch(f"the matrix of {matrix.size:,} parameters")
        full = Written(matrix)
        watch("one system by conjugate gradients")
        checked = guide.with_damping(rho * max(dampings))  # the best conditioned
        solved.append(_checked(exact_layers(collector, mixture, checked, AGREED / 100), full, references[0]))
    for multiple in dampings:
        damped_guide = guide.with_damping(rho * multiple)
        exact: Exact | DenseExact = (
            DenseExact(full, collector.layers, damped_guide.damping)
            if full
            else exact_layers(collector, mixture, damped_guide, tolerance)
        )
        true = _exact_parts(exact, references, changes, watch, f"exact, damping x {multiple:g}")
        solved += exact.solved
        default = true if multiple == 1 else default
        approximation.append(_nearness("identity", multiple, parts(lambda name, G: G), true, sets))
        if isinstance(exact, DenseExact):
            approximation.append(_nearness("block", multiple, parts(exact.respond), true, sets))
        for kind, curvature in fitted.items():
            damped = curvature.with_damping(rho * multiple)
            damped.damping = dict(exact.damping)  # the same absolute values for all
            approximation.append(_nearness(kind, multiple, parts(damped.respond), true, sets))
    parameters = None
    if all_parameters:
        if not default:
            exact = exact_layers(collector, mixture, guide, tolerance)
            default = _exact_parts(exact, references, changes, watch, "exact")
        whole, more = _whole_parts(model, sets, collector, guide, rho, tolerance, full, watch)
        solved += more
        joined = {"all": np.sum(list(default.values()), 0)}
        parameters = _nearness("exact, layers alone", 1.0, joined, {"all": whole}, sets)
    plain = [one.median for one in approximation if one.curvature == "identity"]
    return Fidelity(approximation, parameters, solved, max(plain) < UNINFORMATIVE)


def alpha_cosines(one: Array, other: Array) -> Array:
    """(R,) cosines between row-centred rows of two influence matrices; NaN where one of them is constant."""
    a, b = (matrix - matrix.mean(1, keepdims=True) for matrix in (one, other))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1.0), np.nan)


def _curvatures(
    collector: Collector,
    mixture: Sequence[Batch],
    rho: float,
    seed: int,
    draws: int,
    fractions: Sequence[float],
) -> dict[str, Any]:
    def fit(kind: Any, batches: Sequence[Batch], label_seed: int | None) -> Ekfac | Kfac:
        found = fit_curvature(kind, collector, batches, rho=rho, label_seed=label_seed)
        if isinstance(found, Ekfac | Kfac):
            return found
        raise TypeError(f"{kind} is no approximation")

    repeated = [batch for draw in range(draws) for batch in _relabelled(mixture, draw, draws)]
    return {
        "ekfac": fit("ekfac", mixture, seed),
        f"ekfac, {draws} labels": fit("ekfac", repeated, seed),
        "kfac": fit("kfac", mixture, seed),
        **{
            f"ekfac, {share:g} of rows": fit("ekfac", [_sampled(batch, share) for batch in mixture], seed)
            for share in fractions
        },
        "ekfac, empirical": fit("ekfac", mixture, None),
    }


def _relabelled(mixture: Sequence[Batch], draw: int, draws: int) -> list[Batch]:
    """The same rows under other ids, so that they get labels of their own."""
    return [
        replace(
            batch,
            row_ids=tuple(f"{row}#{draw}" for row in batch.row_ids),
            weights=batch.weights / draws,
            index=batch.index + draw * len(mixture),
        )
        for batch in mixture
    ]


def _sampled(batch: Batch, share: float) -> Batch:
    """Every so manieth row of a batch, at least one, which stand for all of its rows."""
    size = len(batch.row_ids)
    step = size / max(1, round(share * size))
    kept = [int(step * k) for k in range(max(1, round(share * size)))]
    return replace(
        batch,
        input_ids=batch.input_ids[kept],
        attention_mask=batch.attention_mask[kept],
        labels=batch.labels[kept],
        row_ids=tuple(batch.row_ids[k] for k in kept),
        weights=batch.weights[kept] * (size / len(kept)),
    )


def _changes(acting: Sequence[Tensor], drawn: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """v_i (gbar_i - gbar_mix) of every domain."""
    mixed = sum(v * g.double() for v, g in zip(weights, drawn))
    return [v * (g.double() - mixed) for v, g in zip(weights, acting)]


def _products(responses: Sequence[Tensor], changes: Sequence[Tensor]) -> Array:
    """-<R gbar_q, v_i (gbar_i - gbar_mix)>, references by domains."""
    return np.array([[-float((r.double() * c).sum()) for c in changes] for r in responses])


def _checked(exact: Exact, full: Written, gradient: Mapping[str, Tensor]) -> Solved:
    """How conjugate gradients solved a system whose solution the written matrix gives as well."""
    found = exact.respond_all(gradient)
    direct = DenseExact(full, exact.layers, exact.damping).respond_all(gradient)
    off = sum(float((found[n] - direct[n]).square().sum()) for n in direct) ** 0.5
    size = sum(float(x.square().sum()) for x in direct.values()) ** 0.5
    if off > AGREED * size:
        raise IdealmixError(
            f"conjugate gradients are {off / size:.1e} away from the written matrix's solution",
            where="influence.curvature",
            mend="load the model in float64",
        )
    return exact.solved[-1]


def _exact_parts(
    exact: Exact | DenseExact,
    references: Sequence[Mapping[str, Tensor]],
    changes: Mapping[str, list[Tensor]],
    watch: Watch,
    what: str,
) -> Parts:
    answers = []
    for number, gradient in enumerate(references, 1):
        watch(f"{what}, reference {number} of {len(references)}")
        answers.append(exact.respond_all(gradient))
    return {name: _products([answer[name] for answer in answers], of) for name, of in changes.items()}


def _whole_parts(
    model: nn.Module,
    sets: Sets,
    collector: Collector,
    guide: Ekfac,
    rho: float,
    tolerance: float,
    full: Written | None,
    watch: Watch,
) -> tuple[Array, list[Solved]]:
    """Exact alpha of all parameters; those outside the layers are damped by rho times their own mean eigenvalue."""
    watch("gradients of all parameters")
    matrix = GaussNewton(model, sets.mixture)
    diagonal = matrix.diagonal(8)
    means = {name: float(part.mean()) for name, part in matrix.named(diagonal).items()}
    floor = 0.01 * float(np.median([mean for mean in means.values() if mean > 0]))
    damping = {name: rho * max(mean, floor) for name, mean in means.items()}
    by_layer = {layer.name: layer for layer in collector.layers}
    for name, layer in by_layer.items():
        damping |= dict.fromkeys(layer.parameters(layer.matrix(matrix.named(diagonal))), guide.damping[name])
    shift = constant(matrix, damping)

    def precondition(vector: Tensor) -> Tensor:
        named = matrix.named(vector)
        found = matrix.named(vector / (diagonal + shift))
        for name, layer in by_layer.items():
            found |= layer.parameters(guide.respond(name, layer.matrix(named)))
        return matrix.flat(found)

    drawn = [matrix.gradient(batches) for batches in sets.drawn.values()]
    acting = [matrix.gradient(batches) for batches in sets.acting.values()]
    changes = _changes(acting, drawn, [sets.step_weights[name] for name in sets.drawn])
    if full:
        asked = [matrix.named(matrix.gradient(batches)) for batches in sets.references.values()]
        return _products([matrix.flat(x) for x in full.solve(damping, asked)], changes), []
    answers, solved = [], []
    for name, batches in sets.references.items():
        watch(f"exact, all parameters, reference {name}")
        x, how = conjugate_gradients(
            lambda v: matrix.product(v) + shift * v,
            matrix.gradient(batches),
            precondition,
            tolerance=tolerance,
            limit=2000,
        )
        answers.append(x)
        solved.append(how)
    return _products(answers, changes), solved


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _finite(value)
        if isinstance(value, dict)
        else (None if isinstance(value, float) and not np.isfinite(value) else value)
        for key, value in found.items()
    }


def _nearness(kind: str, multiple: float, found: Parts, true: Parts, sets: Sets) -> Nearness:
    names = list(sets.references)
    one, other = np.sum(list(found.values()), 0), np.sum(list(true.values()), 0)
    sizes = np.linalg.norm(one - one.mean(1, keepdims=True), axis=1)
    sizes /= np.linalg.norm(other - other.mean(1, keepdims=True), axis=1)
    return Nearness(
        kind,
        multiple,
        dict(zip(names, alpha_cosines(one, other).tolist())),
        dict(zip(names, sizes.tolist())),
        {layer: float(np.median(alpha_cosines(part, true[layer]))) for layer, part in found.items()},
    )
