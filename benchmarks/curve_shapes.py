"""How a capability's loss falls with the volume of its own domain in a held budget: the p and k that `curves` has to guess.

Flows in: generated suites whose domains are named after their skills, the shipped base model. Flows out: one JSON line: for every
suite and skill how far the log of its loss has fallen at the start, p and k of `fall = p log(1 + k x)` (x: volume over the start's)
by least squares over all trainings, what the fit leaves, and the elasticity of the fall at the start, k / ((1 + k) log(1 + k)).

    python -m benchmarks.curve_shapes --suites 31 34 --json

Each domain's volume is multiplied by 1/8 to 8 (as far as the budget goes), the others scaled so that the tokens stay. Trainings
are those of `benchmarks.step_rules` and shared with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

from benchmarks.step_rules import BLENDS, SUITES, Lab
from idealmix.moments import Array

FACTORS = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)
MOST = 0.9
"""Largest share of the budget that a factor may lead to."""


def shape(x: Array, fall: Array) -> dict[str, float]:
    """The best p and k of ``fall = p log(1 + k x)``; nothing is believed before.

    Args:
        x: (N,) volumes over the start's. fall: (N,) log of the base model's loss over the loss.
    """

    def left(logs: Array) -> Array:
        return np.asarray(np.exp(logs[0]) * np.log1p(np.exp(logs[1]) * x) - fall)

    found = least_squares(left, [np.log(0.4), np.log(5.0)], bounds=([-9.0, -9.0], [3.0, 18.0]))
    p, k = np.exp(found.x)
    return {
        "fall": float(p * np.log1p(k)),
        "p": float(p),
        "k": float(k),
        "rms": float(np.sqrt(np.mean(found.fun**2))),
        "elasticity": float(k / ((1 + k) * np.log1p(k))),
    }


def shapes(lab: Lab) -> dict[str, dict[str, float]]:
    """Of every skill of a suite, from all mixtures in which one domain was multiplied."""
    counts = [lab.start]
    for name, rows in lab.start.items():
        within = [f for f in FACTORS if f * rows * lab.bed.row_tokens[name] <= MOST * lab.bed.budget]
        counts += [lab.bed.changed(name, factor, hold=True) for factor in within]
    seen = [lab.trained(each, influence=False)[0] for each in counts]
    found = {}
    for skill, base in lab.base.items():
        x = np.array([one["counts"][skill] / lab.start[skill] for one in seen])
        found[skill] = shape(x, np.log([base / one["deciding"][skill] for one in seen]))
    return found


def main() -> None:
    named = sorted(set(SUITES) - set(BLENDS))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", type=int, nargs="+", default=[31, 34], choices=named)
    parser.add_argument("--seed", type=int, default=1, help="of the trainings")
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--output", type=Path, default=Path("runs/step-rules"))
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for suite in options.suites:
        found[str(suite)] = shapes(Lab(suite, options.seed, options.budget, options.output))
        for skill, one in found[str(suite)].items():
            print(suite, skill, {key: round(value, 3) for key, value in one.items()}, flush=True)
    if options.json:
        print(json.dumps({"budget": options.budget, "seed": options.seed, "suites": found}))


if __name__ == "__main__":
    main()
