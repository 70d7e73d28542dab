"""Figures by domain as arrays in one order.

Flows in: mappings from names. Flows out: float arrays (D,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from idealmix.errors import InputError
from idealmix.volumes import Array


def per_domain(values: Mapping[str, float], names: Sequence[str]) -> Array:
    """(D,), in the order of `names`."""
    return np.array([values[name] for name in names], dtype=float)


def weights(per_row: Mapping[str, float], names: Sequence[str]) -> Array:
    """(D,), the volume of a row of each domain.

    Raises:
        InputError: rows of a domain have no volume in this unit.
    """
    for name in names:
        if not (per_row[name] > 0 and math.isfinite(per_row[name])):
            raise InputError(
                f"a row of {name} has {per_row[name]!r} of the budget's unit on average, which cannot be budgeted",
                where="allocation.budget.unit",
                mend="count rows instead, or give the domain rows with supervised tokens",
            )
    return per_domain(per_row, names)
