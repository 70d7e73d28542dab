"""One figure from the losses on several reference sets, with its error: what the rounds minimise and compare.

Flows in: a `SetLoss` for each reference set, weights, the objective's name; for `relative` the losses of round 0, for `progress` the
base model's as well.
Flows out: `Estimate`s of the value and of paired differences, and the gradient that turns influence into slopes.
Pure numpy. The set losses are L_q, weights w_q are scaled to sum to 1, L0_q is the loss in round 0, B_q the base model's:

    mean_loss   O = sum_q w_q L_q                           nats per supervised token
    relative    O = sum_q w_q L_q / L0_q                    1 in round 0
    progress    O = sum_q w_q (L_q - B_q) / (B_q - L0_q)    0 in the base model, -1 in round 0
    worst       O = max of L_q over w_q > 0                 nats per supervised token; weights only say which sets count

`progress` asks for the same part of round 0's gain everywhere. Where round 0 gained less than `LEAST` of the base model's loss
(nothing at all, or it lost), that is the unit: no set weighs without bound.

Errors are by the delta method: a row n of set q moves O by about dO/dL_q times its influence on L_q (`SetLoss`), L0_q
and B_q included, and the rows are the independent draws. `worst` has a kink where two sets tie: the error is that of the set
that is the worst in the sample, which is optimistic near a tie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from idealmix.errors import IdealmixError, InputError
from idealmix.evaluation.set_loss import Array, Estimate, SetLoss, freedom, same_rows, satterthwaite, variance

Losses = Mapping[str, SetLoss]
LEAST = 0.05
BY_ROUND_0 = ("relative", "progress")
"""The objectives that need round 0's losses."""


def objective_value(
    losses: Losses,
    weights: Mapping[str, float],
    objective: str,
    start: Losses | None = None,
    base: Losses | None = None,
) -> Estimate:
    """The objective, its standard error and Satterthwaite's degrees of freedom.

    Args:
        losses: by reference set.
        weights: by reference set, >= 0, not all zero; need not sum to 1.
        objective: `mean_loss`, `relative`, `progress` or `worst`.
        start: round 0's losses on the same rows; only for `relative` and `progress`.
        base: the base model's losses on the same rows; only for `progress`.
    """
    value, parts = _linearised(losses, weights, objective, start, base)
    return _estimate(value, parts, losses)


def objective_difference(
    new: Losses,
    old: Losses,
    weights: Mapping[str, float],
    objective: str,
    start: Losses | None = None,
    base: Losses | None = None,
) -> Estimate:
    """The objective of `new` minus that of `old`, paired by row; negative: `new` is better.

    Arguments as for `objective_value`.

    Raises:
        IdealmixError: the two were not evaluated on the same rows.
    """
    value_new, rows_new = _linearised(new, weights, objective, start, base)
    value_old, rows_old = _linearised(old, weights, objective, start, base)
    parts = {}
    for name in {**rows_new, **rows_old}:  # with `worst` the two may look at different sets
        same_rows(new[name], old[name])
        parts[name] = rows_new.get(name, 0.0) - rows_old.get(name, np.zeros(len(old[name])))
    return _estimate(value_new - value_old, parts, new)


def objective_gradient(
    means: Mapping[str, float],
    weights: Mapping[str, float],
    objective: str,
    start: Mapping[str, float] | None = None,
    base: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """dO/dL_q for the sets of positive weight; a domain's slope is sum_q dO/dL_q alpha[q, i].

    `worst`: 1 for the worst set, 0 for the others (the first of a tie).

    Raises:
        InputError: an unknown objective; weights that are negative, not finite, all zero, or for other sets.
    """
    shares = _shares(weights, means)
    if objective == "mean_loss":
        return shares
    if objective in BY_ROUND_0:
        units = objective_units(objective, shares, start, base)
        return {name: share / units[name] for name, share in shares.items()}
    if objective == "worst":
        worst = max(shares, key=lambda name: means[name])
        return {name: float(name == worst) for name in shares}
    raise InputError(
        f"there is no objective {objective!r}",
        where="objective",
        mend="use mean_loss, relative, progress or worst",
    )


def objective_units(
    objective: str,
    names: Iterable[str],
    start: Mapping[str, float] | None,
    base: Mapping[str, float] | None,
) -> dict[str, float]:
    """Nats per supervised token that `relative` or `progress` counts as one, by reference set."""
    names = list(names)
    if start is None or not start.keys() >= set(names):
        raise IdealmixError(f"the objective {objective} needs round 0's loss on every reference set")
    if objective == "relative":
        return {name: start[name] for name in names}
    if base is None or not base.keys() >= set(names):
        raise IdealmixError(f"the objective {objective} needs the base model's loss on every reference set")
    return {name: max(base[name] - start[name], LEAST * base[name]) for name in names}


def _linearised(
    losses: Losses,
    weights: Mapping[str, float],
    objective: str,
    start: Losses | None,
    base: Losses | None,
) -> tuple[float, dict[str, Array]]:
    """The objective, and what each row of each set that matters adds to its error."""
    means = _means(losses)
    before, untrained = _means(start or {}), _means(base or {})
    slopes = objective_gradient(means, weights, objective, before, untrained)
    # Linear in the losses, at this point at least: `progress` counts them from the base model's, the others from 0.
    origin = untrained if objective == "progress" else dict.fromkeys(means, 0.0)
    above = {name: means[name] - origin[name] for name in slopes}
    value = sum(slope * above[name] for name, slope in slopes.items())
    parts = {name: slope * losses[name].influences for name, slope in slopes.items() if slope}
    if objective in BY_ROUND_0 and start:
        for name, slope in slopes.items():
            same_rows(losses[name], start[name])
            unit, rows = start[name].mean, start[name].influences
            if objective == "progress" and base:
                same_rows(losses[name], base[name])
                gain, least = base[name].mean - start[name].mean, LEAST * base[name].mean
                own = base[name].influences
                unit, rows = (gain, own - rows) if gain > least else (least, LEAST * own)
                parts[name] = parts[name] - slope * own
            parts[name] = parts[name] - slope * above[name] / unit * rows
    return value, parts


def _means(losses: Losses) -> dict[str, float]:
    return {name: loss.mean for name, loss in losses.items()}


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


def _estimate(value: float, parts: Mapping[str, Array], losses: Losses) -> Estimate:
    """Sets are independent of each other."""
    variances = [variance(rows, losses[name].counts) for name, rows in parts.items()]
    dof = satterthwaite(variances, [freedom(losses[name].counts) for name in parts])
    return Estimate(value, math.sqrt(sum(variances)), dof)
