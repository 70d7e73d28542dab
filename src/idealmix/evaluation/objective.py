"""One figure from the losses on several reference sets, with its error: what the rounds minimise and compare.

Flows in: a `SetLoss` for each reference set, weights, the objective's name, for `relative` the losses of round 0.
Flows out: `Estimate`s of the value and of paired differences, and the gradient that turns influence into slopes.
Pure numpy. The set losses are L_q, weights w_q are scaled to sum to 1, L0_q is the loss in round 0:

    mean_loss   O = sum_q w_q L_q             nats per supervised token
    relative    O = sum_q w_q L_q / L0_q      1 in round 0
    worst       O = max of L_q over w_q > 0   nats per supervised token; weights only say which sets count

Errors are by the delta method: a row n of set q moves O by about dO/dL_q times its influence on L_q (`SetLoss`), L0_q
included, and the rows are the independent draws. `worst` has a kink where two sets tie: the error is that of the set
that is the worst in the sample, which is optimistic near a tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from idealmix.errors import IdealmixError, InputError
from idealmix.evaluation.set_loss import Array, Estimate, SetLoss, same_rows, satterthwaite, variance

Losses = Mapping[str, SetLoss]


def objective_value(
    losses: Losses, weights: Mapping[str, float], objective: str, base_losses: Losses | None = None
) -> Estimate:
    """The objective, its standard error and Satterthwaite's degrees of freedom.

    Args:
        losses: by reference set.
        weights: by reference set, >= 0, not all zero; need not sum to 1.
        objective: `mean_loss`, `relative` or `worst`.
        base_losses: round 0's losses on the same rows; only for `relative`.
    """
    value, parts = _linearised(losses, weights, objective, base_losses)
    return _estimate(value, parts)


def objective_difference(
    new: Losses,
    old: Losses,
    weights: Mapping[str, float],
    objective: str,
    base_losses: Losses | None = None,
) -> Estimate:
    """The objective of `new` minus that of `old`, paired by row; negative: `new` is better.

    Arguments as for `objective_value`.

    Raises:
        IdealmixError: the two were not evaluated on the same rows.
    """
    value_new, rows_new = _linearised(new, weights, objective, base_losses)
    value_old, rows_old = _linearised(old, weights, objective, base_losses)
    parts = {}
    for name in {**rows_new, **rows_old}:  # with `worst` the two may look at different sets
        same_rows(new[name], old[name])
        parts[name] = rows_new.get(name, 0.0) - rows_old.get(name, np.zeros(len(old[name])))
    return _estimate(value_new - value_old, parts)


def objective_gradient(
    means: Mapping[str, float],
    weights: Mapping[str, float],
    objective: str,
    base_means: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """dO/dL_q for the sets of positive weight; a domain's slope is sum_q dO/dL_q alpha[q, i].

    `worst`: 1 for the worst set, 0 for the others (the first of a tie).

    Raises:
        InputError: an unknown objective; weights that are negative, not finite, all zero, or for other sets.
    """
    shares = _shares(weights, means)
    if objective == "mean_loss":
        return shares
    if objective == "relative":
        if base_means is None or not shares.keys() <= base_means.keys():
            raise IdealmixError("the relative objective needs round 0's loss on every reference set")
        return {name: share / base_means[name] for name, share in shares.items()}
    if objective == "worst":
        worst = max(shares, key=lambda name: means[name])
        return {name: float(name == worst) for name in shares}
    raise InputError(
        f"there is no objective {objective!r}", where="objective", mend="use mean_loss, relative or worst"
    )


def _linearised(
    losses: Losses, weights: Mapping[str, float], objective: str, base_losses: Losses | None
) -> tuple[float, dict[str, Array]]:
    """The objective, and what each row of each set that matters adds to its error."""
    means = {name: loss.mean for name, loss in losses.items()}
    start = None if base_losses is None else {name: loss.mean for name, loss in base_losses.items()}
    slopes = objective_gradient(means, weights, objective, start)
    # All three objectives are homogeneous of degree 1 in the losses: Euler's theorem gives the value.
    value = sum(slope * means[name] for name, slope in slopes.items())
    parts = {name: slope * losses[name].influences for name, slope in slopes.items() if slope}
    if objective == "relative" and base_losses is not None:
        for name, slope in slopes.items():
            base = base_losses[name]
            same_rows(losses[name], base)
            parts[name] = parts[name] - slope * means[name] / base.mean * base.influences
    return value, parts


def _shares(weights: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
    strays = sorted(weights.keys() ^ means.keys())
    if strays:
        raise IdealmixError(f"weights and losses are of different sets: {', '.join(strays)}")
    total = math.fsum(weights.values())
    if not (all(w >= 0 for w in weights.values()) and 0 < total < math.inf):
        raise InputError(
            "the weights must be finite, not negative, and not all zero",
            where="references",
            mend="give at least one reference set a positive weight",
        )
    return {name: weights[name] / total for name in means if weights[name] > 0}


def _estimate(value: float, parts: Mapping[str, Array]) -> Estimate:
    """Sets are independent of each other."""
    variances = [variance(rows) for rows in parts.values()]
    dof = satterthwaite(variances, [max(len(rows) - 1, 1) for rows in parts.values()])
    return Estimate(value, math.sqrt(sum(variances)), dof)
