"""How a run can fail without an error, told in words with the likely cause.

Flows in: the `Story` of a run that has ended. Flows out: warnings for ``result.json``, the terminal and the report. What
can be undone the loop has undone already: a step that makes things worse is rolled back, turning round twice halves m
(`idealmix.decision`), floor and cap hold every step (`idealmix.allocation`). Nothing here changes what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from idealmix.certainty import LEVEL, p_below
from idealmix.evaluation.set_loss import SetLoss, paired_difference

if TYPE_CHECKING:
    from idealmix.influence_matrix import InfluenceMatrix
    from idealmix.rounds.loop import Round, Story

STRONG_DAMPING = 0.1
"""Of a layer's mean eigenvalue: from here on the response is nearer to the gradient dot than to the inverse."""
ALMOST_ALL = 0.9
"""Share of the budget at which a mixture is of one domain."""


def signatures(story: Story) -> list[str]:
    """All that shows in a run that has ended; most often nothing."""
    return [*_unlearned(story), *_stagnation(story), *_made_worse(story), *_unlike(story), *_one_hot(story)]


def _unlearned(story: Story) -> Iterator[str]:
    """A capability that training on the first mixture leaves where the base model is."""
    trained = story.rounds[0].evaluated.deciding
    for name, before in story.base.deciding.items():
        value, se, dof = paired_difference(trained[name], before)
        if p_below(value, se, dof) > LEVEL:
            yield (
                f"{name}: training does not lower its reference loss ({before.mean:.3f} in the base model, "
                f"{trained[name].mean:.3f} in round 0), so no volume can be measured to help it; it may be learnt already, no "
                "domain may teach it, or the training may be too short for it"
            )


def _stagnation(story: Story) -> Iterator[str]:
    """No domain stands out of its error where the loop stood still; why, as far as the figures tell."""
    best, last = story.rounds[story.state.best if story.state else 0], story.rounds[-1]
    step, matrix = last.allocation, best.influence
    if step is None or matrix is None or any(not move.gated and move.slope for move in step.moves.values()):
        return
    causes = []
    if (share := _reference_share(story, best, matrix)) > 0.5:
        rows = int(min(matrix.moments.reference_rows))
        causes.append(
            f"the reference sets are too small (they make {share:.0%} of the error's variance; the smallest gives gradients of "
            f"{rows:,} rows): add reference rows"
        )
    else:
        every = bool((matrix.moments.fraction >= 1).all())
        mend = (
            "all are measured already, so add training rows" if every else "raise influence.sample_fraction"
        )
        causes.append(
            f"too few training rows are measured (they make {1 - share:.0%} of the error's variance): {mend}"
        )
    if story.config.influence.curvature != "identity" and story.config.influence.damping >= STRONG_DAMPING:
        causes.append(
            f"the damping is high ({story.config.influence.damping:g} of the mean eigenvalue hides most of the curvature): "
            "lower influence.damping"
        )
    if stuck := [text.split(":")[0] for text in _unlearned(story)]:
        causes.append(f"{' and '.join(stuck)} cannot be learnt from this mixture")
    yield (
        f"Round {best.index} is where it stays: no domain's influence stands out of its error. Either the mixture is balanced, or "
        + "; or ".join(causes)
    )


def _reference_share(story: Story, at: Round, matrix: InfluenceMatrix) -> float:
    """Which part of the slopes' variance is the reference rows'; the rest is the training rows'."""
    weights = story.goal.gradient(at.evaluated.deciding)
    exact = replace(matrix.moments, reference=np.zeros_like(matrix.moments.reference))
    by_training = np.nansum(replace(matrix, moments=exact).weighted(weights).se ** 2)
    every = np.nansum(matrix.weighted(weights).se ** 2)
    return float(1 - by_training / every) if 0 < every < np.inf else 0.0


def _made_worse(story: Story) -> Iterator[str]:
    """All methods but IDEAL take their mixture however it measures: it may be one that the reference sets call worse."""
    if story.state is None or story.state.best == 0:
        return
    best, first = story.rounds[story.state.best], story.rounds[0]
    change = story.goal.difference(best.evaluated.deciding, first.evaluated.deciding)
    paper = story.config.method == "ideal-paper"
    why = f"a step of m = {best.m:g} is too large (lower allocation.m), and " if paper else ""
    if p_below(-change.value, *change.error()) < LEVEL:
        yield (
            f"The final mixture is worse than round 0 (the objective rose by {change.value:.4f} ± {change.error()[0]:.4f}): "
            f"{why}this method rolls nothing back; use method: ideal"
        )


def _unlike(story: Story) -> Iterator[str]:
    """A reference set that gained and whose test set of the same name lost. It comes too late to steer anything."""
    if story.state is None or story.state.best == 0 or "chosen" not in story.scores:
        return
    best, first = story.rounds[story.state.best], story.rounds[0]
    after, before = story.scores["chosen"]["tests"], story.scores["joint"]["tests"]
    for name in best.evaluated.deciding.keys() & after.keys():
        reference = paired_difference(best.evaluated.deciding[name], first.evaluated.deciding[name])
        test = paired_difference(SetLoss.from_json(after[name]), SetLoss.from_json(before[name]))
        gained, lost = p_below(*reference) < LEVEL, p_below(-test.value, test.se, test.dof) < LEVEL
        if gained and lost:
            yield (
                f"{name}: the mixture gains on its reference set ({reference.value:+.4f} ± {reference.se:.4f}) and loses on its "
                f"test set ({test.value:+.4f} ± {test.se:.4f}): the reference set does not stand for the test set; draw it from "
                "the same source"
            ).replace("(-", "(−")


def _one_hot(story: Story) -> Iterator[str]:
    """The steps gave nearly all of the budget to one domain."""
    unit = story.config.allocation.budget.unit
    if story.state is None or story.state.best == 0:
        return
    now, start = (_shares(one, unit) for one in (story.rounds[story.state.best], story.rounds[0]))
    for name, share in now.items():
        if share > ALMOST_ALL > start[name]:
            yield (
                f"{name} makes up {share:.0%} of the final mixture ({start[name]:.0%} at the start): what no reference set asks for is "
                "lost there; allocation.cap and allocation.floor bound it, constraints protect a capability"
            )


def _shares(one: Round, unit: str) -> dict[str, float]:
    mixture = one.mixed.mixture
    volumes = {
        "tokens": mixture.tokens_by_domain,
        "supervised_tokens": mixture.supervised_tokens_by_domain,
        "rows": mixture.counts,
    }[unit]
    total = sum(volumes.values())
    return {name: volume / total for name, volume in volumes.items()}
