"""The mixture of round 0.

Flows in: pool sizes, volume per row, settings. Flows out: row counts within the bounds that hold the budget.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from idealmix import config
from idealmix.allocation.inputs import per_domain, weights
from idealmix.errors import InputError
from idealmix.volumes import fill, row_bounds, whole_rows


def start_counts(
    sizes: Mapping[str, int], per_row: Mapping[str, float], settings: config.Allocation
) -> dict[str, int]:
    """Row counts of round 0.

    ``natural``: in proportion to the pools' rows; ``uniform``: equal volumes in the budget's unit; a mapping: as
    given. The total is ``budget.size`` in the unit, or the volume of all rows of all pools; floor, cap and
    ``max_repeats`` hold, what they take or leave goes to the other domains.

    Args:
        sizes: rows of each pool.
        per_row: mean volume of a row of each pool in the budget's unit (1 for ``rows``).

    Raises:
        InputError: bounds that cannot hold together, a budget beyond the pools or below a row, given counts beyond either.
    """
    names = sorted(sizes)  # the order of the configuration changes nothing
    size, weight = per_domain(sizes, names), weights(per_row, names)
    asked = settings.budget.size
    unit = settings.budget.unit.replace("_", " ")
    if isinstance(settings.start, dict):
        rows = per_domain(settings.start, names)
        for name, n, most in zip(names, rows, size * settings.max_repeats):
            if n > most:
                raise InputError(
                    f"{name} starts with {n:,.0f} rows; its pool gives {most:,.0f} when each row is drawn at most "
                    f"{settings.max_repeats} times",
                    where="allocation.start",
                    mend="lower the count, add rows, or raise allocation.max_repeats",
                )
        total = float(rows @ weight)
        if asked is not None and abs(total - asked) > 0.01 * asked:
            raise InputError(
                f"the row counts amount to {total:,.0f} {unit}, budget.size is {asked:,}",
                where="allocation.start",
                mend="leave budget.size out (the counts then fix the budget), or change one of the two",
            )
        lower, upper = row_bounds(names, size, weight, settings, total)
        for name, n, low, high in zip(names, rows, lower, upper):
            if not low - 1 <= n <= high + 1:
                raise InputError(
                    f"{name} starts with {n:,.0f} rows; floor and cap allow {low:,.0f} to {high:,.0f}",
                    where="allocation.start",
                    mend="change the count, allocation.floor or allocation.cap",
                )
        return {name: int(settings.start[name]) for name in sizes}
    total = float(asked if asked is not None else size @ weight)
    lower, upper = row_bounds(names, size, weight, settings, total)
    shares = size * weight if settings.start == "natural" else np.ones(len(names))
    volumes = fill(shares, lower * weight, upper * weight, total)
    found = dict(zip(names, whole_rows(volumes / weight, weight, total, lower, upper)))
    if not any(found.values()):
        raise InputError(
            f"the budget is {total:,.0f} {unit}, too little for one row; a row has {size @ weight / size.sum():,.1f} on average",
            where="allocation.budget.size",
            mend="raise it, or leave it out: then all rows of all pools are the budget",
        )
    return {name: int(found[name]) for name in sizes}
