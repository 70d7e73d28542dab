"""One step from influence to counts.

Flows in: row counts, pool sizes, volume per row, the objective's slope by domain with its error, settings.
Flows out: an ``Allocation``: new row counts and, for every domain and in words, why. Pure numpy and scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from idealmix import config
from idealmix.allocation.curves import Curves
from idealmix.allocation.inputs import per_domain, weights
from idealmix.allocation.outcome import Allocation, Move
from idealmix.allocation.rules import WITHOUT_CURVES, wanted
from idealmix.allocation.words import note_of, reason_of
from idealmix.certainty import holm, p_text, p_value
from idealmix.slopes import Limit, Mask, Slopes, chosen
from idealmix.volumes import Array, fill, nearest, row_bounds, whole_rows


def allocate(
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
    per_row: Mapping[str, float],
    slopes: Slopes,
    settings: config.Allocation,
    *,
    m: float | None = None,
    limits: Sequence[Limit] = (),
    calibration: float = 1.0,
    curves: Curves | None = None,
) -> Allocation:
    """One step from the current counts along the objective's slopes.

    1. A domain's slope is that of the rows that growth would draw if it is negative (it would grow), the drawn rows' if
       that is positive (it would shrink), of both the clearer one (`chosen`); of neither, it stays: the two kinds of
       rows disagree. Without unused rows: the drawn.
    2. The gate: a domain moves only where |slope| exceeds t se at the family-wise 5% level (Holm over all domains;
       two-sided t, which also covers that the kind of rows is chosen by its sign). `curves` weighs every domain by its
       errors itself (`curves.attribution`), so there one domain that passes opens the gate for all.
    3. The rule (`rules`) says how far each mover wants to go, by a relative change of m at most.
    4. A held budget: growers take what shrinkers give. The side that wants more is scaled down, so that signs
       follow slopes and no domain changes by more than m; all other counts stay as they are. If only one side
       moves, it trades with the rest of the domains, in proportion to their volumes. Free volume: as it is.
    5. Bounds (floor, cap, ``max_repeats``) cut what a domain gives or takes. No-regression limits: a rise that
       stands out of its error and exceeds the allowance is avoided either by leaving the harmful moves out or by
       shortening the step, whichever is predicted to gain more.
    6. Whole rows that hold the budget (`whole_rows`).

    Args:
        counts, sizes, per_row: rows now, rows in the pool, mean volume of a row in the budget's unit, by domain.
        m: largest relative change; None: the settings'.
        limits: no-regression limits with what remains of each.
        calibration: measured over predicted change of earlier steps (``LoopState.calibration``); scales the
            predictions that the limits are held against, nothing else.
        curves: fitted at these counts, for the rule ``curves``; without them ``equalise`` takes its place.

    Raises:
        InputError: bounds that cannot hold together (by how much).
    """
    names, m = sorted(counts), settings.m if m is None else m
    n, size, weight = per_domain(counts, names), per_domain(sizes, names), weights(per_row, names)
    slopes = slopes.sorted(names)
    limits = [Limit(lim.reference, lim.slopes.sorted(names), lim.allowance) for lim in limits]
    hold, volume = settings.budget.hold, n * weight
    total = float(volume.sum())

    slope, se, dof, notes = chosen(slopes, n)
    rule = settings.rule
    if rule == "curves" and curves is None:
        rule, m = "equalise", min(m, WITHOUT_CURVES)
    p = np.array([p_value(*entry) for entry in zip(slope, se, dof)])
    told = holm(p)
    gated, unknown = _gated(rule, told, slope, se) if settings.gate else np.zeros((2, len(names)), dtype=bool)
    notes = [
        _doubted(note, q, held=g) if settings.gate and not t and not np.isnan(s) else note
        for note, q, g, t, s in zip(notes, p, gated, told, slope)
    ]
    notes = ["stays: its influence's error is not known" if u else note for u, note in zip(unknown, notes)]
    movers = ~np.isnan(slope) & ~gated & (slope != 0)
    share = volume / max(float(volume.sum()), 1e-300)
    beside = None if curves is None else curves.beside(volume)
    beta = wanted(rule, slope, share, movers, m, slopes.whole, beside)
    turned = beta * np.nan_to_num(slope) > 0
    notes = [f"{note}, but much less than of the others" if t else note for t, note in zip(turned, notes)]

    if not hold:
        total = float(np.clip((1 + beta) * volume, 0, settings.max_repeats * size * weight).sum())
    lower, upper = row_bounds(names, size, weight, settings, total, held=hold)
    lower, upper = np.minimum(lower, n), np.maximum(upper, n)  # never worse than where it stands
    room = ((upper - n) * weight, (n - lower) * weight)

    def step(beta: Array, frozen: Mask) -> Array:
        beta = np.where(frozen, 0.0, beta)
        return _exchange(beta, volume, room, frozen) if hold else _free(beta, volume, room)

    change, said = _within_limits(beta, step, volume, slopes, limits, calibration, names)
    moved = np.abs(change) > 1e-9 * max(total, 1.0)
    rows = n.astype(np.int64)
    if hold and moved.any():
        left = total - float(volume[~moved].sum())
        low, high = np.where(change > 0, n, lower), np.where(change > 0, upper, n)  # rounding flips no sign
        real_rows = n + change / weight
        rows[moved] = whole_rows(real_rows[moved], weight[moved], left, low[moved], high[moved])
    elif moved.any():
        rows[moved] = np.clip(nearest(n + change / weight), lower, upper)[moved]

    real = np.where(n > 0, rows / np.maximum(n, 1) - 1, 0.0)
    moves = {
        name: Move(
            before=int(n[i]),
            after=int(rows[i]),
            beta=float(real[i]),
            slope=_number(slope[i]),
            slope_se=_number(se[i]),
            gated=bool(gated[i]),
            repeats=float(rows[i] / size[i]) if size[i] else 0.0,
            note=note_of(notes[i], n[i], rows[i], size[i], beta[i], change[i], volume[i]),
        )
        for i, name in enumerate(names)
    }
    moves = {name: moves[name] for name in counts}
    return Allocation(
        rule=rule,
        m=float(m),
        unit=settings.budget.unit,
        amount_before=float(volume.sum()),
        amount_after=float(rows @ weight),
        predicted=slopes.predict(real)[0],
        moves=moves,
        reason=reason_of(
            moves, [name for name, u in zip(names, unknown) if u], movers, beta, change, hold, said
        ),
        curves=curves if rule == "curves" else None,
    )


def _gated(rule: str, told: Mask, slope: Array, se: Array) -> tuple[Mask, Mask]:
    """Who the gate holds, and for whom of them no error is known; `told`: whose slope stands out of its error."""
    has, unknown = ~np.isnan(slope), ~np.isnan(slope) & ~np.isfinite(se)
    return (unknown, unknown) if rule == "curves" and told.any() else (has & ~told, unknown)


def _doubted(note: str, p: float, *, held: bool) -> str:
    """The note of a domain whose slope does not stand out of its error."""
    doubt = f"within its error (p = {p_text(p)})"
    return f"stays: {doubt}" if held else f"{note}, {doubt}"


# --- the steps -----------------------------------------------------------------------------------------------


def _exchange(beta: Array, volume: Array, room: tuple[Array, Array], frozen: Mask) -> Array:
    """Changes of volume that sum to zero: growers take what shrinkers give, within their rooms."""
    grow, shrink = np.maximum(beta, 0) * volume, np.maximum(-beta, 0) * volume
    if bool(grow.any()) != bool(shrink.any()):  # one side only
        rest = np.where((beta == 0) & ~frozen, volume, 0.0) * np.abs(beta).max()
        if not rest.any():  # all pull the same way: the strong against the weak
            beta = np.where(beta != 0, beta - (beta @ volume) / volume[beta != 0].sum(), 0.0)
            grow, shrink = np.maximum(beta, 0) * volume, np.maximum(-beta, 0) * volume
        elif grow.any():
            shrink = rest
        else:
            grow = rest
    take, give = np.minimum(grow, room[0]), np.minimum(shrink, room[1])
    traded = min(take.sum(), give.sum())
    zero = np.zeros_like(volume)
    return fill(grow, zero, take, traded) - fill(shrink, zero, give, traded)


def _free(beta: Array, volume: Array, room: tuple[Array, Array]) -> Array:
    """The paper's: every domain on its own."""
    return np.clip(beta * volume, -room[1], room[0])


def _within_limits(
    beta: Array,
    step: Callable[[Array, Mask], Array],
    volume: Array,
    slopes: Slopes,
    limits: Sequence[Limit],
    calibration: float,
    names: Sequence[str],
) -> tuple[Array, str]:
    """The step's changes of volume, kept within the no-regression limits, and what that took."""
    none = np.zeros(len(beta), dtype=bool)

    def relative(change: Array) -> Array:
        return np.divide(change, volume, out=np.zeros_like(change), where=volume > 0)

    def broken(change: Array) -> list[tuple[Limit, float]]:
        found = []
        for limit in limits:
            rise, error = limit.slopes.predict(relative(change))
            # a rise within its error does not bind: the decision measures it
            if rise > 1.645 * error and rise * calibration > max(limit.allowance, 0.0) * (1 + 1e-9):
                found.append((limit, rise * calibration))
        return found

    change = step(beta, none)
    over = broken(change)
    if not over:
        return change, ""
    factor = min(max(limit.allowance, 0.0) / rise for limit, rise in over)
    shortened, trimmed, frozen, still = change * factor, change, none, over
    while still:  # each turn leaves out at least one more domain
        for limit, _ in still:
            frozen = frozen | limit.slopes.harms(relative(trimmed))
        trimmed = step(beta, frozen)
        still = broken(trimmed)
    whom = " and ".join(limit.reference for limit, _ in over)
    limits_said = f"the full step would raise {whom} beyond what it may still lose"
    if slopes.predict(relative(trimmed))[0] < slopes.predict(relative(shortened))[0]:
        left_out = ", ".join(n for n, f, c in zip(names, frozen, change) if f and c != 0)
        return trimmed, f"{limits_said}: {left_out} left out of it"
    return shortened, f"{limits_said}: shortened to {factor:.0%} of its length"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
