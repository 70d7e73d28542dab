"""Whether a further round would be worth its training, when a run has ended.

Flows in: a run's story. Flows out: an `Outlook`: what the learning curves of all rounds expect of the next step, beside the smallest change
that could be seen. Nothing is measured here, and nothing is decided by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from idealmix.allocation.rules import wanted
from idealmix.certainty import LEVEL, finite_dof
from idealmix.rounds.evidence import curves

if TYPE_CHECKING:
    from idealmix.rounds.loop import Story


@dataclass(frozen=True)
class Outlook:
    """In the objective's units: `expected` of the next step (negative: better), `visible` the smallest change that a round could show."""

    expected: float
    visible: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def outlook(story: Story, per_row: Mapping[str, float]) -> Outlook | None:
    """The outlook from the best round; None where there are no curves, no comparison was made, or the volume is free.

    The step is the curves' own within `allocation.m`, all domains taking part; bounds and pools are not looked at. Influence is that of the
    best round, or of the last one where it was measured.
    """
    settings = story.config.allocation
    measured = [one for one in story.rounds if one.influence is not None]
    judged = [one.decision for one in story.rounds if one.decision is not None]
    if story.state is None or not measured or not judged or not settings.budget.hold:
        return None
    best = story.rounds[story.state.best]
    found, _ = curves(story, best if best.influence else measured[-1], per_row)
    if found is None:
        return None
    volume = np.array([best.mixed.mixture.counts[name] * per_row[name] for name in found.domains])
    share, gain = volume / volume.sum(), found.gains(volume)
    slope = -share * (gain - gain @ share)
    change = wanted("curves", slope, share, share > 0, settings.m, math.nan, found.beside(volume))
    expected = found.objective((1 + change) * volume) - found.objective(volume)
    visible = float(stdtrit(finite_dof(judged[-1].dof), 1 - LEVEL)) * judged[-1].se
    said = (
        f"By the learning curves of all rounds a further step would change the objective by {expected:+.4f}; changes from {visible:.4f} "
        f"could be seen. "
    ).replace("-", "−")
    if -expected < visible:
        said += "A further round is not worth its training."
    elif story.state.failures <= settings.patience and story.state.round + 1 >= settings.rounds:
        said += "A further round is worth its training: raise allocation.rounds (the same folder goes on)."
    else:
        said += "That is more than the rounds found; they ended with allocation.patience, which a run keeps: raise it in a new one."
    return Outlook(expected, visible, said)
