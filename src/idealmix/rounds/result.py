"""A finished run as data: ``result.json`` and ``manifest.json``. Every key is described in docs/files.md.

Flows in: the `Story` that the loop told. Flows out: plain JSON data; all times are in the ``timing`` block, so two runs
of the same configuration differ nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from idealmix import __version__
from idealmix.evaluation.score_result import ScoreResult
from idealmix.evaluation.set_loss import SetLoss, paired_difference
from idealmix.rounds.folder import RunFolder

if TYPE_CHECKING:
    from idealmix.rounds.inputs import Inputs
    from idealmix.rounds.loop import Round, Story

_PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "numpy", "scipy")


def assemble(story: Story, folder: RunFolder) -> dict[str, Any]:
    """The content of ``result.json``."""
    config, state, first = story.config, story.state, story.rounds[0]
    if state is None:
        raise RuntimeError("a run is assembled when its loop has ended")
    values = story.goal.seed_values()
    seconds = folder.seconds()
    return {
        "format": 1,
        "name": folder.path.name,
        "model": config.model,
        "method": config.method,
        "budget": config.allocation.budget.model_dump(),
        "objective": config.objective,
        "domains": list(config.domains),
        "references": list(config.references),
        "weights": {name: source.weight for name, source in config.references.items()},
        "rounds": [_round(story, one) for one in story.rounds],
        "base": {
            "losses": _figures(story.base.deciding),
            "objective": _objective(story, story.base.deciding),
            **_scored(story.scores.get("base")),
            "watched_scores": _figures(story.base.scores),
        },
        "replicates": {
            "count": len(story.goal.replicates),
            "objectives": values,
            "seed_sd_objective": story.goal.seed_spread()[0],
        },
        "best": state.best,
        "ended": state.reason,
        "outlook": story.outlook.to_json() if story.outlook else None,
        "final": _final(story),
        "warnings": [*story.warnings, *(w for one in story.rounds for w in one.trained.record.warnings)],
        "facts": {
            "idealmix": __version__,
            **versions(),
            "seed": config.seed,
            "hardware": hardware(),
            "processes": first.trained.record.processes,
        },
        "timing": {"total_s": round(sum(seconds.values()), 1), "phases": seconds},
    }


def manifest(story: Story, inputs: Inputs) -> dict[str, Any]:
    """The content of ``manifest.json``: what the run was made from."""
    config = story.config
    return {
        "idealmix": __version__,
        "versions": versions(),
        "hardware": hardware(),
        "model": config.model,
        "seeds": {"run": config.seed, "rounds": [one.trained.record.seed for one in story.rounds]},
        "data": inputs.facts(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The machine in words."""
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    machine = f"{cores} CPU cores ({platform.machine()})"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        machine = f"{', '.join(names)}; {machine}"
    return machine


def _round(story: Story, one: Round) -> dict[str, Any]:
    record, mixture, first = one.trained.record, one.mixed.mixture, story.rounds[0]
    from_start = None
    if one is not first:
        difference = story.goal.difference(one.evaluated.deciding, first.evaluated.deciding)
        error, freedom = difference.error()
        from_start = {"value": difference.value, "se": finite(error), "dof": finite(freedom)}
    decision = one.decision
    return {
        "index": one.index,
        "m": one.m,
        "counts": mixture.counts,
        "rows": record.rows,
        "tokens": record.tokens,
        "supervised_tokens": record.supervised_tokens,
        "steps": record.steps,
        "tokens_by_domain": mixture.tokens_by_domain,
        "supervised_tokens_by_domain": mixture.supervised_tokens_by_domain,
        "losses": _figures(one.evaluated.deciding),
        "gradient_half_losses": _figures(one.evaluated.gradient),
        "objective": _objective(story, one.evaluated.deciding),
        "scores": _figures(one.evaluated.scores),
        "difference": None
        if decision is None
        else {"value": decision.value, "se": decision.se, "dof": finite(decision.dof), "p": decision.p},
        "difference_from_start": from_start,
        "decision": decision.outcome if decision else "start",
        "reason": f"{decision.reason} {one.after.reason}"
        if decision and one.after
        else "Round 0 is the first to beat.",
        "influence": one.influence.to_json() if one.influence else None,
        "allocation": one.allocation.to_json() if one.allocation else None,
    }


def _figures(found: Mapping[str, SetLoss] | Mapping[str, ScoreResult]) -> dict[str, Any]:
    return {name: one.figures() for name, one in found.items()}


def _objective(story: Story, sets: dict[str, SetLoss]) -> dict[str, Any]:
    return story.goal.value(sets).to_json()


def _scored(scored: dict[str, Any] | None) -> dict[str, Any]:
    """Test losses and scores as a table's figures; the rows stay in ``tests.json``."""
    if scored is None:
        return {"tests": {}, "scores": {}}
    return {
        "tests": {name: SetLoss.from_json(loss).figures() for name, loss in scored["tests"].items()},
        "scores": _figures({name: ScoreResult.from_json(one) for name, one in scored["scores"].items()}),
    }


def _final(story: Story) -> dict[str, Any] | None:
    """Joint (round 0) against the chosen mixture on the test sets; None without test sets."""
    if "joint" not in story.scores or story.state is None:
        return None
    first, best = story.rounds[0], story.rounds[story.state.best]
    joint, chosen = story.scores["joint"], story.scores["chosen"]
    losses, scores = {}, {}
    for name in joint["tests"] if best is not first else ():
        pair = (SetLoss.from_json(chosen["tests"][name]), SetLoss.from_json(joint["tests"][name]))
        value, se, dof = paired_difference(*pair)
        losses[name] = {"value": value, "se": finite(se), "dof": finite(dof)}
    for name, before in joint["scores"].items() if best is not first else ():
        after = chosen["scores"][name]
        if before["per_row"] and after["per_row"]:
            gains = np.array([after["per_row"][row] - value for row, value in before["per_row"].items()])
            error = float(np.std(gains, ddof=1) / math.sqrt(gains.size)) if gains.size > 1 else None
            scores[name] = {"value": float(gains.mean()), "se": error, "dof": int(gains.size) - 1}
    return {
        **{
            label: {
                **_scored(scored),
                **{
                    key: getattr(one.trained.record, key)
                    for key in ("rows", "tokens", "supervised_tokens", "steps")
                },
            }
            for label, scored, one in (("joint", joint, first), ("chosen", chosen, best))
        },
        "test_differences": losses,
        "score_differences": scores,
    }


def finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN: null."""
    return float(value) if value is not None and math.isfinite(value) else None
