"""What the rounds so far tell a step: the objective's slopes, limits on single reference sets, learning curves.

Flows in: a run's story and the trained round that a step starts from. Flows out: what `idealmix.allocation` takes. Nothing is
measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from idealmix.allocation.curves import Curves, Tried, fit, seed_noise
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds.goal import Goal, Losses
from idealmix.slopes import Limit, Slopes

if TYPE_CHECKING:
    from idealmix.rounds.loop import Round, Story


def objective_slopes(goal: Goal, at: Round, *, drawn_only: bool) -> Slopes:
    """The objective's slope by domain at a trained round, on the rows that growth would draw and on drawn rows.

    Args:
        drawn_only: the paper's: gradients of the rows that were trained on, for growth too.
    """
    if at.influence is None:
        raise RuntimeError("influence is measured before it is used")
    slopes = slopes_of(at.influence, goal.gradient(at.evaluated.deciding))
    if not drawn_only:
        return slopes
    none = np.full(len(slopes.domains), np.nan)
    return replace(slopes, growth=none, growth_se=none, growth_dof=none)


def slopes_of(matrix: InfluenceMatrix, weights: Mapping[str, float]) -> Slopes:
    """A weighted sum of the matrix's rows, with errors that know the references' covariance."""
    growth, drawn = (matrix.weighted(weights, rows=rows) for rows in ("growth", "drawn"))
    by_domain = replace(matrix, centred=False).weighted(weights, rows="drawn").value
    return Slopes(matrix.domains, *map(np.asarray, (*growth, *drawn)), whole=float(np.nansum(by_domain)))


def curves(story: Story, at: Round, per_row: Mapping[str, float]) -> tuple[Curves | None, str]:
    """Learning curves by capability from all trainings so far, with influence as measured at a round; or None and why not."""
    if at.influence is None:
        raise RuntimeError("influence is measured before it is used")

    def means(losses: Losses) -> dict[str, float]:
        return {q: loss.mean for q, loss in losses.items()}

    start = [means(losses) for losses in (story.goal.start, *story.goal.replicates)]

    def tried(one: Round) -> Tried:
        volumes = {name: n * per_row[name] for name, n in one.mixed.mixture.counts.items()}
        if one is not story.rounds[0]:
            return Tried(volumes, means(one.evaluated.deciding))
        return Tried(volumes, {q: float(np.mean([run[q] for run in start])) for q in start[0]}, len(start))

    weights = story.goal.gradient(at.evaluated.deciding)
    seen, base, noise = [tried(one) for one in story.rounds], means(story.base.deciding), seed_noise(start)
    return fit(at.influence, weights, base, seen, tried(at), noise)


def limits(story: Story, at: Round) -> list[Limit]:
    """What each constrained reference set may still lose, and its own slopes."""
    out = []
    for name, constraint in story.config.constraints.items():
        risen = story.goal.rise(name, at.evaluated.deciding).value
        if at.influence is not None:
            out.append(Limit(name, slopes_of(at.influence, {name: 1.0}), constraint.max_increase - risen))
    return out
