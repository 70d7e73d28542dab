"""DMO: a scaling law of each domain's own loss, fitted on small perturbed trainings, then minimised over shares.

Li, Liu & Xing 2025, "Data Mixing Optimization for Supervised Fine-Tuning", arXiv 2508.11953 (ICML 2025). The law:

    L_q(w) = c_q (w_q N + gamma_q ((1 - w_q) N)^alpha_q)^(-beta_q) + e_q

w_q N is the domain's own data, the second term is what the other domains' data is worth to it. Flows in: outcomes of
small trainings. Flows out: the shares of the smallest weighted sum of the fitted losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize

from idealmix.errors import InputError
from idealmix.methods.protocol import Array, Note, Problem, Search, Train, one_fraction, simplex


@dataclass(frozen=True)
class Law:
    """The fitted constants of one loss."""

    c: float
    gamma: float
    alpha: float
    beta: float
    e: float

    def loss(self, own: Array, others: Array) -> Array:
        """At amounts of the domain's own and of all other data."""
        return self.c * (own + self.gamma * others**self.alpha) ** -self.beta + self.e


def fit_law(own: Array, others: Array, losses: Array) -> Law:
    """Robust least squares (Huber) from several starts; all constants positive, alpha at most 1.

    Args:
        own, others: (N,) amounts of each training, in any one unit > 0 (not both 0).
        losses: (N,) of the domain's reference set.
    """

    def law(x: Array) -> Law:
        c, gamma, beta, e = np.exp(x[:4])
        return Law(float(c), float(gamma), float(1 / (1 + np.exp(-x[4]))), float(beta), float(e))

    def residuals(x: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            found = law(x).loss(own, others) - losses
        return np.nan_to_num(found, nan=1e6, posinf=1e6, neginf=-1e6)

    scale = float(np.median(own + others))
    best = None
    for beta in (0.1, 0.3, 1.0):
        for rest in (0.1, 0.5, 0.9):
            floor = rest * float(losses.min())
            c = max(float(np.median(losses)) - floor, 1e-6) * scale**beta
            start = np.array([np.log(c), np.log(0.1), np.log(beta), np.log(max(floor, 1e-6)), 0.0])
            bounds = (start * 0 - 30.0, start * 0 + 40.0)
            found = least_squares(residuals, start, bounds=bounds, loss="huber", f_scale=0.01, max_nfev=2000)
            if best is None or found.cost < best.cost:
                best = found
    return law(best.x)  # type: ignore[union-attr]


def minimise(laws: dict[int, tuple[float, Law]], most: Array, amount: float) -> Array:
    """The shares that minimise sum_q weight_q L_q, by SLSQP from several starts.

    Args:
        laws: by the domain's place: its weight in the objective, its law.
        most: (D,) the largest shares.
    """
    size = len(most)

    def total(w: Array) -> float:
        w = np.clip(w, 1e-9, 1.0)
        return sum(
            float(weight * law.loss(w[i] * amount, (1 - w[i]) * amount)) for i, (weight, law) in laws.items()
        )

    one = {"type": "eq", "fun": lambda w: w.sum() - 1}
    starts = [np.full(size, 1 / size), *(0.5 * np.eye(size) + 0.5 / size)]
    bounds = [(0.0, float(min(1.0, high))) for high in most]
    found = [
        minimize(total, start, method="SLSQP", bounds=bounds, constraints=[one])  # type: ignore[call-overload]
        for start in starts
    ]
    best = min((result for result in found if np.isfinite(result.fun)), key=lambda result: float(result.fun))
    return simplex(np.clip(best.x, 0.0, None), "dmo")


@dataclass(frozen=True)
class DMO:
    """Each domain with a reference set of its own name is perturbed by every ratio, the others stay.

    Domains without one have no loss of their own to model: they enter as other domains' data only.

    Attributes:
        ratios: of a domain's amount in the perturbed trainings; 1 (nothing perturbed) is one training for all.
        fraction: of the budget in the training without perturbation (equal amounts of every domain); others are as
            much larger or smaller as the perturbed domain makes them.
    """

    ratios: tuple[float, ...] = (0.5, 2 / 3, 1.0, 2.0, 3.0)
    fraction: float = 0.2

    def __post_init__(self) -> None:
        one_fraction(self.fraction)
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in self.ratios))
        if len(set(self.ratios)) < 2 or not all(0 < ratio <= 10 for ratio in self.ratios):
            raise InputError("ratios are two or more numbers above 0 and at most 10")

    def search(self, problem: Problem) -> Search:
        """(ratios other than 1) x (domains with a reference set) + 1 small trainings.

        Raises:
            InputError: a reference set of positive weight that no domain is named after, or too few trainings.
        """
        names = problem.domains
        strays = [name for name, weight in problem.weights.items() if weight > 0 and name not in names]
        if strays:
            raise InputError(
                f"DMO models the loss on each reference set by the domain of the same name; {strays[0]!r} has none",
                where=f"references.{strays[0]}",
                mend="give the set its domain's name, or its weight 0, or use another method",
            )
        size = len(names)
        equal = np.full(size, 1 / size)
        modelled = [i for i, name in enumerate(names) if problem.weights.get(name, 0.0) > 0]
        wanted = [equal]
        for i in modelled:
            wanted += [
                np.where(np.arange(size) == i, ratio, 1.0) / size for ratio in self.ratios if ratio != 1
            ]
        if len(wanted) < 6:
            yield Note(f"dmo: five constants are fitted to {len(wanted)} trainings: give more ratios")
        outcomes = []
        for amounts in wanted:
            fraction = float(amounts.sum()) * self.fraction
            outcomes.append((yield Train(simplex(amounts, "dmo"), min(fraction, 1.0))))
        laws = {}
        for i in modelled:
            own = np.array([outcome.shares[i] * outcome.amount for outcome in outcomes])
            every = np.array([outcome.amount for outcome in outcomes])
            losses = np.array([outcome.losses[names[i]] for outcome in outcomes])
            laws[i] = (problem.weights[names[i]], fit_law(own, every - own, losses))
        return [minimise(laws, problem.most, problem.amount)]
