"""Whether a mixture is kept: the objective's difference, within what losses and scores may give up.

Flows in: the configuration, the goal, the losses and watched scores of a round, the incumbent's losses. Flows out: a
``Decision``. All of it is measured on the deciding halves of the reference sets; no test set and no gradient is touched.
"""

from __future__ import annotations

from idealmix.config import Config
from idealmix.decision import Decision, Difference, decide
from idealmix.rounds.goal import Goal, Losses, Scores


def judge(config: Config, goal: Goal, losses: Losses, scores: Scores, incumbent: Losses) -> Decision:
    """The decision on a trained mixture.

    Args:
        losses, scores: of the new mixture, on the deciding halves.
        incumbent: losses of the best mixture so far.
    """
    limits: dict[str, tuple[Difference, float]] = {
        name: (goal.rise(name, losses), limit.max_increase) for name, limit in config.constraints.items()
    }
    for name, setting in config.watched_scores.items():
        if setting.max_decrease is not None:
            limits[f"the score {name}"] = (goal.fall(scores[name]), setting.max_decrease)
    lean = config.allocation.keep == "leaning"
    return decide(goal.difference(losses, incumbent), limits, lean=lean)
