"""DynamixSFT: domains as the arms of a bandit, rewarded by how much one step on their rows would teach.

Shin et al. 2025, arXiv 2508.12116, section 4, equations 2 to 5. There is no public code. Flows in: look-ahead rewards.
Flows out: the mean over steps of the sampling weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from idealmix.errors import InputError
from idealmix.methods.protocol import Adapt, Array, Problem, Search, one_fraction


def smoothed_rewards(values: Array, rewards: Array, alpha: float) -> Array:
    """Equation 5: Q <- alpha Q + (1 - alpha) r, r scaled over the domains to 0 (smallest) .. 1 (largest) before."""
    spread = rewards.max() - rewards.min()
    scaled = (rewards - rewards.min()) / spread if spread > 0 else np.zeros_like(rewards)
    return alpha * values + (1 - alpha) * scaled


def sampling_weights(values: Array, prior: Array, beta: float, gamma: float) -> Array:
    """Equation 3: p = (1 - gamma) softmax(beta Q + log prior) + gamma / D."""
    grown = prior * np.exp(beta * (values - values.max()))
    return (1 - gamma) * grown / grown.sum() + gamma / len(values)


@dataclass
class DynamixSFTRule:
    """Q begins at 0, so the weights begin near the prior."""

    prior: Array
    beta: float
    gamma: float
    alpha: float
    interval: int
    measures: Literal["look_ahead"] = field(default="look_ahead", init=False)

    def __post_init__(self) -> None:
        self._values = np.zeros_like(self.prior)
        self.weights = sampling_weights(self._values, self.prior, self.beta, self.gamma)

    def update(self, measured: Array, rate: float) -> None:
        """Equations 5 and 3."""
        self._values = smoothed_rewards(self._values, measured, self.alpha)
        self.weights = sampling_weights(self._values, self.prior, self.beta, self.gamma)

    def settings(self) -> dict[str, Any]:
        """See `protocol.Rule`."""
        names = ("beta", "gamma", "alpha", "interval")
        return {"rule": "dynamixsft", "prior": self.prior.tolist(), **{n: getattr(self, n) for n in names}}


@dataclass(frozen=True)
class DynamixSFT:
    """The paper samples each batch by the weights of the moment. Here their mean over steps is the mixture: every method
    of a comparison ends in a fixed mixture that is trained in the same way, so the order in time is given up.

    Attributes:
        beta: sharpness (paper: 4 for a 1B model, 5 for 8B).
        gamma: share that is spread evenly.
        alpha: memory of the rewards.
        interval: optimiser steps between rewards; a training needs many times as many to move the weights.
        fraction: of the budget's steps for the proxy.
    """

    beta: float = 4.0
    gamma: float = 0.3
    alpha: float = 0.95
    interval: int = 50
    fraction: float = 1.0

    def __post_init__(self) -> None:
        one_fraction(self.fraction)
        if not (self.beta >= 0 and 0 <= self.gamma <= 1 and 0 <= self.alpha < 1 and self.interval >= 1):
            raise InputError("beta >= 0, gamma from 0 to 1, alpha from 0 to below 1, interval at least 1")

    def search(self, problem: Problem) -> Search:
        """One proxy."""
        rule = DynamixSFTRule(problem.natural, self.beta, self.gamma, self.alpha, self.interval)
        history = yield Adapt(rule, fraction=self.fraction)
        return [np.mean(history, axis=0)]
