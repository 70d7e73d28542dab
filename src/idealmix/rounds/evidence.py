"""What the rounds so far tell a step: the objective's slopes, limits on single reference sets, learning curves.

Flows in: a run's story, or the losses of its trainings, and the trained round that a step starts from. Flows out: what
`idealmix.allocation` takes. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    trainings = Trainings.of(
        story.base.deciding,
        {one.index: (one.mixed.mixture.counts, one.evaluated.deciding) for one in story.rounds},
        story.goal.replicates,
        per_row,
    )
    return trainings.curves(at.influence, story.goal.gradient(at.evaluated.deciding), at.index)


@dataclass(frozen=True)
class Trainings:
    """What every trained mixture of a run came to, mean losses of the deciding halves.

    Attributes:
        base: the untrained model's, by reference.
        tried: by round; round 0 is the mean of its own and its replicates' losses.
        noise: standard deviation of each fall of a log loss between training seeds, as a part of it, by reference.
    """

    base: Mapping[str, float]
    tried: Mapping[int, Tried]
    noise: Mapping[str, float]

    @classmethod
    def of(
        cls,
        base: Losses,
        rounds: Mapping[int, tuple[Mapping[str, int], Losses]],
        replicates: Sequence[Losses],
        per_row: Mapping[str, float],
    ) -> Trainings:
        """From losses by row.

        Args:
            rounds: row counts and losses by round, round 0 among them.
            replicates: losses of round 0's mixture trained with other seeds.
            per_row: mean volume of a row by domain.
        """
        start = [_means(losses) for losses in (rounds[0][1], *replicates)]
        tried = {}
        for index, (counts, losses) in rounds.items():
            volumes = {name: n * per_row[name] for name, n in counts.items()}
            tried[index] = Tried(volumes, _means(losses))
        mean = {q: float(np.mean([run[q] for run in start])) for q in start[0]}
        tried[0] = Tried(tried[0].volumes, mean, len(start))
        return cls(_means(base), tried, seed_noise(_means(base), start))

    def curves(
        self, matrix: InfluenceMatrix, weights: Mapping[str, float], index: int
    ) -> tuple[Curves | None, str]:
        """Learning curves from all trainings, with influence at a round; or None and why not."""
        return fit(matrix, weights, self.base, list(self.tried.values()), self.tried[index], self.noise)


def _means(losses: Losses) -> dict[str, float]:
    # a loss of exactly 0, which a saturated model can have, has no logarithm
    return {q: max(loss.mean, 1e-12) for q, loss in losses.items()}


def limits(story: Story, at: Round) -> list[Limit]:
    """What each constrained reference set may still lose, and its own slopes."""
    out = []
    for name, constraint in story.config.constraints.items():
        risen = story.goal.rise(name, at.evaluated.deciding).value
        if at.influence is not None:
            out.append(Limit(name, slopes_of(at.influence, {name: 1.0}), constraint.max_increase - risen))
    return out
