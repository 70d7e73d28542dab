"""The one protocol of all methods: a generator that asks for something, is told the result, and returns mixtures.

Flows in: a `Problem`. Flows out: requests (`Train`, `Measure`, `Adapt`, `Rounds`, `Note`), and at the end a list of
mixtures. ``outcome = yield Train(shares)`` asks and is told; so a method reads as its paper does, top to bottom. Being
told the same, a method must ask the same: a stopped search is resumed by asking again, and what is on disk is not done
twice. Shares are arrays (D,) of the budget's unit, in the order of `Problem.domains`, and sum to 1.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from idealmix.errors import InputError

Array = NDArray[np.float64]
Proposal = Array | Mapping[str, int]
"""A mixture: shares (projected to whole rows within the bounds), or exact row counts."""


@dataclass(frozen=True)
class Problem:
    """What a method knows before it asks.

    Attributes:
        domains: names; D of them.
        natural: (D,) shares of joint SFT: all rows of all pools, in the budget's unit.
        most: (D,) the largest share of the budget that each pool gives at ``allocation.max_repeats``; may exceed 1.
        weights: of the reference sets in the objective, by name; they sum to 1.
        amount: the budget, in `unit`.
        unit: tokens, supervised_tokens or rows.
        seed: of everything that the method draws.
    """

    domains: tuple[str, ...]
    natural: Array
    most: Array
    weights: Mapping[str, float]
    amount: float
    unit: str
    seed: int

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers that depend on the seed and on what they are for."""
        return np.random.default_rng([self.seed, *purpose.encode()])


@dataclass(frozen=True)
class Outcome:
    """Told for `Train`: what came of a mixture, on the deciding halves of the reference sets.

    Attributes:
        shares: (D,) that were really drawn, after bounds and whole rows.
        amount: what was drawn, in the budget's unit.
        losses: nats per supervised token by reference set.
        objective: their joined figure; lower is better.
        place: of its checkpoint; only the executor reads it.
    """

    shares: Array
    amount: float
    losses: Mapping[str, float]
    objective: float
    place: str


class Rule(Protocol):
    """Domain weights that change during a training; pure arithmetic, the training loop is `methods.online`.

    Attributes:
        measures: what `update` is told, (D,), each `interval` steps:
            ``excess_loss``: mean over tokens of max(loss - reference model's loss, 0);
            ``alignment``: inner product of each domain's gradient with the reference sets' (with the sum of the other
            domains' where there are none), over the mean norm of the domains' gradients;
            ``look_ahead``: mean over rows of the relative fall of the loss by one step on these rows.
        interval: optimiser steps between two measurements.
        weights: (D,) now; they sum to 1.
    """

    interval: int
    weights: Array

    @property
    def measures(self) -> Literal["excess_loss", "alignment", "look_ahead"]: ...

    def update(self, measured: Array, rate: float) -> None:
        """Change `weights` by what was measured; `rate`: the learning rate of this step."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that decides what the rule does, as plain JSON data."""
        ...


@dataclass(frozen=True)
class Train:
    """Train the base model on a mixture and evaluate it. Told: `Outcome`.

    `fraction`: of the budget and of its optimiser steps.
    """

    shares: Array
    fraction: float = 1.0


@dataclass(frozen=True)
class Measure:
    """Measure the influence matrix at a trained mixture. Told: `influence_matrix.InfluenceMatrix`."""

    at: Outcome


@dataclass(frozen=True)
class Adapt:
    """Train the base model as a proxy, with domain weights that a rule changes. Told: (steps, D) weights.

    Attributes:
        rule: how they change.
        reference: the training whose checkpoint ``excess_loss`` is measured against.
        towards_references: ``alignment`` is with the gradient halves of the reference sets; else with other domains.
        fraction: of the budget's optimiser steps.
    """

    rule: Rule
    reference: Outcome | None = None
    towards_references: bool = False
    fraction: float = 1.0


@dataclass(frozen=True)
class Rounds:
    """Run IDEAL's rounds as configured, or the paper's. Told: the row counts that they choose, and the shares of these."""

    paper: bool = False


@dataclass(frozen=True)
class Note:
    """Tell the user something. Told: nothing."""

    text: str


Request = Train | Measure | Adapt | Rounds | Note
Search = Generator[Request, Any, Sequence[Proposal]]


class Method(Protocol):
    """A way to find a mixture. Options are the constructor's keyword arguments."""

    def search(self, problem: Problem) -> Search:
        """Yield requests; return the mixtures to train at full budget.

        One mixture is the rule. None: the base model is the result. Several: the method's figure is their mean.

        Raises:
            InputError: the problem lacks something that the method needs; the message says what.
        """
        ...


def simplex(values: Array, what: str) -> Array:
    """`values` scaled to sum to 1.

    Raises:
        InputError: negative or not finite values, or all zero.
    """
    values = np.asarray(values, dtype=float)
    total = float(values.sum())
    if not (np.isfinite(values).all() and (values >= 0).all() and total > 0):
        raise InputError(f"{what} gave shares that are negative, not finite or all zero: {values.tolist()}")
    return values / total


def one_fraction(fraction: float) -> float:
    """A fraction of the budget.

    Raises:
        InputError: not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of the budget lies above 0 and is at most 1; found {fraction!r}")
    return fraction
