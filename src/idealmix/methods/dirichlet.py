"""Random mixtures: uniform draws from the simplex, the best of k or the mean of k.

Flows in: the problem's seed. Flows out: shares. The k mixtures are the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Array, Problem, Search, Train


@dataclass(frozen=True)
class _Drawn:
    """Options of both.

    Attributes:
        k: how many mixtures are drawn.
        concentration: of the symmetric Dirichlet distribution; 1 is uniform on the simplex.
    """

    k: int = 3
    concentration: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or not self.concentration > 0:
            raise InputError("k is at least 1 and the concentration is above 0")

    def draws(self, problem: Problem) -> Array:
        """(k, D) shares."""
        size = len(problem.domains)
        return problem.generator("random").dirichlet(np.full(size, self.concentration), self.k)


@dataclass(frozen=True)
class Random(_Drawn):
    """The best of k random mixtures on the objective: the honest rival of every search of the same cost."""

    def search(self, problem: Problem) -> Search:
        """k trainings."""
        outcomes = []
        for shares in self.draws(problem):
            outcomes.append((shares, (yield Train(shares))))
        return [min(outcomes, key=lambda pair: pair[1].objective)[0]]


@dataclass(frozen=True)
class RandomMean(_Drawn):
    """What a random mixture gives on average: all k, none chosen."""

    def search(self, problem: Problem) -> Search:
        """Nothing is asked."""
        return list(self.draws(problem))
        yield
