"""Every method on one budget: the same base model, tokens, optimiser steps, seeds and evaluation.

Flows in: a configuration, names of methods, a number of seeds. Flows out: ``<output>/compare/``: ``comparison.json``
(docs/files.md), ``comparison.html``, and the trainings, each done once whoever asked for it.

With each seed a method searches anew and its mixture is trained on that seed, so the error over seeds has the search's own
luck in it. A search sees the reference sets alone: the deciding halves by losses, the gradient halves by gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from idealmix import __version__
from idealmix.comparison.executor import Executor, Final, Found
from idealmix.comparison.figures import figures, gain_per_epoch
from idealmix.config import Config
from idealmix.disk import write_json, write_text
from idealmix.errors import InputError
from idealmix.evaluation.set_loss import SetLoss
from idealmix.methods import check_name, load_method
from idealmix.methods.protocol import Method
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.loop import SEED_STRIDE, opened
from idealmix.rounds.phases import Evaluated
from idealmix.rounds.result import hardware, versions
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch

DEFAULT = ("base", "joint", "uniform", "temperature", "random", "doremi", "doge", "ideal")
"""What is compared where nothing is asked; the others are dearer."""


def compare(
    config: Config, methods: Sequence[str], seeds: int, watch: Watch, team: Team | None = None
) -> dict[str, Any]:
    """Compare methods, or go on with it.

    Args:
        methods: names, or ``module:Class``; base and joint are always there, first.
        seeds: how many; they begin with the configuration's.

    Returns:
        The content of ``comparison.json``.

    Raises:
        InputError: an unknown method, something that a method needs and that is absent, a budget beyond the pools.
        IdealmixError: a phase failed; what was finished is kept.
    """
    if seeds < 1:
        raise InputError(f"{seeds} seeds cannot be compared", where="--seeds", mend="give 1 or more")
    names = list(dict.fromkeys(["base", "joint", *methods]))
    for name in names:
        if problem := check_name(name):
            raise InputError(problem, where="--methods")
    made = {name: load_method(name, config.methods.get(name)) for name in names}
    if config.search is not None:
        watch.note("The search block has no effect here: every training of a comparison has the full size.")
    team = team or Team()
    # a comparison of other methods, or with other options, shares what is the same
    same = config.model_copy(
        update={"output": str(Path(config.output) / "compare"), "method": "ideal", "methods": {}}
    )
    with opened(same, watch, team) as (folder, inputs):
        comparison = _Comparison(same, inputs, folder, team, watch)
        for name, method in made.items():  # what a method lacks is told before anything is trained
            comparison.executor(name, config.seed).check(method)
        every = [config.seed + number * SEED_STRIDE for number in range(seeds)]
        runs = {name: [comparison.run(name, made[name], seed) for seed in every] for name in names}
        content = comparison.content(runs, every)
        team.lead(lambda: _write(folder, content))
    return content


def _write(folder: RunFolder, content: dict[str, Any]) -> None:
    from idealmix.comparison.page import build

    write_json(folder.path / "comparison.json", content)
    write_text(folder.path / "comparison.html", build(content))


class _Comparison:
    """All methods at all seeds in one folder."""

    def __init__(self, config: Config, inputs: Inputs, folder: RunFolder, team: Team, watch: Watch) -> None:
        self.config, self.inputs, self.folder, self.team, self.watch = config, inputs, folder, team, watch

    def run(self, name: str, method: Method, seed: int) -> dict[str, Any]:
        """One method at one seed: its mixtures, figures and cost, as plain data."""
        executor = self.executor(name, seed)
        found = executor.find(method)
        ends = [self._figures(executor, final) for final in found.finals] or [self._figures(executor, None)]
        return {
            "seed": seed,
            "mixtures": [self._mixture(executor, final) for final in found.finals],
            "objective": float(np.mean([end["objective"] for end in ends])),
            **{key: _mean([end[key] for end in ends]) for key in ("losses", "tests", "scores")},
            "search": self._cost(found),
        }

    def executor(self, name: str, seed: int) -> Executor:
        """Of one method at one seed."""
        return Executor(
            self.config,
            self.inputs,
            self.folder,
            self.team,
            self.watch,
            seed=seed,
            own=f"searches/{name.replace(':', '.')}-seed-{seed}",
            label=f"{name}, seed {seed}",
        )

    def content(self, runs: dict[str, list[dict[str, Any]]], seeds: list[int]) -> dict[str, Any]:
        """``comparison.json``."""
        config, joint = self.config, runs["joint"]
        headline = "test_loss" if self.inputs.tests else "objective"
        methods = {}
        for name, each in runs.items():
            found = figures(each, joint)
            epochs = float(np.mean([run["search"]["epochs"] for run in each]))
            methods[name] = {
                "figures": found,
                "search_epochs": epochs,
                "search_seconds": float(np.mean([run["search"]["seconds"] for run in each])),
                "gain_per_epoch": gain_per_epoch(found[headline]["difference"], epochs),
                "runs": each,
            }
        seconds = self.folder.seconds()
        return {
            "format": 1,
            "name": self.folder.path.parent.name,
            "model": config.model,
            "objective": config.objective,
            "headline": headline,
            "budget": {
                "unit": config.allocation.budget.unit,
                "epochs": config.training.epochs,
                **_budget(joint),
            },
            "domains": list(config.domains),
            "references": list(config.references),
            "tests": list(config.tests),
            "scores": list(config.final_scores),
            "seeds": seeds,
            "methods": methods,
            "warnings": list(self.inputs.warnings),
            "facts": {"idealmix": __version__, **versions(), "hardware": hardware()},
            "timing": {"total_s": round(sum(seconds.values()), 1), "phases": seconds},
        }

    def _figures(self, executor: Executor, final: Final | None) -> dict[str, Any]:
        evaluated = final.evaluated if final else executor.phases.evaluate("", None)
        scored: dict[str, Any] = {"tests": {}, "scores": {}}
        if executor.phases.scored:
            scored = executor.phases.score("", final.trained if final else None)
        return {
            "objective": self._objective(executor, evaluated),
            "losses": {name: loss.mean for name, loss in evaluated.deciding.items()},
            "tests": {name: SetLoss.from_json(loss).mean for name, loss in scored["tests"].items()},
            "scores": {name: found["mean"] for name, found in scored["scores"].items()},
        }

    def _objective(self, executor: Executor, evaluated: Evaluated) -> float:
        return executor.goal(evaluated).value(evaluated.deciding).value

    def _mixture(self, executor: Executor, final: Final) -> dict[str, Any]:
        record, mixture = final.trained.record, final.mixed.mixture
        amounts = {name: executor.drawn.amount({name: count}) for name, count in mixture.counts.items()}
        total = sum(amounts.values())
        return {
            "counts": mixture.counts,
            "shares": {name: amount / total for name, amount in amounts.items()},
            "rows": record.rows,
            "tokens": record.tokens,
            "supervised_tokens": record.supervised_tokens,
            "steps": record.steps,
            "folder": executor.phases.place(final.trained),
        }

    def _cost(self, found: Found) -> dict[str, Any]:
        kinds = [one.kind for one in found.spent.values()]
        return {
            "epochs": found.search.epochs,
            "seconds": found.search.seconds,
            "trainings": max(kinds.count("training") - len(found.finals), 0),
            "influence_stages": kinds.count("influence"),
            "proxies": kinds.count("proxy"),
        }


def _mean(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _budget(joint: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What joint was trained on, mean over seeds."""
    mixtures = [run["mixtures"][0] for run in joint]
    keys = ("rows", "tokens", "supervised_tokens", "steps")
    return {key: math.floor(np.mean([mixture[key] for mixture in mixtures]) + 0.5) for key in keys}
