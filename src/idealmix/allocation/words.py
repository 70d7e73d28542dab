"""An allocation in words.

Flows in: what was wanted and what came of it. Flows out: a note for each domain, and one sentence for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from idealmix.allocation.outcome import Move
from idealmix.slopes import Mask
from idealmix.volumes import Array


def note_of(
    note: str, before: float, after: float, size: float, beta: float, change: float, volume: float
) -> str:
    """What happens to one domain and why: before, after, size in rows; beta: what the rule wanted; change, volume: in the budget's unit."""
    if after == before:
        if beta and abs(change) <= 1e-9 * max(volume, 1.0):
            return f"{note}, but a bound, a limit or the lack of a partner keeps it"
        return f"{note}, by less than a row" if beta else note
    if beta == 0 or note.startswith("stays: "):
        note = note.removeprefix("stays: ") + "; trades with the movers"
    elif beta * change < 0:
        note += ", but less than of the others, and the budget is held"
    elif abs(change) < 0.99 * abs(beta) * volume:
        note += f"; the rule's {beta:+.0%} is cut to what the others trade, or to a bound or limit"
    if after > before and after > size:
        note += f"; {after - max(before, size):,.0f} of the new rows are repetitions"
    if after == 0:
        note += "; empty now, so it cannot be measured and will not come back"
    return note


def reason_of(
    moves: Mapping[str, Move],
    unknown: Sequence[str],
    movers: Mask,
    beta: Array,
    change: Array,
    hold: bool,
    said: str,
) -> str:
    """The whole step in one sentence; `unknown`: domains that stay since their errors are not known, `said`: of limits."""
    changed = {name: move for name, move in moves.items() if move.after != move.before}
    parts = [f"{name} {move.beta:+.1%}".replace("-", "−") for name, move in changed.items()]
    tail = f"; {said}" if said else ""
    if unknown and not movers.any():
        measured = sum(move.slope is not None for move in moves.values()) > len(unknown)
        others = ", and no other domain's influence stands out of its error" if measured else ""
        return f"Nothing moves: the influence of {', '.join(unknown)} has no known error{others}{tail}."
    if not movers.any():
        return f"Equilibrium: no domain's influence stands out of its error{tail}."
    if not changed:
        why = (
            "the step is smaller than one row"
            if np.any(change)
            else "the movers' bounds, limits or the lack of a partner hold them"
        )
        return f"Equilibrium: {int(movers.sum())} of {len(moves)} domains would move, but {why}{tail}."
    text = f"{', '.join(parts)}"
    kept = [name for name in moves if name not in changed]
    if kept:
        text += f"; {', '.join(kept)} keep{'s its count' if len(kept) == 1 else ' their counts'}"
    partners = int(np.sum(~movers & (change != 0)))
    if hold and partners:
        one = int(movers.sum()) == 1
        text += f"; {'the one mover trades' if one else 'all movers pull the same way, so they trade'} with the rest"
    return f"{text}{tail}."
