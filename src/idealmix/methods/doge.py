"""DoGE: weights by how well a domain's gradient agrees with that of what is to be learnt.

Fan et al. 2024, arXiv 2310.15393, algorithm 1, with the normalisation and the clipping of the authors' code
(github.com/Olivia-fsm/DoGE). Flows in: alignments of gradients. Flows out: the mean over steps of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Adapt, Array, Problem, Search, one_fraction

LARGEST_SCORE = 5.0
"""The authors' clip of a normalised score, in learning rates; the lower end is 0."""


def doge_step(weights: Array, alignment: Array, rate: float, mu: float) -> Array:
    """Equation 6 (mirror descent): p <- softmax(log p + clip(rate s, 0, 5 rate) / mu).

    Args:
        weights: (D,) p.
        alignment: (D,) s_i = <g_i, g_target> / mean_j |g_j|.
        rate: the learning rate of this step.
        mu: weight of the Bregman divergence.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(weights) + np.clip(rate * alignment, 0.0, LARGEST_SCORE * rate) / mu
    grown = np.exp(logits - logits.max())
    return grown / grown.sum()


@dataclass
class DoGERule:
    """The weights during the proxy's training; they begin uniform."""

    weights: Array
    mu: float
    measures: Literal["alignment"] = field(default="alignment", init=False)
    interval: int = field(default=1, init=False)

    def update(self, measured: Array, rate: float) -> None:
        """One step of equation 6."""
        self.weights = doge_step(self.weights, measured, rate, self.mu)

    def settings(self) -> dict[str, Any]:
        """See `protocol.Rule`."""
        return {"rule": "doge", "mu": self.mu}


@dataclass(frozen=True)
class DoGE:
    """The proxy trains with sum_i p_i g_i, all domains in each step.

    Attributes:
        target: ``references`` (out-of-domain DoGE: the gradient halves of the reference sets, weighted as in the
            objective) or ``domains`` (the paper's universal form: s_i = <g_i, sum of g_j, j not i>).
        mu: the smaller, the faster weights move. The authors' code has 0.05 at a rate of 5e-4; a score is at most 5 rates, so
            with small rates the weights hardly move.
        fraction: of the budget's steps for the proxy.
    """

    target: str = "references"
    mu: float = 0.05
    fraction: float = 1.0

    def __post_init__(self) -> None:
        one_fraction(self.fraction)
        if self.target not in ("references", "domains"):
            raise InputError(f"target is references or domains; found {self.target!r}")
        if not self.mu > 0:
            raise InputError(f"mu is above 0; found {self.mu!r}")

    def search(self, problem: Problem) -> Search:
        """One proxy.

        Raises:
            InputError: ``target: references`` without a reference set.
        """
        wanted = self.target == "references"
        if wanted and not problem.weights:
            raise InputError(
                "DoGE needs a reference set: domains are weighted by how their gradients agree with its gradient",
                where="references",
                mend="name one, or set methods.doge.target: domains (then domains are weighted by each other)",
            )
        size = len(problem.domains)
        rule = DoGERule(np.full(size, 1 / size), self.mu)
        history = yield Adapt(rule, towards_references=wanted, fraction=self.fraction)
        return [np.mean(history, axis=0)]
