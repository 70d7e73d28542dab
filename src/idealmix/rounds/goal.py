"""The run's objective, bound to its weights and to round 0, so that the loop need not carry them.

Flows in: the objective's name, weights, the base model's losses, round 0's losses and watched scores. Flows out: values, differences and gradients of
`idealmix.evaluation.objective`, how far a loss rose or a score fell from round 0, and the seed's share of their error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from idealmix.decision import Difference
from idealmix.evaluation.objective import objective_difference, objective_gradient, objective_value
from idealmix.evaluation.score_result import ScoreResult
from idealmix.evaluation.set_loss import Estimate, SetLoss, paired_difference

Losses = Mapping[str, SetLoss]
Scores = Mapping[str, ScoreResult]


@dataclass
class Goal:
    """What the run minimises.

    Attributes:
        objective, weights: as configured.
        start: round 0's losses on the deciding halves.
        replicates: the same of round 0's other seeds.
        start_scores: the watched scores of round 0 and of its other seeds.
        base: the base model's losses on the deciding halves; `progress` needs them.
    """

    objective: str
    weights: Mapping[str, float]
    start: Losses
    replicates: list[Losses] = field(default_factory=list)
    start_scores: list[Scores] = field(default_factory=list)
    base: Losses | None = None

    def value(self, losses: Losses) -> Estimate:
        """The objective with its row-clustered error."""
        return objective_value(losses, self.weights, self.objective, self.start, self.base)

    def gradient(self, losses: Losses) -> dict[str, float]:
        """dO/dL_q at these losses."""
        means, start, base = (
            {name: loss.mean for name, loss in sets.items()} for sets in (losses, self.start, self.base or {})
        )
        return objective_gradient(means, self.weights, self.objective, start, base)

    def difference(self, new: Losses, old: Losses) -> Difference:
        """New minus old, paired by row, with the spread between seeds.

        Against round 0 the mean of all its trainings is the old side: they are there, and it is steadier than one.
        """
        runs = (self.start, *self.replicates) if old is self.start else (old,)
        old = _mean(runs)
        found = objective_difference(new, old, self.weights, self.objective, self.start, self.base)
        return Difference(*found, *self.seed_spread(), old_runs=len(runs))

    def rise(self, name: str, new: Losses) -> Difference:
        """How far one reference set's loss lies above the mean of round 0's trainings, paired by row, with the seeds' spread."""
        every = (self.start, *self.replicates)
        found = paired_difference(new[name], _mean(every)[name])
        seeds = [losses[name].mean for losses in every]
        return Difference(*found, _deviation(seeds), len(seeds), old_runs=len(seeds))

    def fall(self, new: ScoreResult) -> Difference:
        """How far a watched score lies below its mean over round 0's trainings, paired by row, with the seeds' spread.

        Where a user's function gives no figure for each row, the rows' error is not known, and left out.
        """
        every = [scores[new.name] for scores in self.start_scores]
        means = [one.mean for one in every]
        value, se, rows = float(np.mean(means)) - new.mean, 0.0, 1
        if new.per_row and all(one.per_row for one in every):
            before = {row: float(np.mean([(one.per_row or {})[row] for one in every])) for row in new.per_row}
            falls = np.array([before[row] - now for row, now in new.per_row.items()])
            rows = falls.size
            se = float(falls.std(ddof=1) / math.sqrt(rows)) if rows > 1 else 0.0
        return Difference(value, se, max(1, rows - 1), _deviation(means), len(means), old_runs=len(means))

    def seed_spread(self) -> tuple[float | None, float]:
        """The objective's standard deviation between seeds of round 0, and the number of seeds that it is worth.

        A few trainings tell the spread of one figure badly. But each gives a loss on every reference set, and what the
        seed does to one set hardly shows in another (measured on the built-in skills, docs/decisions.md): so the
        sets' variances are added up, which is worth about as many more seeds. If that is smaller than the variance of
        the objective itself, the sets move together, and the objective's own is taken.
        """
        every = (self.start, *self.replicates)
        own = _deviation(self.seed_values())
        if own is None:
            return None, len(every)
        parts = [
            (slope * float(np.std([losses[name].mean for losses in every], ddof=1))) ** 2
            for name, slope in self.gradient(self.start).items()
        ]
        total, spread = sum(parts), sum(part**2 for part in parts) / (len(every) - 1)
        if own > math.sqrt(total) or spread == 0:
            return own, len(every)
        return math.sqrt(total), 1 + total**2 / spread

    def seed_values(self) -> list[float]:
        """The objective of round 0 for every seed that was trained."""
        return [self.value(losses).value for losses in (self.start, *self.replicates)]


def _mean(runs: Sequence[Losses]) -> Losses:
    """Row by row, the mean loss of several trainings on the same sets."""
    first = runs[0]
    return {
        name: replace(loss, loss_sums=np.mean([losses[name].loss_sums for losses in runs], axis=0))
        for name, loss in first.items()
    }


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation; None from a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
