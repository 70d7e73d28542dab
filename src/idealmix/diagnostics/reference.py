"""What a part of the reference rows would have said.

Flows in: a measured stage, with every reference row's products. Flows out: the influence matrix of any part of the rows,
and parts: random ones of a size, and halves by a property of the rows. Pure numpy.

gbar_q is a mean over reference rows, and R rests on the mixture alone, so alpha of a part is exact without another pass:
gbar_part' R gbar_i = sum over the part's rows of <g_m, R gbar_i> / their supervised tokens. The reference side's error is
the part's own; the training side's is that of all rows (the part's would need every pair of rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_rows import Measured, NamedRows
from idealmix.moments import Array, Moments, Rows

Part = Mapping[str, NDArray[np.int64]]
"""Places of rows by reference set."""

LEAST = 2
"""Rows of a part: one alone has no error."""


def of_part(found: Measured, part: Part) -> InfluenceMatrix:
    """The influence matrix from some of every reference set's rows."""
    names = found.matrix.domains
    training = [
        half[name].rows if name in half else None for half in (found.drawn, found.unused) for name in names
    ]
    chosen = [_rows(each.rows, part[name]) for name, each in found.references.items()]
    moments = Moments.of(training, chosen)
    mean = np.array([rows.weights @ rows.products / (rows.weights @ rows.supervised) for rows in chosen])
    mean[:, [rows is None for rows in training]] = 0.0
    return replace(found.matrix, moments=replace(moments, mean=mean), layers={}, warnings=())


def random_parts(found: Measured, fraction: float, count: int, seed: int) -> Iterator[Part]:
    """Random parts of one size, at least `LEAST` rows of every set."""
    rng = np.random.default_rng([seed, round(1e6 * fraction)])
    for _ in range(count):
        yield {
            name: np.sort(rng.permutation(len(each))[: part_size(len(each), fraction)])
            for name, each in found.references.items()
        }


def part_size(rows: int, fraction: float) -> int:
    """Rows of a part."""
    return min(rows, max(LEAST, round(fraction * rows)))


def halves(found: Measured, by: Callable[[NamedRows], Array]) -> tuple[Part, Part]:
    """The lower and the upper half of every reference set by a property of its rows."""
    order = {name: np.argsort(by(each), kind="stable") for name, each in found.references.items()}
    lower = {name: np.sort(places[: len(places) // 2]) for name, places in order.items()}
    return lower, {name: np.sort(places[len(places) // 2 :]) for name, places in order.items()}


def _rows(rows: Rows, places: NDArray[np.int64]) -> Rows:
    return Rows(rows.products[places], rows.supervised[places], rows.weights[places], rows.fraction)
