"""What the benchmark asks beside the product's own methods, and which options each is given.

Flows in: the cost of IDEAL's search. Flows out: methods in the product's protocol, cheap ones first. Nothing here trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from idealmix.methods import load_method
from idealmix.methods.dmo import DMO
from idealmix.methods.protocol import Array, Method, Problem, Search, Train

BEST = "best of a wide search"
ORDER = (
    "joint",
    "uniform",
    "ideal",
    BEST,
    "drop-worst",
    "random",
    "temperature",
    "doge",
    "doremi",
    "dynamixsft",
    "ideal-finite",
    "ideal-longer",
    "ideal-nearer",
    "ideal-paper",
    "regmix",
    "dmo",
    "random-mean",
)
"""Rows of the table in the order in which they are measured: any stop leaves a table."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "ideal-finite": {"influence": {"response": "finite"}},
    "ideal-longer": {"allocation": {"rounds": 4, "patience": 2, "replicates": 1}},
    "ideal-nearer": {"allocation": {"m": 3.0}},
}
"""Rows that are `ideal` with other settings: by block of the configuration. `ideal-nearer` goes to four times a volume
or a quarter in a round, as the default did. `ideal-longer` costs about what `ideal` does: a step more,
three replicates of joint fewer."""

EQUAL_COST = ("random", "regmix", "dmo")
"""Searches whose length is free: they are given as many epochs as IDEAL spent."""

REGMIX_FRACTION = 0.25  # of the budget in one training; a tenth would be six optimiser steps


@dataclass(frozen=True)
class WideSearch:
    """Uniform, then random mixtures, then steps near the best so far; ends in the `keep` best on the reference sets.

    Attributes:
        randoms: Dirichlet draws, concentrations 1 and 0.5 in turn.
        near: log-normal steps from the mean of the three best so far; every fourth drops one domain as well.
        keep: how many mixtures are retrained.
    """

    randoms: int = 16
    near: int = 23
    keep: int = 5

    def search(self, problem: Problem) -> Search:
        """1 + randoms + near trainings."""
        generator, size = problem.generator("wide"), len(problem.domains)
        tried: list[tuple[float, Array]] = []
        for number in range(1 + self.randoms + self.near):
            shares = self.proposal(number, size, generator, tried)
            outcome = yield Train(shares)
            tried.append((outcome.objective, outcome.shares))
        return [shares for _, shares in sorted(tried, key=lambda pair: pair[0])[: self.keep]]

    def proposal(
        self, number: int, size: int, generator: np.random.Generator, tried: list[tuple[float, Array]]
    ) -> Array:
        """The shares of one training, given the trainings before it."""
        if number == 0:
            return np.full(size, 1 / size)
        if number <= self.randoms:
            return generator.dirichlet(np.full(size, 1.0 if number % 2 else 0.5))
        best = np.mean([shares for _, shares in sorted(tried, key=lambda pair: pair[0])[:3]], axis=0)
        near = best * np.exp(generator.normal(0, 0.35, size))
        if number % 4 == 0:
            near[generator.integers(size)] = 0.0
        return near / near.sum()


@dataclass(frozen=True)
class DropWorst:
    """Leave each domain out in turn, the rest in equal shares, and take the best: D trainings."""

    def search(self, problem: Problem) -> Search:
        """D trainings."""
        size, outcomes = len(problem.domains), []
        for left_out in range(size):
            shares = np.where(np.arange(size) == left_out, 0.0, 1 / (size - 1))
            outcomes.append((shares, (yield Train(shares))))
        return [min(outcomes, key=lambda pair: pair[1].objective)[0]]


def made(name: str, problem: Problem, trainings: float | None) -> Method:
    """The method of a row.

    Args:
        trainings: how many of the whole budget IDEAL's search was worth; for the rows of `EQUAL_COST`.
    """
    if name == BEST:
        return WideSearch()
    if name == "drop-worst":
        return DropWorst()
    if name in VARIANTS:
        return load_method("ideal", None)
    if name not in EQUAL_COST:
        # the paper's interval of 50 steps would give one reward in a training this short
        return load_method(name, {"dynamixsft": {"interval": 5}}.get(name))
    if trainings is None:
        raise ValueError(f"{name} is given IDEAL's cost: measure ideal first")
    if name == "random":
        return load_method(name, {"k": max(1, round(trainings))})
    if name == "regmix":
        return load_method(
            name, {"runs": max(2, round(trainings / REGMIX_FRACTION)), "fraction": REGMIX_FRACTION}
        )
    return load_method(name, {"fraction": min(1.0, trainings / dmo_trainings(problem))})


def dmo_trainings(problem: Problem) -> float:
    """What DMO's search would cost at a fraction of 1: its trainings scale one of D equal amounts by a ratio."""
    size, ratios = len(problem.domains), DMO().ratios
    modelled = sum(problem.weights.get(name, 0.0) > 0 for name in problem.domains)
    return 1 + modelled * sum((size - 1 + ratio) / size for ratio in ratios if ratio != 1)
