"""Damping of each layer, relative to its own curvature.

Flows in: each layer's mean eigenvalue and rho. Flows out: the absolute damping, in the eigenvalues' units.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from idealmix.errors import IdealmixError

FLOOR = 0.01
"""A layer's scale is at least this share of the median layer's: a nearly dead layer (a fresh LoRA adapter) would
otherwise get nearly no damping, and the largest influence of all."""


def absolute_damping(
    means: Mapping[str, float], rho: float, among: Mapping[str, float] | None = None
) -> dict[str, float]:
    """``rho * max(mean eigenvalue, FLOOR * median of the positive means)`` for each layer.

    Args:
        means: of the layers that are asked about.
        rho: relative damping.
        among: of all layers that are measured, where `means` are some of them; None: `means`.

    Raises:
        IdealmixError: the curvature is zero everywhere.
    """
    alive = [mean for mean in (means if among is None else among).values() if mean > 0]
    if not alive:
        raise IdealmixError(
            "the curvature is zero in every layer: no gradient reaches them",
            where="influence.layers",
            mend="check that the model is trained, and that the rows have supervised tokens",
        )
    floor = FLOOR * statistics.median(alive)
    return {name: rho * max(mean, floor) for name, mean in means.items()}
