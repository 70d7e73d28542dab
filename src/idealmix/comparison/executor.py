"""Carries out what a method asks for, and trains the mixtures that it ends with.

Flows in: a method, the configuration, the inputs. Flows out: `Found`: the trained mixtures and what the search cost. Every
mixture has the tokens (to about half a row) and the optimiser steps of joint SFT at the same seed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idealmix import configfile
from idealmix.allocation import start_counts
from idealmix.comparison.shared import Ledger, SharedPhases, Spent, steps_of
from idealmix.config import Config
from idealmix.data.mixture import draw
from idealmix.errors import IdealmixError, InputError
from idealmix.evaluation.objective import BY_ROUND_0
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.methods.projection import as_allocation, project
from idealmix.methods.protocol import (
    Adapt,
    Array,
    Measure,
    Method,
    Note,
    Outcome,
    Problem,
    Proposal,
    Request,
    Rounds,
    Search,
    Train,
    simplex,
)
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.goal import Goal
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.loop import tell
from idealmix.rounds.phases import Evaluated, Mixed, Trained
from idealmix.rounds.team import Team
from idealmix.rounds.volume import Drawn, mean_volumes
from idealmix.rounds.watch import Watch
from idealmix.volumes import row_bounds


@dataclass(frozen=True)
class Final:
    """A mixture that a method ended with, trained at the whole budget."""

    mixed: Mixed
    trained: Trained
    evaluated: Evaluated


@dataclass(frozen=True)
class Found:
    """What a method's search led to.

    Attributes:
        finals: one mixture as a rule; none: the base model; several: the figure is their mean.
        spent: everything that was done, the final trainings included, by name.
        search: what the search cost beyond one training of the final mixture.
    """

    finals: list[Final]
    spent: Mapping[str, Spent]
    search: Spent


class Executor:
    """One method at one seed, in a run's folder.

    Args:
        config: of the run; its seed is replaced by `seed`.
        own: folder of what is this search's alone; ``""``: the run's.
        label: of the search, for the watch.

    Raises:
        InputError: the pools cannot fill the budget (by how much), or the budget is not held.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        folder: RunFolder,
        team: Team,
        watch: Watch,
        *,
        seed: int,
        own: str,
        label: str,
    ) -> None:
        if not config.allocation.budget.hold:
            raise InputError(
                "methods are compared at one budget, and allocation.budget.hold is false",
                where="allocation.budget.hold",
                mend="set it to true (and method: ideal; ideal-paper can still be one of the methods compared)",
            )
        self.config = config.model_copy(update={"seed": seed})
        self.inputs, self.seed = inputs, seed
        self._folder, self._team, self._watch = folder, team, watch
        self._own, self._label = own, label
        allocation, self.unit = config.allocation, config.allocation.budget.unit
        self.sizes = {name: len(pool) for name, pool in inputs.domains.items()}
        self.per_row = mean_volumes(inputs.domains, self.unit)
        self.drawn = Drawn(inputs.domains, self.unit, seed)
        self._start = start_counts(self.sizes, self.per_row, allocation)
        self.joint = self._natural()
        self.amount = self.drawn.amount(self.joint)
        self.steps = steps_of(config.training, sum(self.joint.values()), team.size)
        one_pass = draw(inputs.domains, self.joint, seed, max_repeats=allocation.max_repeats)
        self._ledger = Ledger(one_pass.tokens)
        self.phases = self._phases(self.config)
        self.problem = self._problem()
        self._trained: dict[str, tuple[Mixed, Trained]] = {}
        self._proxies = 0

    @property
    def spent(self) -> Mapping[str, Spent]:
        """Everything that was done so far, by name: trainings, influence stages, proxies."""
        return dict(self._ledger.spent)

    def search(self, method: Method) -> list[Proposal]:
        """Ask and tell until the method returns; its mixtures.

        Raises:
            InputError: a user's own method fails, or is no generator; the file and line of it.
        """
        steps, answer = self._begin(method), None
        while True:
            try:
                request = self._next(method, steps, answer)
            except StopIteration as done:
                return [] if done.value is None else list(done.value)
            answer = self.perform(request)

    def check(self, method: Method) -> None:
        """Raise what a method raises before its first training, such as what it lacks; nothing is done."""
        with contextlib.suppress(StopIteration):
            steps = self._begin(method)
            while isinstance(self._next(method, steps, None), Note):
                pass

    def find(self, method: Method) -> Found:
        """The search, then the final trainings."""
        proposals = self.search(method)
        finals = [self.final(proposal) for proposal in proposals]
        spent = self.spent
        ends = {self.phases.place(final.trained) for final in finals}
        before = [one for name, one in spent.items() if name not in ends]
        search = Spent("search", sum(one.epochs for one in before), sum(one.seconds for one in before))
        return Found(finals, spent, search)

    def final(self, proposal: Proposal) -> Final:
        """A proposed mixture, trained at the whole budget."""
        if isinstance(proposal, Mapping):
            return self._train(self._rows(proposal), 1.0)
        return self._train(self.counts(self._shares(proposal), 1.0), 1.0)

    def counts(self, shares: Array, fraction: float) -> dict[str, int]:
        """Whole rows of a fraction of the budget; at the whole budget, the drawn rows make it up."""
        domains, settings = self.problem.domains, self.config.allocation
        if fraction == 1 and np.allclose(shares, self.problem.natural, rtol=1e-12, atol=0):
            return dict(self.joint)
        counts = project(shares, domains, self.sizes, self.per_row, settings, self.amount * fraction)
        if fraction < 1:
            return counts
        # a domain that is left out stays out: it is no mover
        before = {name: self.joint[name] if count else 0 for name, count in counts.items()}
        step = as_allocation("", before, counts, self.sizes, self.per_row, self.unit)
        return self.drawn.hold(step, self.amount, settings).counts

    def perform(self, request: Request) -> Any:
        """The answer to one request."""
        match request:
            case Train(shares, fraction):
                return self._outcome(self._train(self.counts(self._shares(shares), fraction), fraction))
            case Measure(at):
                return self._measure(at)
            case Adapt():
                return self._adapt(request)
            case Rounds(paper):
                return self._rounds(paper)
            case Note(text):
                return self._watch.note(text)
        raise InputError(
            f"a method asked for {request!r}, which is not a request",
            where="method",
            mend="yield Train, Measure, Adapt, Rounds or Note of idealmix.methods.protocol",
        )

    def _begin(self, method: Method) -> Search:
        steps = method.search(self.problem)
        if not isinstance(steps, Generator):
            kind = type(method).__name__
            raise InputError(
                f"{kind}.search is no generator", where="method", mend="yield at least one request"
            )
        return steps

    def _next(self, method: Method, steps: Search, answer: Any) -> Request:
        try:
            return steps.send(answer)
        except StopIteration:
            raise
        except Exception as error:
            if isinstance(error, IdealmixError) or type(method).__module__.startswith("idealmix."):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{frame.filename}, line {frame.lineno}"
            said = f"{type(method).__name__} raised {type(error).__name__}: {error} ({place})"
            raise InputError(said, where="method") from error

    # --- requests --------------------------------------------------------------------------------------------

    def _train(self, counts: Mapping[str, int], fraction: float) -> Final:
        phases = self._of_fraction(fraction)
        mixed = phases.mix("", counts, self.seed)
        trained = phases.train("", mixed, self.seed, max(1, round(self.steps * fraction)))
        self._trained[phases.place(trained)] = (mixed, trained)
        return Final(mixed, trained, phases.evaluate("", trained))

    def _outcome(self, final: Final) -> Outcome:
        deciding = final.evaluated.deciding
        counts = final.mixed.mixture.counts
        volumes = np.array([float(self.drawn.amount({name: counts[name]})) for name in self.problem.domains])
        return Outcome(
            shares=volumes / volumes.sum(),
            amount=float(volumes.sum()),
            losses={name: loss.mean for name, loss in deciding.items()},
            objective=self.goal(final.evaluated).value(deciding).value,
            place=self.phases.place(final.trained),
        )

    def goal(self, evaluated: Evaluated) -> Goal:
        """The objective; one that is measured by joint has joint trained for it, others need no start."""
        objective = self.config.objective
        start = self._train(self.joint, 1.0).evaluated if objective in BY_ROUND_0 else evaluated
        base = self.phases.evaluate("", None).deciding if objective == "progress" else None
        return Goal(objective, dict(self.problem.weights), start.deciding, base=base)

    def _measure(self, at: Outcome) -> InfluenceMatrix:
        mixed, trained = self._known(at)
        return self.phases.influence("", mixed, trained)[0]

    def _adapt(self, request: Adapt) -> Array:
        if self.config.training.backend == "command":
            raise InputError(
                "this method trains a proxy, and an outside command cannot change its domains' weights on the way",
                where="training.backend",
                mend="use backend: trl, or a method without a proxy (random, regmix, dmo, ideal)",
            )
        self._proxies += 1
        weights = self.problem.weights if request.towards_references else {}
        history = self._of_fraction(request.fraction).adapt(
            self._proxies,
            request.rule,
            steps=max(1, round(self.steps * request.fraction)),
            seed=self.seed,
            reference=self._known(request.reference)[1] if request.reference else None,
            weights=weights,
        )
        return np.array(history)

    def _rounds(self, paper: bool) -> tuple[dict[str, int], Array]:
        method = "ideal-paper" if paper else "ideal"
        asked = self.config.model_copy(update={"method": method})
        config = configfile.resolve(asked, Path("/")) if paper else asked  # paths are absolute already
        if config.allocation.start != "natural":
            # the rows drawn for another start differ in length from joint's: held to the same budget
            step = as_allocation("", self.joint, self._start, self.sizes, self.per_row, self.unit)
            held = self.drawn.hold(step, self.amount, config.allocation).counts
            budget = config.allocation.budget.model_copy(update={"size": None})
            started = config.allocation.model_copy(update={"start": held, "budget": budget})
            config = config.model_copy(update={"allocation": started})
        self.phases.forget()
        story = tell(config, self.inputs, self._phases(config), self._watch)
        if story.state is None:
            raise RuntimeError("the rounds have ended")
        mixture = story.rounds[story.state.best].mixed.mixture
        volumes = [float(self.drawn.amount({name: mixture.counts[name]})) for name in self.problem.domains]
        return mixture.counts, simplex(np.array(volumes), method)

    def _shares(self, values: Array) -> Array:
        """(D,) what a method asks for or returns, scaled to sum to 1."""
        size = len(self.problem.domains)
        if np.shape(values) != (size,):
            raise InputError(
                f"a method gave shares of shape {np.shape(values)}; there are {size} domains, {', '.join(self.problem.domains)}",
                where="method",
                mend="yield and return arrays of one share a domain, and return a list of them: [shares]",
            )
        return simplex(values, "the method")

    def _rows(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Row counts that a method returns: of known domains, and of the budget within 1 %."""
        unknown = sorted(set(counts) - set(self.problem.domains))
        if unknown:
            raise InputError(
                f"a method gave rows of {unknown[0]!r}, which is not a domain",
                where="method",
                mend=f"the domains are {', '.join(self.problem.domains)}",
            )
        found = {name: int(counts.get(name, 0)) for name in self.problem.domains}
        drawn = self.drawn.amount(found)
        if abs(drawn - self.amount) > 0.01 * self.amount:
            raise InputError(
                f"a method gave rows that amount to {drawn:,.0f} {self.unit}; the budget is {self.amount:,.0f}",
                where="method",
                mend="return shares, which are made rows of the budget, or counts within 1 % of it",
            )
        return found

    def _known(self, outcome: Outcome) -> tuple[Mixed, Trained]:
        if outcome.place not in self._trained:
            raise InputError("a method asked about a training that it was not told of", where="method")
        return self._trained[outcome.place]

    # --- set-up ----------------------------------------------------------------------------------------------

    def _of_fraction(self, fraction: float) -> SharedPhases:
        """Phases whose trainings warm up for the same part of their steps as the whole budget's."""
        training = self.config.training
        warmup = round(training.warmup_steps * fraction)
        if warmup == training.warmup_steps:
            return self.phases
        shorter = training.model_copy(update={"warmup_steps": warmup})
        return self._phases(self.config.model_copy(update={"training": shorter}))

    def _phases(self, config: Config) -> SharedPhases:
        return SharedPhases(
            config,
            self.inputs,
            self._folder,
            self._team,
            self._watch,
            steps=self.steps,
            own=self._own,
            label=self._label,
            ledger=self._ledger,
        )

    def _natural(self) -> dict[str, int]:
        """Joint's rows: the pools in proportion, at the budget; rows that the configuration starts with say what that is."""
        allocation = self.config.allocation
        size = allocation.budget.size
        if isinstance(allocation.start, Mapping):
            size = round(sum(count * self.per_row[name] for name, count in self._start.items()))
        budget = allocation.budget.model_copy(update={"size": size})
        natural = allocation.model_copy(update={"start": "natural", "budget": budget})
        return start_counts(self.sizes, self.per_row, natural)

    def _problem(self) -> Problem:
        domains = tuple(self.inputs.domains)
        sizes, per_row = (
            np.array([float(of[name]) for name in domains]) for of in (self.sizes, self.per_row)
        )
        _, most = row_bounds(domains, sizes, per_row, self.config.allocation, self.amount, held=False)
        volumes = sizes * per_row
        weights = {name: source.weight for name, source in self.config.references.items()}
        total = sum(weights.values())
        return Problem(
            domains=domains,
            natural=volumes / volumes.sum(),
            most=most * per_row / self.amount,
            weights={name: weight / total for name, weight in weights.items()},
            amount=float(self.amount),
            unit=self.unit,
            seed=self.seed,
        )
