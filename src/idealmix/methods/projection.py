"""From a method's shares to whole rows within the bounds, at the budget.

Flows in: shares, the counts of joint SFT, pools' sizes. Flows out: an `Allocation`, which says for every domain what was
changed. Pure arithmetic, the same for every method, so that mixtures differ by their shares alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from idealmix import config
from idealmix.allocation import Allocation, Move
from idealmix.methods.protocol import Array
from idealmix.volumes import fill, row_bounds, whole_rows


def project(
    shares: Array,
    domains: tuple[str, ...],
    sizes: Mapping[str, int],
    per_row: Mapping[str, float],
    settings: config.Allocation,
    amount: float,
) -> dict[str, int]:
    """Row counts whose volumes are as near to `shares` of `amount` as floor, cap, repetitions and whole rows allow.

    What a bound takes from a domain goes to the others in proportion to their shares.

    Args:
        shares: (D,), in the order of `domains`.
        sizes, per_row: rows of each pool, mean volume of a row in the budget's unit.
        amount: the total, in that unit.

    Raises:
        InputError: the pools cannot make up the amount (by how much), or the bounds cannot hold together.
    """
    order = sorted(
        range(len(domains)), key=lambda i: domains[i]
    )  # as `start_counts`: the same shares, the same rows
    names = [domains[i] for i in order]
    size, weight = (np.array([float(of[name]) for name in names]) for of in (sizes, per_row))
    lower, upper = row_bounds(names, size, weight, settings, amount)
    wanted = shares[order]
    volumes = fill(wanted, lower * weight, upper * weight, amount)
    missing = amount - volumes.sum()
    if missing > weight.max():  # the named domains are used up: the rest comes from all others alike
        rest = np.where(wanted > 0, 0.0, 1.0)
        volumes = volumes + fill(rest, lower * 0, upper * weight - volumes, missing)
    upper = np.where(volumes > 0, upper, 0.0)  # what rounding leaves over goes to no domain that is left out
    found = dict(zip(names, whole_rows(volumes / weight, weight, amount, lower, upper)))
    return {name: int(found[name]) for name in domains}


def as_allocation(
    name: str,
    joint: Mapping[str, int],
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
    per_row: Mapping[str, float],
    unit: str,
) -> Allocation:
    """The step from joint to a method's counts, in the form of a round's allocation."""
    moves = {
        domain: Move(
            before=joint[domain],
            after=count,
            beta=count / joint[domain] - 1 if joint[domain] else 0.0,
            slope=None,
            slope_se=None,
            gated=False,
            repeats=count / sizes[domain],
            note=f"as {name} has it",
        )
        for domain, count in counts.items()
    }
    changed = [
        f"{domain} {move.beta:+.1%}".replace("-", "−")
        for domain, move in moves.items()
        if move.after != move.before
    ]
    return Allocation(
        rule=name,
        m=0.0,
        unit=unit,
        amount_before=sum(joint[domain] * per_row[domain] for domain in joint),
        amount_after=sum(count * per_row[domain] for domain, count in counts.items()),
        predicted=0.0,
        moves=moves,
        reason=f"{name}: {', '.join(changed) or 'the mixture of joint'}.",
    )
