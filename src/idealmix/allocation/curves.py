"""Learning curves by capability: what its losses so far say about volumes that were not tried.

Flows in: the base model's losses, volumes and losses of every trained mixture, influence's attribution. Flows out:
``Curves``: gains for each unit of any mixture, for the rule ``curves``. Pure numpy and scipy.

    L_q(n) = L_q(0) (1 + k_q x_q(n))^-p_q,    x_q(n) = 1 + sum_i a_qi (n_i / N_i - 1),    sum_i |a_qi| = 1

N: the volumes at which influence was measured; a_qi: domain i's part of what the domains do for capability q there, below 0 where it
hurts. Influence says who helps whom, the losses say how much is left to gain: neither can do the other's part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from idealmix.influence_matrix import InfluenceMatrix
from idealmix.volumes import Array

SCALE, SCALE_SPREAD = 10.0, 2.0
"""What k is before a second mixture is seen, and its log's standard deviation; of p nothing is believed. So a fall of the loss, large or
small, is taken to be as far on its way: 1 % more volume, 0.4 % more of the fall (docs/results/step.md, *What the curves believe*)."""
SEED_NOISE, SEED_NOISE_DOF = 0.1, 4
"""Standard deviation of a fall between training seeds, as a part of the fall, and how much that counts beside replicates."""
SMALLEST_POWER = 1e-9
LARGEST_POWER = 2.0  # steeper curves make the rule's iteration swing


@dataclass(frozen=True)
class Tried:
    """A mixture that was trained. volumes: by domain, in the budget's unit; losses: by reference; runs: trainings behind them."""

    volumes: Mapping[str, float]
    losses: Mapping[str, float]
    runs: int = 1


@dataclass(frozen=True)
class Curves:
    """One fitted curve for each reference set.

    Attributes:
        domains, references: names, (D,) and (R,).
        weights: dO/dL_q, (R,).
        base: L_q(0), nats per supervised token, (R,).
        power: p_q, (R,).
        pull: k_q a_qi / N_i, per unit of volume, (R, D).
        apart: k_q (1 - sum_i a_qi), (R,): what training does for a set whatever the mixture. 0 where no domain hurts it.
    """

    domains: tuple[str, ...]
    references: tuple[str, ...]
    weights: tuple[float, ...]
    base: tuple[float, ...]
    power: tuple[float, ...]
    pull: tuple[tuple[float, ...], ...]
    apart: tuple[float, ...]

    def losses(self, volume: Array) -> Array:
        """Predicted losses, (R,), of a mixture (D,)."""
        return np.array(self.base) * self._reach(volume) ** -np.array(self.power)

    def gains(self, volume: Array) -> Array:
        """-dO/dn_i, (D,): what one more unit of each domain takes off the objective."""
        power = np.array(self.power)
        slope = np.array(self.base) * power * self._reach(volume) ** (-power - 1)
        return np.array((np.array(self.weights) * slope) @ np.array(self.pull))

    def objective(self, volume: Array) -> float:
        """The predicted objective of a mixture (D,), up to a constant."""
        return float(np.array(self.weights) @ self.losses(volume))

    def beside(self, volume: Array) -> Callable[[Array], tuple[float, Array]]:
        """Objective and gains by relative changes (D,) of a mixture's volumes (D,)."""
        return lambda change: (self.objective((1 + change) * volume), self.gains((1 + change) * volume))

    def _reach(self, volume: Array) -> Array:
        return 1 + np.maximum(np.array(self.apart) + np.array(self.pull) @ volume, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        plain = {key: list(value) for key, value in asdict(self).items()}
        return {**plain, "pull": [list(row) for row in self.pull]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curves:
        """The inverse of `to_json`."""
        plain = {key: tuple(data[key]) for key in ("domains", "references", "weights", "base", "power")}
        # results of before there was `apart` took the parts of a sum that was all there is
        apart = tuple(data.get("apart") or [0.0] * len(plain["base"]))
        return cls(**plain, pull=tuple(map(tuple, data["pull"])), apart=apart)


def attribution(matrix: InfluenceMatrix, names: Sequence[str], volume: Array) -> Array:
    """a (R, D): each domain's part of what the domains do for a reference set, below 0 where it hurts; absolute values add up to 1.

    Of free volumes, on the rows that growth would act on. Entries are shrunk by their errors (positive-part James-Stein)
    towards what an average unit of the mixture does: a domain that cannot be told from the others is taken for one of them.
    Parts of the sum of absolute values, not of the sum: that is near 0 where domains that hurt undo those that help.

    Args:
        volume: of each domain where influence was measured, (D,).
    """
    at = [matrix.domains.index(name) for name in names]
    helped, se, _ = (part[:, at] for part in replace(matrix, centred=False).entries("acting"))
    helped, se = -np.nan_to_num(helped), np.where(np.isfinite(se), se, np.inf)
    average = helped.sum(axis=1, keepdims=True) * volume / volume.sum()
    beside = helped - average
    doubt = np.divide(se, np.abs(beside), out=np.full_like(se, np.inf), where=beside != 0)
    helped = average + beside * np.clip(1 - doubt**2, 0.0, 1.0)
    whole = np.abs(helped).sum(axis=1, keepdims=True)
    return np.divide(helped, whole, out=np.zeros_like(helped), where=whole > 0)


def fit(
    matrix: InfluenceMatrix,
    weights: Mapping[str, float],
    base: Mapping[str, float],
    seen: Sequence[Tried],
    at: Tried,
    noise: Mapping[str, float],
) -> tuple[Curves | None, str]:
    """Fit a curve to each reference set of the matrix; one that has no weight and cannot have a curve gets a flat one.

    Args:
        matrix: influence measured at the mixture `at`.
        weights: dO/dL_q; of sets that are left out 0.
        base: the untrained model's losses.
        seen: every mixture that was trained so far, `at` among them.
        noise: standard deviation of the fall of each set's log loss between training seeds, as a part of it (`seed_noise`).

    Returns:
        The curves and "", or None and why there are none: training did not lower the loss on a set that counts.
    """
    names, references = tuple(sorted(at.volumes)), matrix.references
    at_n = np.array([at.volumes[name] for name in names])
    parts = attribution(matrix, names, at_n)
    power, pull, apart = [], [], []
    for q, part in zip(references, parts):
        if not 0 < at.losses[q] < base[q]:
            if weights.get(q, 0.0):
                return None, f"training did not lower the loss on {q}"
            power.append(0.0)
            pull.append((0.0,) * len(names))
            apart.append(0.0)
            continue
        per_unit = np.divide(part, at_n, out=np.zeros_like(part), where=at_n > 0)
        fixed = float(1 - part.sum())
        x = np.array([max(fixed + per_unit @ np.array([one.volumes[n] for n in names]), 0.0) for one in seen])
        log_fall = np.log(base[q]) - np.log([one.losses[q] for one in seen])
        whole = np.log(base[q] / at.losses[q])
        p, k = curve(x, log_fall, np.sqrt([one.runs for one in seen]) / (noise[q] * whole))
        power.append(p)
        pull.append(tuple((k * per_unit).tolist()))
        apart.append(k * fixed)
    found = Curves(
        names, references, tuple(weights.get(q, 0.0) for q in references), tuple(base[q] for q in references), tuple(power), tuple(pull),
        tuple(apart),
    )  # fmt: skip
    return found, ""


def seed_noise(base: Mapping[str, float], runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Standard deviation of the fall of each set's log loss between training seeds, as a part of it, from trainings of one mixture."""
    found = {}
    for q, before in base.items():
        falls = np.log(before) - np.log([losses[q] for losses in runs])
        whole, square, dof = float(falls.mean()), float(((falls - falls.mean()) ** 2).sum()), len(runs) - 1
        if whole <= 0:  # nothing was learned, so there is no curve
            square, whole, dof = 0.0, 1.0, 0
        found[q] = float(
            np.sqrt((SEED_NOISE_DOF * SEED_NOISE**2 + square / whole**2) / (SEED_NOISE_DOF + dof))
        )
    return found


def curve(x: Array, log_fall: Array, weight: Array) -> tuple[float, float]:
    """The most probable p and k of log_fall = p log(1 + k x), by least squares on their logs.

    Args:
        x, log_fall: of every mixture, (N,), some fall above 0. weight: 1 over each fall's standard deviation, (N,).
    """

    def residuals(logs: Array) -> Array:
        p, k = np.exp(logs)
        return np.concatenate(
            [(p * np.log1p(k * x) - log_fall) * weight, [(logs[1] - np.log(SCALE)) / SCALE_SPREAD]]
        )

    bounds = ([np.log(SMALLEST_POWER), np.log(1e-6)], [np.log(LARGEST_POWER), np.log(1e9)])
    start = np.clip(log_fall.max() / np.log1p(SCALE), 2 * SMALLEST_POWER, LARGEST_POWER / 2)
    found = least_squares(residuals, [np.log(start), np.log(SCALE)], bounds=bounds)
    p, k = np.exp(found.x)
    return float(p), float(k)
