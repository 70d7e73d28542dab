"""The passes over the rows behind an influence matrix, for all layers at once or for some after the others.

Flows in: collectors (one for each group of layers), how to fit a curvature, samples of rows. Flows out: every row's products
with the other side's responses. Layers add up, so groups do; only the damping of one layer asks for the others'
curvature. A group repeats all passes for its layers: time for memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from idealmix.curvature import (
    Collector,
    Coupled,
    Curvature,
    Layer,
    Metric,
    RowDots,
    Shelf,
    Shelves,
    SumGradient,
    row_dots,
    sum_gradient,
)
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.kfac import Kfac
from idealmix.curvature.memory import DoesNotFitError, ran_out, release
from idealmix.errors import Doubt, IdealmixError, InputError
from idealmix.influence_rows import NamedRows
from idealmix.influence_sample import Sample
from idealmix.influence_unrolled import Segment, unrolled_products
from idealmix.moments import Array, Rows

T = TypeVar("T")
Fit = Callable[[Collector, "float | None", "Mapping[str, Metric] | None"], "Curvature | Coupled"]
"""A collector, tau and the optimiser's metrics -> the curvature of the collector's layers."""


@dataclass(frozen=True)
class Products:
    """What passes 2 to 4 give by one response: rows of the training sets (None: no rows) and of the references."""

    training: list[NamedRows | None]
    references: list[NamedRows]
    by_layer: dict[str, Array]


def unrolled(
    collectors: Sequence[Collector],
    segments: Sequence[Segment],
    fit: Fit,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    shelves: Shelves,
) -> Products:
    """The passes over the segments; a segment's curvature is EK-FAC's or K-FAC's in its eigenbasis."""

    def fitted(collector: Collector, segment: Segment) -> Ekfac:
        found = fit(collector, segment.tau, segment.metrics)
        if not isinstance(found, Ekfac):
            raise TypeError(f"{found.kind} has no eigenbasis")
        return found

    return _together(
        [
            Products(
                *unrolled_products(
                    collector, segments, partial(fitted, collector), training, held_out, shelves, _rows
                )
            )
            for collector in collectors
        ]
    )


def products(
    collectors: Sequence[Collector],
    fit: Callable[[Collector], Curvature | Coupled],
    dampings: Sequence[float],
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    shelves: Shelves,
) -> tuple[list[dict[str, float]], list[Products]]:
    """By damping (the fitted one where none is asked for): each layer's absolute damping, and the products.

    Raises:
        InputError: several dampings of a curvature that has none.
        IdealmixError: something is not finite, or does not fit in memory.
    """
    fitted = [fit(collector) for collector in collectors]
    if len(fitted) > 1:  # the floor of the damping is a share of the median layer's curvature
        layered = [each for each in fitted if isinstance(each, Ekfac | Kfac)]
        means = {name: mean for each in layered for name, mean in each.means().items()}
        fitted = [each.among(means) if isinstance(each, Ekfac | Kfac) else each for each in fitted]
    responses = [_damped(each, dampings) for each in fitted]
    found = [
        _of_group(collector, each, training, held_out, shelves)
        for collector, each in zip(collectors, responses)
    ]
    absolute = [
        {name: rho for each in by_group for name, rho in each.damping.items()} for by_group in zip(*responses)
    ]
    return absolute, [_together(by_group) for by_group in zip(*found)]


def in_groups(
    layers: Sequence[Layer], attempt: Callable[[list[list[Layer]]], T], *, splits: bool, alone: bool
) -> T:
    """What `attempt` makes of all layers in one group; where memory does not suffice, in two, four, ..

    Args:
        layers: all that are measured.
        attempt: gets the groups, and may be called again with smaller ones.
        splits: False: memory that runs out is an error.
        alone: no other process measures too. Else only what all processes raise is tried again: the others would go on with
            the groups as they were, and sums of different layers would meet.
    """
    groups = [list(layers)]
    while True:
        try:
            return attempt(groups)
        except (RuntimeError, MemoryError, IdealmixError) as error:
            known = ran_out(error) if alone else isinstance(error, DoesNotFitError)
            if not known or not splits or max(map(len, groups)) == 1:
                raise
            groups = [half for group in groups for half in _halves(group)]
            warnings.warn(
                f"memory did not suffice ({_first_line(error)}): the layers are measured in {len(groups)} groups, one after the "
                "other, which takes as many times the passes; fewer influence.layers avoid it",
                Doubt,
                stacklevel=2,
            )
        release()  # here the error and all that it held are gone


def _halves(group: Sequence[Layer]) -> list[list[Layer]]:
    middle = (len(group) + 1) // 2
    return [list(half) for half in (group[:middle], group[middle:]) if half]


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _together(groups: Sequence[Products]) -> Products:
    """The products of all layers: those of the groups, added row by row."""
    first, *others = groups
    for other in others:
        first = Products(
            [
                None if a is None or b is None else _added(a, b)
                for a, b in zip(first.training, other.training)
            ],
            [_added(a, b) for a, b in zip(first.references, other.references)],
            first.by_layer | other.by_layer,
        )
    return first


def _added(one: NamedRows, other: NamedRows) -> NamedRows:
    """The same rows, which another group may have measured in another order: a batch that was cut changes it."""
    place = {row_id: number for number, row_id in enumerate(other.ids)}
    found = other.rows.products[[place[row_id] for row_id in one.ids]]
    return replace(one, rows=one.rows._replace(products=one.rows.products + found))


def _damped(curvature: Curvature | Coupled, dampings: Sequence[float]) -> list[Curvature | Coupled]:
    """The same curvature at every damping; as it is where none is asked for."""
    if not dampings:
        return [curvature]
    if not isinstance(curvature, Ekfac | Kfac) or getattr(curvature, "tau", None) is not None:
        raise InputError(
            "several dampings can be told for ekfac and kfac with the converged response",
            where="influence.curvature",
            mend="use curvature: ekfac and response: converged",
        )
    return [curvature.with_damping(rho) for rho in dampings]


def _of_group(
    collector: Collector,
    curvatures: Sequence[Curvature | Coupled],
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    shelves: Shelves,
) -> list[Products]:
    """Passes 2 to 4 for some layers and all responses at once: the rows' products of gbar_q' R gbar_i, and their parts by layer."""
    K = len(curvatures)
    responses = shelves.shelf()  # of each set by every curvature, then of the next set
    for sample in held_out:
        _respond(curvatures, sum_gradient(collector, sample.batches), responses)

    answers = shelves.shelf()
    has_rows = [bool(sample.rows) for sample in training]
    rows: list[list[NamedRows | None]] = [[None] * len(training) for _ in curvatures]
    by_layer = [
        {layer.name: np.zeros((len(held_out), len(training))) for layer in collector.layers}
        for _ in curvatures
    ]
    for number, sample in enumerate(training):
        if not sample.rows:
            continue
        dots = row_dots(collector, sample.batches, responses, total=True)
        if dots.gradient is None:
            raise RuntimeError("row_dots gives the gradient that total=True asks for")
        for k in range(K):
            for name, part in by_layer[k].items():
                part[:, number] = dots.by_layer[name].numpy()[k::K] / dots.gradient.supervised
            rows[k][number] = _rows(dots, dots.dots.numpy()[:, k::K], sample)
        _respond(curvatures, dots.gradient, answers)
        del dots
    responses.clear()

    on_references: list[list[NamedRows]] = [[] for _ in curvatures]
    for sample in held_out:
        dots = row_dots(collector, sample.batches, answers)
        for k in range(K):
            products = np.zeros((sample.rows, len(training)))
            products[:, has_rows] = dots.dots.numpy()[:, k::K]
            on_references[k].append(_rows(dots, products, sample))
    return [Products(*each) for each in zip(rows, on_references, by_layer)]


def _respond(curvatures: Sequence[Curvature | Coupled], gradient: SumGradient, onto: Shelf) -> None:
    """Each R times a set's mean gradient, behind the others; the gradient is emptied on the way."""
    layered = [curvature for curvature in curvatures if not isinstance(curvature, Coupled)]
    for curvature in curvatures:
        if isinstance(curvature, Coupled):
            for name, matrix in curvature.respond_all(gradient.mean()).items():
                onto.append(name, matrix.to(gradient.matrices[name]))
    for layer in layered[0].layers if layered else []:
        mean = gradient.matrices.pop(layer.name) / gradient.supervised
        for curvature in layered:
            onto.append(layer.name, curvature.respond(layer.name, mean))


def _rows(found: RowDots, products: Array, sample: Sample) -> NamedRows:
    named = (row_id.removeprefix(f"{sample.prefix}/") for row_id in found.rows.row_ids)
    rows = Rows(products, found.rows.supervised.double().numpy(), found.rows.weights.numpy(), sample.fraction)
    return NamedRows(tuple(named), found.rows.sums.double().numpy(), rows)
