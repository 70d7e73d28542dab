"""Mixtures that need no search, or hardly any: base, joint, uniform, temperature, each domain alone.

Flows in: the pools' natural shares. Flows out: shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Array, Note, Problem, Search, Train, simplex


@dataclass(frozen=True)
class Base:
    """The model without any training."""

    def search(self, problem: Problem) -> Search:
        """No mixture."""
        return []
        yield


@dataclass(frozen=True)
class Joint:
    """All pools together, each in proportion to its rows: joint SFT."""

    def search(self, problem: Problem) -> Search:
        """The natural shares."""
        return [problem.natural]
        yield


@dataclass(frozen=True)
class Uniform:
    """The same share of the budget for every domain."""

    def search(self, problem: Problem) -> Search:
        """1 / D each."""
        return [np.full(len(problem.domains), 1 / len(problem.domains))]
        yield


@dataclass(frozen=True)
class Temperature:
    """p_i proportional to u_i^(1 / T), u the natural shares.

    Raffel et al. 2020, arXiv 1910.10683, section 3.5.2, "temperature-scaled mixing" (there T = 2 did best of those above
    1). T = 1 is joint, T to infinity is uniform.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"the temperature is above 0; found {self.temperature!r}")

    def search(self, problem: Problem) -> Search:
        """The flattened shares."""
        return [flattened(problem.natural, self.temperature)]
        yield


def flattened(natural: Array, temperature: float) -> Array:
    """u^(1 / T), scaled to sum to 1."""
    return simplex(np.asarray(natural) ** (1 / temperature), "the temperature")


@dataclass(frozen=True)
class Specific:
    """Each domain alone at the whole budget; the best on the objective.

    The "best specific SFT" of Ming et al., arXiv 2505.12762, table 1. Domains whose pools cannot fill the budget are left
    out, and it is said by how much they are short.
    """

    def search(self, problem: Problem) -> Search:
        """D trainings at most."""
        outcomes = []
        for i, name in enumerate(problem.domains):
            if problem.most[i] < 1 - 1e-9:
                short = (1 - problem.most[i]) * problem.amount
                yield Note(
                    f"specific: {name} alone is {short:,.0f} {problem.unit} short of the budget; left out"
                )
                continue
            alone = np.eye(len(problem.domains))[i]
            outcomes.append((alone, (yield Train(alone))))
        if not outcomes:
            largest = float(np.max(problem.most)) * problem.amount
            raise InputError(
                f"no domain alone can fill the budget of {problem.amount:,.0f} {problem.unit}: the largest gives "
                f"{largest:,.0f}, which is {problem.amount - largest:,.0f} short",
                where="method",
                mend="lower allocation.budget.size, raise allocation.max_repeats, or leave out `specific`",
            )
        return [min(outcomes, key=lambda pair: pair[1].objective)[0]]
