"""``idealmix run`` with any method: IDEAL's rounds, or another method's search and its mixture beside joint.

Flows in: a resolved configuration. Flows out: the run folder and the content of its ``result.json``, in the same form for
every method: joint is round 0, the method's mixture is round 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from idealmix.comparison.executor import Executor, Final
from idealmix.config import Config
from idealmix.decision import LoopState, next_step, propose
from idealmix.errors import InputError
from idealmix.methods import load_method
from idealmix.methods.projection import as_allocation
from idealmix.rounds import tables
from idealmix.rounds.ending import conclude, finish
from idealmix.rounds.goal import Goal
from idealmix.rounds.judgement import judge
from idealmix.rounds.loop import SEED_STRIDE, Round, Story, opened, run_rounds
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch


def run_any(config: Config, watch: Watch, team: Team | None = None) -> dict[str, Any]:
    """Run, or go on with, a whole run by the method of the configuration.

    Returns:
        The content of ``result.json`` (on every process).

    Raises:
        InputError: the configuration, the data or the model is wrong, the method needs something that is absent or does
            not end in one mixture, or the folder holds another run.
        IdealmixError: a phase failed; what was finished is kept.
    """
    if config.search:
        from idealmix.comparison.smaller import run_smaller  # it comes back here for the search

        return run_smaller(config, watch, team)
    if config.method in ("ideal", "ideal-paper"):
        return run_rounds(config, watch, team)
    method = load_method(config.method, config.methods.get(config.method))
    team = team or Team()
    with opened(config, watch, team) as (folder, inputs):
        executor = Executor(
            config, inputs, folder, team, watch, seed=config.seed, own="", label=config.method
        )
        proposals = executor.search(method)
        if len(proposals) != 1:
            raise InputError(
                f"{config.method} ends in {len(proposals) or 'no'} mixtures, and a run needs one",
                where="method",
                mend="choose another method; `idealmix compare` takes this one",
            )
        story = _tell(config, executor, executor.final(proposals[0]), watch)
        return team.lead(lambda: finish(story, inputs, folder))


def _tell(config: Config, executor: Executor, final: Final, watch: Watch) -> Story:
    """The story of a run with two rounds, or with one where the mixture is joint's own."""
    joint, phases = executor.final(executor.joint), executor.phases
    first = _as_round(0, joint)
    weights = {name: source.weight for name, source in config.references.items()}
    base, of_joint = phases.evaluate("", None), joint.evaluated
    goal = Goal(
        config.objective, weights, of_joint.deciding, start_scores=[of_joint.scores], base=base.deciding
    )
    story = Story(config, base, goal, [first], warnings=list(executor.inputs.warnings))
    counts = final.mixed.mixture.counts
    state = LoopState.start(executor.joint, m=config.allocation.m, rounds=2, patience=0, keep="all")
    first.allocation = as_allocation(
        config.method, executor.joint, counts, executor.sizes, executor.per_row, executor.unit
    )
    if counts != executor.joint:
        for number in range(1, config.allocation.replicates + 1):
            other = config.seed + number * SEED_STRIDE
            again = phases.replicate("", phases.mix("", executor.joint, other), other, None)
            goal.replicates.append(again.deciding)
            goal.start_scores.append(again.scores)
        new, of_new = _as_round(1, final), final.evaluated
        state = propose(state, first.allocation)
        new.decision = judge(config, goal, of_new.deciding, of_new.scores, joint.evaluated.deciding)
        taken = f"Ended: {config.method} is done; its mixture is taken, however it compares with joint."
        state = new.after = replace(next_step(state, new.decision), reason=taken)
        story.rounds.append(new)
        watch.note(new.decision.reason)
    else:
        state = replace(state, action="end", reason=f"Ended: {config.method} is the mixture of joint.")
    story.state = state
    watch.table(*tables.round_table(story, story.rounds[-1]))
    if phases.scored:
        story.scores["base"] = phases.score("", None)
        story.scores["joint"] = phases.score("", joint.trained)
        story.scores["chosen"] = phases.score("", final.trained)
    conclude(story, phases, watch)
    return story


def _as_round(index: int, final: Final) -> Round:
    return Round(index, 0.0, final.mixed, final.trained, final.evaluated)
