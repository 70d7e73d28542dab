"""The rule `curves` on losses that are known: how much of the gap two steps close, and which mixtures to keep.

Flows in: one power law for each skill, as fitted to real trainings; random starts. Flows out: one JSON line: the share of the gap from the
start to the best mixture, by largest change m and by the level at which a lower loss is kept.

    python -m benchmarks.curves_simulated --json
    python -m benchmarks.curves_simulated --fit runs/fidelity/*/retrainings.jsonl    # the power laws from trainings

Fit and step are the product's own (`idealmix.allocation`); who helps whom is known, as influence knew it in every suite that was measured.
Losses have the seed's noise, and the start is the mean of `RUNS` trainings. An odd draw has a fifth, useless domain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize
from scipy.stats import norm

from idealmix.allocation.curves import SEED_NOISE, Curves, curve
from idealmix.allocation.rules import wanted

Array = NDArray[np.float64]
SKILLS = ("mathematics", "coding", "reasoning", "instruction")
BASE = np.array([3.29, 0.68, 1.15, 2.0])  # of the shipped model on the demo's reference sets
TOKENS = np.array([125.0, 613.0, 387.0, 559.0])  # L = base (1 + n / TOKENS)^-POWER: `--fit`
POWER = np.array([0.36, 0.24, 0.27, 0.83])
ROW = np.array([10.9, 24.0, 17.6, 39.9, 58.0])  # tokens of a row; the last is chat's
BUDGET, RUNS, STEPS = 30_000, 5, 2
LUCK = 0.05  # standard deviation of a log loss between seeds: 0.04 to 0.09 were measured at 30,000 tokens


def losses(share: Array) -> Array:
    """True losses of the four skills."""
    return np.asarray(BASE * (1 + share[:4] * BUDGET / TOKENS) ** -POWER)


def objective(share: Array) -> float:
    """Their mean."""
    return float(losses(share).mean())


def best_of(size: int) -> float:
    """The lowest objective of any mixture."""
    found = minimize(
        objective, np.full(size, 1 / size), bounds=[(1e-4, 1)] * size, method="SLSQP",
        constraints={"type": "eq", "fun": lambda z: z.sum() - 1}, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    return float(found.fun)


def fitted(seen: Sequence[tuple[Array, Array, int]]) -> Curves:
    """Curves from shares, losses and numbers of runs."""
    now, size = seen[-1][0], len(seen[-1][0])
    power, pull = [], []
    for q in range(4):
        x = np.array([share[q] / now[q] for share, _, _ in seen])
        fall = np.array([np.log(BASE[q] / found[q]) for _, found, _ in seen])
        p, k = curve(x, fall, np.sqrt([runs for *_, runs in seen]) / (SEED_NOISE * fall[-1]))
        power.append(p)
        pull.append(tuple((k * np.eye(size)[q] / now[q]).tolist()))
    names = tuple(map(str, range(size)))
    return Curves(names, SKILLS, (0.25,) * 4, tuple(BASE.tolist()), tuple(power), tuple(pull), (0.0,) * 4)


def play(start: Array, m: float, level: float, rng: np.random.Generator) -> Array:
    """The mixture that is kept after the steps; a lower loss is kept where its one-sided p is below `level`."""

    def trained(share: Array, runs: int) -> tuple[Array, Array, int]:
        return share, losses(share) * np.exp(rng.normal(0, LUCK / np.sqrt(runs), 4)), runs

    seen = [trained(start, RUNS)]
    kept, everyone = 0, np.ones(len(start), dtype=bool)
    sd = LUCK * float(np.sqrt((seen[0][1] ** 2).sum())) / 4
    for _ in range(STEPS):
        at = seen[kept][0]
        curves = fitted([*(one for k, one in enumerate(seen) if k != kept), seen[kept]])
        gain = curves.gains(at)
        slope = -at * (gain - gain @ at)
        change = wanted(
            "curves",
            slope,
            at,
            everyone,
            m,
            np.nan,
            curves.beside(at),
        )
        new = trained((1 + change) * at, 1)
        z = float(new[1].mean() - seen[kept][1].mean()) / (sd * np.sqrt(1 + 1 / seen[kept][2]))
        seen.append(new)
        if norm.cdf(z) < level:
            kept = len(seen) - 1
        elif z > 1.645:
            m /= 2
    return seen[kept][0]


def measure(m: float, level: float, spread: float, draws: int) -> dict[str, Any]:
    """Shares of the gap over random starts: rows in equal numbers, times log-normal factors of standard deviation `spread`."""
    rng, shares, below = np.random.default_rng(0), [], []
    for number in range(draws):
        size = 4 + number % 2
        start = ROW[:size] * np.exp(rng.normal(0, spread, size))
        start /= start.sum()
        end = objective(play(start, m, level, rng))
        shares.append((objective(start) - end) / (objective(start) - best_of(size)))
        below.append(objective(start) - end)
    return {
        "m": m, "level": level, "spread": spread, "draws": draws, "mean": round(float(np.mean(shares)), 3),
        "median": round(float(np.median(shares)), 3), "least": round(min(shares), 3), "least_gain_nats": round(min(below), 4),
    }  # fmt: skip


def fit(paths: Sequence[Path]) -> dict[str, Any]:
    """The power law of each skill in its own domain's tokens, a factor for every file, by least squares of log losses."""
    lines = [
        (k, json.loads(line))
        for k, path in enumerate(paths)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    suite, found = np.array([k for k, _ in lines]), {}
    for name, base in zip(SKILLS, BASE):
        tokens = np.array([float(one["tokens_by_domain"][name]) for _, one in lines])
        log_loss = np.log([one["losses"][name] for _, one in lines])

        def residual(
            x: Array, tokens: Array = tokens, log_loss: Array = log_loss, base: float = base
        ) -> Array:
            factor = np.concatenate([[0.0], x[2:]])[suite]
            return np.asarray(
                np.log(base) - np.exp(x[1]) * np.log1p(tokens / np.exp(x[0])) + factor - log_loss
            )

        best = least_squares(residual, [np.log(500), np.log(0.5), *[0.0] * (len(paths) - 1)])
        found[name] = {
            "tokens": round(float(np.exp(best.x[0]))), "power": round(float(np.exp(best.x[1])), 2),
            "rms_log": round(float(np.sqrt(np.mean(best.fun**2))), 3), "trainings": len(lines),
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, nargs="+", help="fit the power laws to these trainings instead")
    parser.add_argument("--draws", type=int, default=80)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    options = parser.parse_args()
    if options.fit:
        print(json.dumps(fit(options.fit)))
        return
    rows = []
    for spread in (0.7, 0.28):
        for m in (1.0, 3.0, 9.0):
            for level in (0.05, 0.2, 0.5):
                rows.append(measure(m, level, spread, options.draws))
                if not options.json:
                    print(rows[-1], flush=True)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
