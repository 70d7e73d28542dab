"""A loss's slope by domain: which kind of rows it acts on, and whether it stands out of its error.

Flows in: slopes from the rows that growth would draw and from drawn rows, with errors. Flows out: the slope that each domain would move
along, and predictions. A slope is dL/dbeta, nats per doubling of the domain; negative: more of it lowers the
loss. Pure numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from idealmix.certainty import p_value
from idealmix.volumes import Array

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Slopes:
    """A loss's slope by domain, measured on the rows that a change would act on.

    Arrays are (D,) in the order of `domains`. `growth` is from the rows that doubling would draw, NaN where the pool is
    exhausted; `drawn` is from the mixture's rows (shrinking, and growth by repetition), NaN where the domain is empty.
    `se` are population standard errors, `dof` their degrees of freedom (inf: normal). `whole` is the slope when all
    domains grow alike and nothing gives way, nats per doubling of the mixture; NaN: not known.
    """

    domains: Sequence[str]
    growth: Array
    growth_se: Array
    growth_dof: Array
    drawn: Array
    drawn_se: Array
    drawn_dof: Array
    whole: float = field(default=math.nan, kw_only=True)

    def sorted(self, names: Sequence[str]) -> Slopes:
        """The same slopes in the order of `names`."""
        at = [list(self.domains).index(n) for n in names]
        fields = ("growth", "growth_se", "growth_dof", "drawn", "drawn_se", "drawn_dof")
        moved = (np.asarray(getattr(self, f), dtype=float)[at] for f in fields)
        return Slopes(names, *moved, whole=self.whole)

    def predict(self, beta: Array) -> tuple[float, float]:
        """First-order change of the loss under relative changes `beta`, and its standard error (domains as independent)."""
        grows = (beta > 0) & np.isfinite(self.growth)
        parts = np.nan_to_num(np.where(grows, self.growth, self.drawn)) * beta
        errors = np.nan_to_num(np.where(grows, self.growth_se, self.drawn_se)) * beta
        return float(parts.sum()), float(np.sqrt((errors**2).sum()))

    def harms(self, beta: Array) -> Mask:
        """Which domains' own change would raise the loss."""
        grows = (beta > 0) & np.isfinite(self.growth)
        return np.nan_to_num(np.where(grows, self.growth, self.drawn)) * beta > 0


@dataclass(frozen=True)
class Limit:
    """A no-regression limit: what `reference` may still lose, nats per token, and its own slopes."""

    reference: str
    slopes: Slopes
    allowance: float


def chosen(slopes: Slopes, n: Array) -> tuple[Array, Array, Array, list[str]]:
    """The slope that each domain's move would act on, its error, and what there is to say.

    A negative growth slope promises a gain from growing, a positive drawn slope one from shrinking. Where only one
    promises a gain, it is taken; where neither does, the two kinds of rows disagree and the domain stays. Where both
    do, the one that stands out of its error more clearly is taken: the smaller p-value, which at equal degrees of
    freedom is the larger ``|slope| / se`` (growth where they are equal). Else a noisy promise of one would be chosen,
    gated, and hide a clear one of the other. A gate of two-sided t tests at level a covers this choice: a false move
    needs growth far below zero or drawn far above it, each of chance a / 2 at most.
    """
    slope, se, dof = (np.full(len(n), np.nan) for _ in range(3))
    notes = []
    for i in range(len(n)):
        grow, drawn = slopes.growth[i], slopes.drawn[i]
        growth = (grow, slopes.growth_se[i], slopes.growth_dof[i])
        drawn_rows = (drawn, slopes.drawn_se[i], slopes.drawn_dof[i])
        if n[i] == 0:
            note = "stays: it has no rows, so its influence cannot be measured"
        elif grow < 0 and drawn > 0:
            if _doubt(*drawn_rows) < _doubt(*growth):
                slope[i], se[i], dof[i] = drawn_rows
                note = "less of it lowers the loss (so might more of it, less clearly)"
            else:
                slope[i], se[i], dof[i] = growth
                note = "more of it lowers the loss (so might less of it, less clearly)"
        elif grow < 0:
            slope[i], se[i], dof[i] = growth
            note = "more of it lowers the loss"
        elif drawn > 0 or (np.isnan(grow) and drawn <= 0):
            slope[i], se[i], dof[i] = drawn_rows
            note = "less of it lowers the loss" if drawn > 0 else "repeating it lowers the loss"
        elif np.isnan(grow) or np.isnan(drawn):
            note = "stays: its influence was not measured"
        else:
            note = "stays: its rows disagree (neither more unused rows nor fewer drawn ones lower the loss)"
        notes.append(note)
    return slope, se, dof, notes


def _doubt(value: float, se: float, dof: float) -> tuple[float, float]:
    """Smaller for what stands out more: the p-value, and where that is too small for a float, minus |t|."""
    return p_value(value, se, dof), -abs(value) / se if se > 0 else -math.inf
