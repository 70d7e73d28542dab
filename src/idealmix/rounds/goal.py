"""The run's objective, bound to its weights and to round 0, so that the loop need not carry them.

Flows in: the objective's name, weights, round 0's losses. Flows out: values, differences and gradients of
`idealmix.evaluation.objective`, and the seed's share of their error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from idealmix.decision import Difference
from idealmix.evaluation.objective import objective_difference, objective_gradient, objective_value
from idealmix.evaluation.set_loss import Estimate, SetLoss, paired_difference

Losses = Mapping[str, SetLoss]


@dataclass
class Goal:
    """What the run minimises.

    Attributes:
        objective, weights: as configured.
        start: round 0's losses on the deciding halves.
        replicates: the same of round 0's other seeds.
    """

    objective: str
    weights: Mapping[str, float]
    start: Losses
    replicates: list[Losses] = field(default_factory=list)

    def value(self, losses: Losses) -> Estimate:
        """The objective with its row-clustered error."""
        return objective_value(losses, self.weights, self.objective, self.start)

    def gradient(self, losses: Losses) -> dict[str, float]:
        """dO/dL_q at these losses."""
        means = {name: loss.mean for name, loss in losses.items()}
        return objective_gradient(
            means, self.weights, self.objective, {name: loss.mean for name, loss in self.start.items()}
        )

    def difference(self, new: Losses, old: Losses) -> Difference:
        """New minus old, paired by row, with the spread between seeds."""
        found = objective_difference(new, old, self.weights, self.objective, self.start)
        return Difference(*found, *_spread(self.seed_values()))

    def rise(self, name: str, new: Losses) -> Difference:
        """How far one reference set's loss lies above round 0's, paired by row, with the spread between seeds."""
        found = paired_difference(new[name], self.start[name])
        return Difference(*found, *_spread([losses[name].mean for losses in (self.start, *self.replicates)]))

    def seed_values(self) -> list[float]:
        """The objective of round 0 for every seed that was trained."""
        return [self.value(losses).value for losses in (self.start, *self.replicates)]


def _spread(values: Sequence[float]) -> tuple[float | None, int]:
    """Standard deviation between seeds, and how many there are."""
    return (float(np.std(values, ddof=1)) if len(values) > 1 else None), len(values)
