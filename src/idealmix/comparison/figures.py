"""A method's figures over seeds: mean, standard error, and the difference to joint, paired by seed.

Flows in: one figure for each seed, of a method and of joint. Flows out: plain JSON data. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from idealmix.certainty import p_value
from idealmix.report.words import verdict

Runs = Sequence[Mapping[str, Any]]


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its standard error sd / sqrt(k) (null from one seed), k."""
    k = len(values)
    se = float(np.std(values, ddof=1) / math.sqrt(k)) if k > 1 else None
    return {"mean": float(np.mean(values)), "se": se, "n": k}


def paired(values: Sequence[float], joint: Sequence[float], *, lower_is_better: bool) -> dict[str, Any]:
    """The mean over seeds of value minus joint's at the same seed, with k - 1 degrees of freedom, and its verdict.

    With one seed there is no error, and the verdict is "undecided".
    """
    found = over_seeds([a - b for a, b in zip(values, joint, strict=True)])
    dof = found["n"] - 1 or None
    p = p_value(found["mean"], found["se"], dof) if dof else None
    says = verdict(found["mean"], found["se"], dof, lower_is_better=lower_is_better)
    return {"value": found["mean"], "se": found["se"], "dof": dof, "p": p, "verdict": says}


def figures(runs: Runs, joint: Runs) -> dict[str, Any]:
    """Every figure of a method (see `of_run`): over seeds, and against joint."""
    out: dict[str, Any] = {}
    own, others = [of_run(run) for run in runs], [of_run(run) for run in joint]
    for name in own[0]:
        values, reference = [run[name] for run in own], [run[name] for run in others]
        out[name] = {
            **over_seeds(values),
            "difference": paired(values, reference, lower_is_better=not name.startswith("score")),
        }
    return out


def of_run(run: Mapping[str, Any]) -> dict[str, float]:
    """A run's figures by name: ``objective``, ``test_loss`` and ``score`` (means over sets), and each set's own."""
    found = {"objective": run["objective"]}
    for key, each in (("test_loss", run["tests"]), ("score", run["scores"])):
        if each:
            found[key] = float(np.mean(list(each.values())))
            found |= {f"{key}.{name}": value for name, value in each.items()}
    return found


def gain_per_epoch(difference: Mapping[str, Any], epochs: float) -> float | None:
    """How much lower than joint's the headline figure is for each epoch of search; null where nothing was searched."""
    return -difference["value"] / epochs if epochs > 0 else None
