"""Whether a figure stands out of its standard error. Pure numpy and scipy.

Flows in: values, standard errors, degrees of freedom. Flows out: p-values, and which of many to believe.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

LEVEL = 0.05
"""Family-wise: the chance that anything is believed when all is noise."""


def p_value(value: float, se: float, dof: float) -> float:
    """Two-sided, by Student's t; 1 where there is no value or no standard error."""
    if not (math.isfinite(value) and math.isfinite(se)):
        return 1.0
    if se == 0:
        return 0.0 if value else 1.0
    return 2 * float(stdtr(dof if math.isfinite(dof) else 1e9, -abs(value) / se))


def holm(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Holm's step-down (1979) at `LEVEL`: which hypotheses of "no effect" fall. Any shape; one family."""
    flat = np.asarray(p, dtype=float).ravel()
    order = np.argsort(flat, kind="stable")
    passed = flat[order] <= LEVEL / (flat.size - np.arange(flat.size))
    out = np.zeros(flat.size, dtype=bool)
    out[order] = np.logical_and.accumulate(passed)
    return out.reshape(np.shape(p))
