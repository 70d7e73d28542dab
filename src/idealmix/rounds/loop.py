"""The rounds: mix, train, evaluate, influence, allocate, again, until the data is in equilibrium.

Flows in: a resolved configuration. Flows out: the run folder (see docs/files.md) and the content of its
``result.json``. This module holds the order of things; `phases` does them, `allocation` and `decision` judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from idealmix import configfile
from idealmix.allocation import Allocation, allocate, start_counts
from idealmix.config import Config
from idealmix.decision import Decision, LoopState, next_step, propose
from idealmix.disk import write_text
from idealmix.errors import InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds import tables
from idealmix.rounds.checks import check_before
from idealmix.rounds.ending import conclude, finish
from idealmix.rounds.evidence import curves, limits, objective_slopes
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.goal import Goal
from idealmix.rounds.inputs import Inputs, load_inputs
from idealmix.rounds.judgement import judge
from idealmix.rounds.outlook import Outlook, outlook
from idealmix.rounds.phases import UNWATCHED, Evaluated, Mixed, Phases, Trained
from idealmix.rounds.team import Team
from idealmix.rounds.volume import Drawn, mean_volumes
from idealmix.rounds.watch import Watch

SEED_STRIDE = 1_000_003
"""Seeds of round 0's replicates lie this far apart, so that a run with the next seed does not repeat them."""


Taken = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


@dataclass
class Round:
    """One round as far as it has come; `result.json` is written from these."""

    index: int
    m: float
    mixed: Mixed
    trained: Trained
    evaluated: Evaluated
    decision: Decision | None = None
    after: LoopState | None = None
    influence: InfluenceMatrix | None = None
    allocation: Allocation | None = None


@dataclass
class Story:
    """A whole run: what `result.assemble` turns into ``result.json``."""

    config: Config
    base: Evaluated
    goal: Goal
    rounds: list[Round] = field(default_factory=list)
    state: LoopState | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    outlook: Outlook | None = None


def run_rounds(config: Config, watch: Watch, team: Team | None = None) -> dict[str, Any]:
    """Run, or go on with, a whole run.

    Returns:
        The content of ``result.json`` (on every process).

    Raises:
        InputError: the configuration, the data or the model is wrong, or the folder holds another run.
        IdealmixError: a phase failed; what was finished is kept.
    """
    team = team or Team()
    with opened(config, watch, team) as (folder, inputs):
        phases = Phases(config, inputs, folder, team, watch)
        story = tell(config, inputs, phases, watch)
        return team.lead(lambda: finish(story, inputs, folder))


@contextlib.contextmanager
def opened(config: Config, watch: Watch, team: Team) -> Iterator[tuple[RunFolder, Inputs]]:
    """The run folder, claimed and held while inside, and the data.

    The configuration is written down when it has passed every check, so that a mended one is not another.

    Raises:
        InputError, IdealmixError: see `claim`, `load_inputs` and `check_before`.
    """
    folder = RunFolder(Path(config.output), watch.warn)
    with contextlib.ExitStack() as held:
        team.lead(lambda: _enter(folder, config, held))
        watch.begin("reading the data")
        inputs = load_inputs(config, watch)
        check_before(config, inputs)
        team.lead(lambda: _keep(folder, config))
        watch.end(0.0, reused=False)
        yield folder, inputs


def claim(folder: RunFolder, config: Config, held: contextlib.ExitStack) -> None:
    """Lock the folder; write the resolved configuration, or check that the folder holds the same one.

    A larger ``allocation.rounds``, what is under ``influence``, ``training.save_steps`` and ``report_to`` may have changed: the
    run goes on with them.

    Raises:
        InputError: the folder was made with another configuration; the message names every changed key.
        IdealmixError: another process works on it.
    """
    _enter(folder, config, held)
    _keep(folder, config)


def _enter(folder: RunFolder, config: Config, held: contextlib.ExitStack) -> None:
    """`claim` without writing."""
    held.enter_context(folder.locked())
    refuse_another(folder.path, config, on_the_way)


def refuse_another(folder: Path, config: Config, taken: Taken) -> None:
    """Refuse a folder that holds another configuration.

    Args:
        taken: the folder's configuration and this one, as mappings, to the folder's with what may have changed taken over.

    Raises:
        InputError: the message names every changed key; or the folder's configuration is damaged.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        old = None
    if not isinstance(old, dict):
        raise InputError(
            "the configuration of this run is damaged", where=str(path),
            mend="restore it, or set another `output`",
        )  # fmt: skip
    new = config.model_dump(mode="json")
    # a folder may be moved: where it lies is not part of what was run
    changed = configfile.differences({**old, "output": ""}, {**new, "output": ""})
    if changed and configfile.differences({**taken(old, new), "output": ""}, {**new, "output": ""}):
        raise InputError(
            "this folder holds a run with another configuration:\n"
            + "\n".join(f"  {line}" for line in changed),
            where=str(folder),
            mend="set another `output` for the new configuration, or take the change back",
        )


def _keep(folder: RunFolder, config: Config) -> None:
    path, text = folder.path / "config.yaml", configfile.dump(config)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def on_the_way(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old configuration with the new one's values where a run may change on its way.

    A run goes on from where its rounds ended, how it is measured is part of the phases' own keys, and how a training is
    watched decides nothing.
    """
    taken: dict[str, Any] = {**old, "influence": new["influence"]}
    taken["training"] = {**(old.get("training") or {}), **{key: new["training"][key] for key in UNWATCHED}}
    allocation, rounds = old.get("allocation") or {}, new["allocation"]["rounds"]
    if isinstance(before := allocation.get("rounds"), int) and 1 < before < rounds:
        taken["allocation"] = {**allocation, "rounds": rounds}
    return taken


def tell(config: Config, inputs: Inputs, phases: Phases, watch: Watch) -> Story:
    """The rounds themselves."""
    allocation, seed = config.allocation, config.seed
    paper, unit = config.method == "ideal-paper", allocation.budget.unit
    sizes, per_row = _sizes(inputs), mean_volumes(inputs.domains, unit)
    counts = start_mixture_counts(config, inputs)
    drawn = Drawn(inputs.domains, unit, seed)
    amount = drawn.amount(counts)

    base = phases.evaluate("base", None)
    first = _train_round(phases, 0, allocation.m, counts, seed, steps=None)
    # the same number of optimiser steps for every mixture of a held budget: only the mixture differs
    steps = (first.trained.record.steps or None) if allocation.budget.hold else None
    weights = {name: source.weight for name, source in config.references.items()}
    of_first = first.evaluated
    goal = Goal(
        config.objective, weights, of_first.deciding, start_scores=[of_first.scores], base=base.deciding
    )
    story = Story(config, base, goal, [first], warnings=list(inputs.warnings))
    # replicates tell the noise of the seed, which only a second round is compared with
    for number in range(1, allocation.replicates + 1 if allocation.rounds > 1 else 1):
        other = seed + number * SEED_STRIDE
        mixed = phases.mix(f"round-0/replicate-{number}-draw", counts, other)
        again = phases.replicate(f"round-0/replicate-{number}", mixed, other, steps)
        goal.replicates.append(again.deciding)
        goal.start_scores.append(again.scores)
    state = LoopState.start(
        counts,
        m=allocation.m,
        rounds=allocation.rounds,
        patience=allocation.patience,
        keep="all" if paper else "better",
    )
    watch.table(*tables.round_table(story, first))

    while state.action != "end":
        best, last = story.rounds[state.best], story.rounds[-1]
        if state.action == "measure":
            best.influence, _ = phases.influence(f"round-{best.index}", best.mixed, best.trained)
            watch.table(*tables.influence_table(best.influence))
            for warning in best.influence.warnings:
                watch.warn(warning)
        found, why = curves(story, best, per_row) if allocation.rule == "curves" else (None, "")
        step = allocate(
            best.mixed.mixture.counts,
            sizes,
            per_row,
            objective_slopes(goal, best, drawn_only=paper),
            allocation,
            m=state.m,
            limits=[] if paper else limits(story, best),
            calibration=state.calibration,
            curves=found,
        )
        if allocation.budget.hold:
            step = drawn.hold(step, amount, allocation)
        state = propose(state, step)
        if state.action == "allocate":  # shorter
            watch.note(state.reason)
            continue
        if why and not step.equilibrium:
            story.warnings.append(f"round {last.index}: the rule equalise takes the place of curves: {why}")
            watch.warn(story.warnings[-1])
        phases.allocation(f"round-{last.index}", {"from": best.index, **step.to_json()})
        last.allocation = step
        watch.table(*tables.allocation_table(step))
        watch.note(state.reason)
        if state.action == "end":
            break
        new = _train_round(phases, last.index + 1, step.m, step.counts, seed, steps)
        of_new = new.evaluated
        new.decision = judge(config, goal, of_new.deciding, of_new.scores, best.evaluated.deciding)
        state = new.after = next_step(state, new.decision)
        story.rounds.append(new)
        watch.table(*tables.round_table(story, new))
        watch.note(f"{new.decision.reason} {state.reason}")

    story.state = state
    chosen = story.rounds[state.best]
    if phases.scored:
        story.scores["base"] = phases.score("base", None)
        story.scores["joint"] = phases.score("round-0", first.trained)
        if chosen is not first:
            story.scores["chosen"] = phases.score(f"round-{chosen.index}", chosen.trained)
        else:
            story.scores["chosen"] = story.scores["joint"]
    conclude(story, phases, watch)
    story.outlook = None if paper else outlook(story, per_row)
    if story.outlook:
        watch.note(story.outlook.text)
    return story


def start_mixture_counts(config: Config, inputs: Inputs) -> dict[str, int]:
    """Rows of round 0 by domain."""
    unit = config.allocation.budget.unit
    return start_counts(_sizes(inputs), mean_volumes(inputs.domains, unit), config.allocation)


def _train_round(
    phases: Phases, index: int, m: float, counts: Mapping[str, int], seed: int, steps: int | None
) -> Round:
    where = f"round-{index}"
    mixed = phases.mix(where, counts, seed)
    trained = phases.train(where, mixed, seed, steps)
    return Round(index, m, mixed, trained, phases.evaluate(where, trained))


def _sizes(inputs: Inputs) -> dict[str, int]:
    return {name: len(pool) for name, pool in inputs.domains.items()}
