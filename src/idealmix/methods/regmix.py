"""RegMix: short trainings on random mixtures, a regression of the loss on the shares, the best predicted mixtures.

Liu et al. 2024, arXiv 2407.01492, section 3, with the sampling of the authors' code (github.com/sail-sg/regmix).
Flows in: outcomes of short trainings. Flows out: the mean of the best predicted shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Array, Problem, Search, Train, one_fraction

STRENGTHS = np.logspace(-1, np.log10(5), 15)
"""Concentrations of the Dirichlet draws, one picked for each: 0.1 (near a corner) to 5 (near the prior)."""

PRIOR_EXPONENT = 0.5
"""The prior is the natural shares to this power, scaled to sum to 1."""


def draw_shares(natural: Array, most: Array, count: int, generator: np.random.Generator) -> Array:
    """(count, D) draws of Dirichlet(strength * prior) that the pools can fill.

    Raises:
        InputError: hardly any draw can be filled.
    """
    prior = natural**PRIOR_EXPONENT / (natural**PRIOR_EXPONENT).sum()
    kept: list[Array] = []
    for _ in range(1000):
        strengths = generator.choice(STRENGTHS, size=count)
        # Dirichlet draws by their definition: gamma variables over their sum
        gammas = generator.standard_gamma(np.outer(strengths, prior))
        sums = gammas.sum(axis=1)
        shares = gammas[sums > 0] / sums[sums > 0, None]
        kept += list(shares[(shares <= most + 1e-9).all(axis=1)])
        if len(kept) >= count:
            return np.array(kept[:count])
    raise InputError(
        "random mixtures hardly ever fit into the pools at this budget",
        where="allocation.budget.size",
        mend="lower the budget, raise allocation.max_repeats, or add rows",
    )


def best_predicted(predicted: Array, shares: Array, keep: int) -> Array:
    """Mean of the `keep` shares of the lowest predicted loss (section 3.3: the mean over the best, not the best)."""
    return shares[np.argsort(predicted, kind="stable")[:keep]].mean(axis=0)


def linear_prediction(shares: Array, losses: Array, wanted: Array) -> Array:
    """Least squares of the loss on the shares, which sum to 1 and so carry the intercept."""
    return wanted @ np.linalg.lstsq(shares, losses, rcond=None)[0]


def tree_prediction(shares: Array, losses: Array, wanted: Array, seed: int) -> Array:
    """LightGBM as in the authors' code (1,000 trees, learning rate 0.01), with leaves that fit few runs."""
    import lightgbm

    options: dict[str, Any] = {
        "objective": "regression",
        "learning_rate": 0.01,
        "min_data_in_leaf": max(2, min(20, len(losses) // 8)),  # lightgbm's 20 would make no split of 32 runs
        "min_data_in_bin": 1,
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "verbose": -1,
    }
    model = lightgbm.train(options, lightgbm.Dataset(shares, losses, params=options), num_boost_round=1000)
    return np.asarray(model.predict(wanted), dtype=float)


@dataclass(frozen=True)
class RegMix:
    """The regression is of the objective.

    Attributes:
        runs: short trainings M (paper: 512 of a 1M-parameter model).
        fraction: of the budget in each.
        regressor: ``lightgbm``, or ``linear`` (the paper's other one), which suits few runs.
        candidates, keep: of `candidates` simulated mixtures the best `keep` are averaged.
    """

    runs: int = 32
    fraction: float = 0.1
    regressor: str = "lightgbm"
    candidates: int = 100_000
    keep: int = 128

    def __post_init__(self) -> None:
        one_fraction(self.fraction)
        if self.regressor not in ("lightgbm", "linear"):
            raise InputError(f"regressor is lightgbm or linear; found {self.regressor!r}")
        if not (self.runs >= 2 and 1 <= self.keep <= self.candidates):
            raise InputError("runs is at least 2, and keep lies between 1 and candidates")

    def search(self, problem: Problem) -> Search:
        """M short trainings.

        Raises:
            InputError: lightgbm is asked for and not installed.
        """
        if self.regressor == "lightgbm" and find_spec("lightgbm") is None:
            raise InputError(
                "RegMix with regressor: lightgbm needs lightgbm",
                where="methods.regmix.regressor",
                mend="pip install 'idealmix[methods]', or set regressor: linear",
            )
        generator = problem.generator("regmix")
        shares, losses = [], []
        for drawn in draw_shares(problem.natural, problem.most, self.runs, generator):
            outcome = yield Train(drawn, self.fraction)
            shares.append(outcome.shares)
            losses.append(outcome.objective)
        wanted = draw_shares(problem.natural, problem.most, self.candidates, generator)
        X, y = np.array(shares), np.array(losses)
        if self.regressor == "linear":
            predicted = linear_prediction(X, y, wanted)
        else:
            predicted = tree_prediction(X, y, wanted, problem.seed)
        return [best_predicted(predicted, wanted, self.keep)]
