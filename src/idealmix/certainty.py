"""Whether a figure stands out of its standard error. Pure numpy and scipy.

Flows in: values, standard errors, degrees of freedom. Flows out: p-values, which of many to believe, and the degrees
of freedom of summed errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

LEVEL = 0.05
"""Of a test, or of a family of tests (`holm`): the chance that anything is believed when all is noise."""


def p_value(value: float, se: float, dof: float) -> float:
    """Two-sided, by Student's t; 1 where there is no value or no standard error."""
    return 2 * p_below(-abs(value), se, dof)


def p_below(value: float, se: float, dof: float) -> float:
    """One-sided, of "the true value is below zero": small where it is, near 1 where it is above.

    Without any error the sign alone tells; 0.5 where there is no value or no standard error.
    """
    if not (math.isfinite(value) and math.isfinite(se)):
        return 0.5
    if se == 0:
        return 0.5 if value == 0 else 0.0 if value < 0 else 1.0
    return float(stdtr(finite_dof(dof), value / se))


def p_text(p: float) -> str:
    """A p-value as it is printed: two decimals, or one significant digit below 0.01."""
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def finite_dof(dof: float) -> float:
    """Degrees of freedom that scipy's t and JSON take: a large number for the normal's infinity."""
    return dof if math.isfinite(dof) else 1e9


def satterthwaite(variances: Iterable[float], dofs: Iterable[float]) -> float:
    """Degrees of freedom of a sum of independent estimates (Satterthwaite 1946).

    Their sum where nothing varies; 1 where a variance is not known (infinite).
    """
    parts = [(float(v), float(dof)) for v, dof in zip(variances, dofs)]
    total = sum(v for v, _ in parts)
    if not math.isfinite(total):
        return 1.0
    spread = sum(v**2 / dof for v, dof in parts if v > 0)
    return total**2 / spread if spread > 0 else sum(dof for _, dof in parts)


def holm(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Holm's step-down (1979) at `LEVEL`: which hypotheses of "no effect" fall. Any shape; one family."""
    flat = np.asarray(p, dtype=float).ravel()
    order = np.argsort(flat, kind="stable")
    passed = flat[order] <= LEVEL / (flat.size - np.arange(flat.size))
    out = np.zeros(flat.size, dtype=bool)
    out[order] = np.logical_and.accumulate(passed)
    return out.reshape(np.shape(p))
