"""Volumes within bounds, and whole rows from them: the arithmetic that every allocation ends in.

Flows in: wanted volumes in the budget's unit, bounds, a total. Flows out: volumes, then integer row counts, that
keep the total. Pure numpy; arrays are (D,), one entry a domain, in an order that the caller fixes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from idealmix import config
from idealmix.errors import InputError

Array = NDArray[np.float64]

# Slack for shares that were typed in decimal (three times 0.1 is not 0.3).
_EPS = 1e-9


def fill(weights: Array, lower: Array, upper: Array, total: float) -> Array:
    """Water-filling: ``clip(f * weights, lower, upper)`` with the one f >= 0 at which it sums to `total`.

    Args:
        weights: proportions before bounds, >= 0; an entry of weight 0 stays at its lower bound.
        lower, upper: finite, lower <= upper.
        total: what it should sum to; outside of what the bounds allow, the nearest possible is returned.
    """
    has = weights > 0
    ends = np.concatenate([[0.0], lower[has] / weights[has], upper[has] / weights[has]])
    levels = np.unique(ends[np.isfinite(ends)])
    sums = np.array([np.clip(f * weights, lower, upper).sum() for f in levels])
    if total <= sums[0] or len(levels) == 1:
        f = levels[0]
    elif total >= sums[-1]:
        f = levels[-1]
    else:
        k = int(np.searchsorted(sums, total))  # the sum is linear in f between two levels
        f = levels[k - 1] + (levels[k] - levels[k - 1]) * (total - sums[k - 1]) / (sums[k] - sums[k - 1])
    return np.clip(f * weights, lower, upper)


def nearest(rows: Array) -> Array:
    """Whole numbers; halves go up, also those that rounding errors put a trifle below: every machine rounds alike."""
    return np.floor(rows + (0.5 + _EPS))


def whole_rows(rows: Array, per_row: Array, total: float, lower: Array, upper: Array) -> NDArray[np.int64]:
    """Integer rows near `rows` whose volumes sum to `total` as nearly as whole rows allow.

    Largest remainder assumes that all rows weigh the same. Here the domain with the heaviest rows is rounded
    first, and what rounding it left over or overdrew is handed to the next lighter one, so that what remains at
    the end is at most half a row of the lightest domain (of a heavier one where the lighter ones have no room);
    with equal rows it is exactly zero, and each count is its value rounded up or down.

    Args:
        rows: real row counts within the bounds, whose volumes sum to about `total`.
        per_row: volume of one row, > 0.
        lower, upper: whole numbers.
    """
    out, left = lower.astype(np.int64), total - float(rows @ per_row)
    for i in np.argsort(-per_row, kind="stable"):
        wanted = rows[i] + left / per_row[i]
        out[i] = np.clip(nearest(wanted), lower[i], upper[i])
        left = (wanted - out[i]) * per_row[i]
    return out


def row_bounds(
    names: Sequence[str],
    sizes: Array,
    per_row: Array,
    settings: config.Allocation,
    total: float,
    *,
    held: bool = True,
) -> tuple[Array, Array]:
    """Smallest and largest row count of each domain at a total volume, from floor, cap and ``max_repeats``.

    Args:
        names, sizes, per_row: of the domains; rows in the pool, volume of a row.
        total: what shares are of. `held`: the counts have to make it up, so it must be within the pools.

    Returns:
        lower, upper: whole numbers. Floors are rounded up and caps down, unless whole rows then could not make
        up the total (floors that sum to exactly 1); then the other way.

    Raises:
        InputError: the bounds cannot hold together; by how much, and how to mend it.
    """
    floor, cap = _shares(settings.floor, names, 0.0), _shares(settings.cap, names, 1.0)
    if floor.sum() > 1 + _EPS:
        raise InputError(
            f"the floors sum to {floor.sum():.4g}, {floor.sum() - 1:.4g} more than the whole mixture",
            where="allocation.floor",
            mend=f"lower them: with {len(names)} domains a common floor is at most {1 / len(names):.4g}",
        )
    if cap.sum() < 1 - _EPS:
        raise InputError(
            f"the caps sum to {cap.sum():.4g}: {1 - cap.sum():.4g} of the mixture would belong to no domain",
            where="allocation.cap",
            mend=f"raise them: with {len(names)} domains a common cap is at least {1 / len(names):.4g}",
        )
    repeated = settings.max_repeats * sizes
    for name, low, high, most, weight in zip(names, floor, cap, repeated, per_row):
        if low > high + _EPS:
            raise InputError(
                f"{name}'s floor {low:.4g} is above its cap {high:.4g}",
                where="allocation.floor",
                mend="lower the floor or raise the cap",
            )
        if held and low * total > most * weight + weight:
            raise InputError(
                f"{name}'s floor asks for {low * total / weight:,.0f} rows; its pool gives {most:,.0f} when each "
                f"row is drawn at most {settings.max_repeats} times",
                where="allocation.floor",
                mend="lower the floor, give the domain more rows, or raise allocation.max_repeats",
            )
    most_rows = np.minimum(np.where(cap < 1, cap * total / per_row, np.inf), repeated)
    if held and most_rows @ per_row < total - per_row.max() / 2 - _EPS * total:
        unit = settings.budget.unit.replace("_", " ")
        raise InputError(
            f"the budget is {total:,.0f} {unit}; within the caps and at most {settings.max_repeats} repetitions "
            f"the pools give {most_rows @ per_row:,.0f}, which is {total - most_rows @ per_row:,.0f} short",
            where="allocation.budget.size",
            mend="lower budget.size, raise allocation.max_repeats or the caps, or add rows",
        )
    exact = floor * total / per_row
    lower, upper = np.ceil(exact - _EPS * (1 + exact)), np.floor(most_rows + _EPS * (1 + most_rows))
    if lower @ per_row > total:
        lower = np.floor(exact)
    if upper @ per_row < total:
        upper = np.minimum(np.ceil(most_rows), repeated)
    return np.minimum(lower, upper), upper


def _shares(bound: float | Mapping[str, float] | None, names: Sequence[str], default: float) -> Array:
    """A bound as one share a domain; domains that it does not name get `default`."""
    if bound is None:
        bound = {}
    values = [bound.get(n, default) if isinstance(bound, Mapping) else bound for n in names]
    return np.array(values, dtype=float)
