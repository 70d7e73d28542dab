"""The rules: how far each mover wants to go, before budget, bounds and limits.

Flows in: the movers' slopes, their shares of the budget, m; for ``curves`` the gains at other volumes. Flows out: relative changes of volume, beta (D,), 0 for all
others. No rule asks a domain to grow by more than m, or to shrink by more than m (``scaled``) or m / (1 + m).

A slope is by beta, the log of a volume. What a held budget buys is told by slope / share, the loss's derivative by share: of
two domains with equal slopes the smaller one gains as much for fewer tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from idealmix.slopes import Mask
from idealmix.volumes import Array, fill

Rule = Literal["curves", "scaled", "exponentiated", "equalise"]

RETURNS = 0.7
"""1 / (1 + p) with p = 0.43: how losses fall with a domain's volume (`equalise`)."""

WITHOUT_CURVES = 3.0
"""Largest m where ``equalise`` takes the place of ``curves``: nothing tells it what a far move costs, and with 7 it overshot
(docs/results/step.md)."""
LEAST = 1 / 16
"""Of a gain over the mean in `curves`, so that a turn shrinks no domain to less than a quarter."""
TURNS = 300
"""Of the iteration of `curves`: a dozen where domains serve different capabilities, more where they serve the same one."""
SHORTEST = 1e-6
"""Part of a turn; where that lowers nothing `curves` has arrived."""


def wanted(
    rule: Rule,
    slope: Array,
    share: Array,
    movers: Mask,
    m: float,
    whole: float,
    curves: Callable[[Array], tuple[float, Array]] | None = None,
) -> Array:
    """The changes that a rule asks for, (D,): of the movers, and with `curves` of the rest where all movers pull the same way.

    Args:
        slope: the loss's slope by beta, with the budget held where it is (NaN allowed where nothing moves).
        share: of the budget, now.
        movers: whose slope stands out of its error.
        m: largest relative change.
        whole: the loss's slope when all domains grow alike and nothing gives way (only `equalise` asks).
        curves: the objective, and what one more unit of each domain takes off it, (D,), at relative changes (D,) of all volumes
            (only the rule of that name asks).
    """
    beta = np.zeros(len(slope))
    if not movers.any():
        return beta
    if rule == "curves":
        if curves is None:
            raise ValueError("the rule curves needs curves")
        beta = _along(curves, slope, share, movers, m)
    elif rule == "equalise":
        beta[movers] = _equalise(slope[movers], share[movers], m, whole)
    elif rule == "scaled":
        beta[movers] = _scaled(slope[movers], m)
    else:
        beta[movers] = _exponentiated(slope[movers], share[movers], m)
    return beta


def _scaled(slope: Array, m: float) -> Array:
    """beta_i = - m slope_i / max |slope| (IDEAL, arXiv 2505.12762, section 4.1)."""
    return -m * (slope / np.max(np.abs(slope)))


def _exponentiated(slope: Array, share: Array, m: float) -> Array:
    """Shares times exp(- eta dL/dshare), eta such that the largest factor is 1 + m, up or down.

    The exponentiated gradient of Kivinen and Warmuth (1997), Information and Computation 132.
    """
    by_share = slope / share
    return np.expm1(-np.log1p(m) * (by_share / np.max(np.abs(by_share))))


def _equalise(slope: Array, share: Array, m: float, whole: float) -> Array:
    """Towards equal gains for each unit of the budget: factors c (gain_i / mean gain)^(1 / (1 + p)), within 1 + m up or down.

    Where the losses are sums of powers of single domains' volumes, L = sum_j a_j n_j^-p, it leads to the best mixture in one
    step, from anywhere: gain_i = p a_i n_i^(-p - 1), so n_i gain_i^(1 / (1 + p)) does not depend on n_i and is in
    proportion to the best volumes. The gains' common scale cancels; the slopes may be wrong by any factor. With a held
    budget slope_i = - share_i (gain_i - mean gain), and the mean gain is - `whole`. Where that is not above zero there is no
    scale, and each goes to its bound. c keeps the movers' sum; what the others give may turn a domain of nearly the mean
    gain round.
    """
    grows = slope < 0
    if whole < 0:
        factor = np.clip(1 + slope / share / min(whole, -1e-300), 0.0, 1e300) ** RETURNS
    else:
        factor = np.where(grows, 1 + m, 0.0)
    if grows.all() or not grows.any():  # it will trade with the rest
        return np.clip(factor, 1 / (1 + m), 1 + m) - 1
    return fill(share * factor, share / (1 + m), share * (1 + m), float(share.sum())) / share - 1


def _along(
    curves: Callable[[Array], tuple[float, Array]], slope: Array, share: Array, movers: Mask, m: float
) -> Array:
    """To the mixture of equal gains along the curves, within factors 1 + m up or down: the curves' best within reach.

    `equalise` jumps there by one power law for all; this walks: volumes times (gain / mean gain)^1/2, again and again, which comes to
    rest where the gains of all that are not at a bound are equal. Where domains hurt, the mean is no scale, and the gains'
    spread takes its place; a turn that would not lower the objective is shortened. The curves are convex in the volumes (where no
    loss is back at the base model's), so there is one place to come to. Movers trade with each other; where all pull the same way, with the rest, which moves as one.
    """
    grows = slope[movers] < 0
    rest = ~movers & (share > 0) if grows.all() or not grows.any() else np.zeros(len(share), dtype=bool)
    free = movers | rest
    low, high, total = share[free] / (1 + m), share[free] * (1 + m), float(share[free].sum())
    factor, length = np.ones(len(share)), 1.0
    value, gain = curves(factor - 1)
    for _ in range(TURNS):
        if rest.any():
            gain[rest] = gain[rest] @ share[rest] / share[rest].sum()
        now = (share * factor)[free]
        mean = float(gain[free] @ now) / total
        scale = max(mean, float(np.abs(gain[free] - mean) @ now) / total)
        if not scale > 0:
            break
        pull = np.sqrt(np.maximum(1 + (gain[free] - mean) / scale, LEAST))
        new, length = factor.copy(), min(1.0, 2 * length)
        while True:
            new[free] = fill(now * pull**length, low, high, total) / share[free]
            lower, ahead = curves(new - 1)
            if lower < value:
                break
            length /= 2
            if length < SHORTEST:
                return factor - 1
        factor, value, gain = new, lower, ahead
    return factor - 1
