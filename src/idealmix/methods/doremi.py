"""DoReMi: weights that a proxy model finds by distributionally robust optimisation over domains.

Xie et al. 2023, arXiv 2305.10429, algorithm 1, with the constants of the authors' code (github.com/sangmichaelxie/doremi,
``doremiv1``). Flows in: excess losses. Flows out: the mean over steps of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Adapt, Array, Problem, Search, Train, one_fraction


def doremi_step(weights: Array, excess: Array, eta: float, smoothing: float) -> Array:
    """Algorithm 1, one update: p <- softmax(log p + eta lambda), then p <- (1 - c) p + c / D.

    Args:
        weights: (D,) p.
        excess: (D,) lambda, mean over a domain's tokens of max(proxy's loss - reference's loss, 0).
    """
    with np.errstate(divide="ignore"):
        logits = np.log(weights) + eta * excess
    grown = np.exp(logits - logits.max())
    return (1 - smoothing) * grown / grown.sum() + smoothing / len(weights)


@dataclass
class DoReMiRule:
    """The weights during the proxy's training; they begin uniform."""

    weights: Array
    eta: float
    smoothing: float
    measures: Literal["excess_loss"] = field(default="excess_loss", init=False)
    interval: int = field(default=1, init=False)

    def update(self, measured: Array, rate: float) -> None:
        """One step of algorithm 1."""
        self.weights = doremi_step(self.weights, measured, self.eta, self.smoothing)

    def settings(self) -> dict[str, Any]:
        """See `protocol.Rule`."""
        return {"rule": "doremi", "eta": self.eta, "smoothing": self.smoothing}


@dataclass(frozen=True)
class DoReMi:
    """Reference model: SFT on the natural shares (joint). Proxy: the same base model, every domain in each batch.

    Attributes:
        eta: step of the weights (paper: 1).
        smoothing: c (paper: 1e-3; the authors' code and this: 1e-4).
        rounds: with 2 or more the reference model of the next round is trained on the weights of the one before
            ("iterated DoReMi", section 2).
        fraction: of the budget's steps for the proxy.
    """

    eta: float = 1.0
    smoothing: float = 1e-4
    rounds: int = 1
    fraction: float = 1.0

    def __post_init__(self) -> None:
        one_fraction(self.fraction)
        if not (self.rounds >= 1 and math.isfinite(self.eta) and self.eta >= 0 and 0 <= self.smoothing <= 1):
            raise InputError("rounds is at least 1, eta finite and not negative, smoothing from 0 to 1")

    def search(self, problem: Problem) -> Search:
        """A training and a proxy in each round."""
        shares = problem.natural
        for _ in range(self.rounds):
            reference = yield Train(shares)
            size = len(problem.domains)
            rule = DoReMiRule(np.full(size, 1 / size), self.eta, self.smoothing)
            history: Sequence[Array] = yield Adapt(rule, reference=reference, fraction=self.fraction)
            shares = np.mean(history, axis=0)
        return [shares]
