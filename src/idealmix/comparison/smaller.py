"""A search on a smaller model or a part of the budget, then one training at the full size.

Flows in: a resolved configuration with a ``search`` block. Flows out: ``<output>/search/``, a run of its own; the training
of its mixture at the full size; and a ``result.json`` that is the search's with the full training under ``full``.

Rows are what is carried over: each domain keeps its share of the rows, the total follows from the full budget in the full
model's own tokens. Joint SFT is not trained at the full size, so whether the mixture still wins there is not known from a
run (`benchmarks.transfer` is for that).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idealmix.comparison.executor import Executor, Final
from idealmix.comparison.single import run_any
from idealmix.config import Config, Lora
from idealmix.disk import write_json
from idealmix.evaluation.objective import BY_ROUND_0
from idealmix.evaluation.set_loss import SetLoss
from idealmix.methods.protocol import Array
from idealmix.rounds.folder import SEARCH, RunFolder
from idealmix.rounds.loop import opened
from idealmix.rounds.result import finite
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch


def run_smaller(config: Config, watch: Watch, team: Team | None = None) -> dict[str, Any]:
    """Search small, train once in full; or go on with it.

    Returns:
        The content of ``result.json`` (on every process).

    Raises:
        InputError: the configuration, the data or a model is wrong, the budget is not held, or the folder holds another
            run.
        IdealmixError: a phase failed; what was finished is kept.
    """
    team = team or Team()
    with opened(config, watch, team) as (folder, inputs):
        executor = Executor(config, inputs, folder, team, watch, seed=config.seed, own="", label="full size")
        small = smaller(config, executor.amount)
        found = run_any(small, watch, team)
        counts = found["rounds"][found["best"]]["counts"]
        final = executor.final(carried(counts, executor.per_row))
        full = _full(executor, final)
        executor.phases.materialise(final.mixed)
        watch.note(_sentence(full))
        return team.lead(lambda: _write(folder, config, found, full))


def smaller(config: Config, amount: float) -> Config:
    """The configuration of the search.

    Args:
        amount: the full budget, in its unit.
    """
    search, training, allocation = config.search, config.training, config.allocation
    if search is None:
        raise RuntimeError("a search block is what this is called for")
    fraction = search.fraction
    changes: dict[str, Any] = {"warmup_steps": round(training.warmup_steps * fraction)}
    start = allocation.start
    size: int | None = round(amount * fraction)
    if isinstance(start, Mapping):  # then the budget follows from the rows, in the search's own tokens
        start, size = {name: round(count * fraction) for name, count in start.items()}, None
    if search.lora and training.lora is None:
        changes["lora"] = Lora()
    if search.learning_rate is not None:
        changes["learning_rate"] = search.learning_rate
    budget = allocation.budget.model_copy(update={"size": size})
    return config.model_copy(
        update={
            "model": search.model or config.model,
            "search": None,
            "tests": {},
            "scores": {},
            "training": training.model_copy(update=changes),
            "allocation": allocation.model_copy(update={"budget": budget, "start": start}),
            "output": str(Path(config.output) / SEARCH),
        }
    )


def carried(counts: Mapping[str, int], per_row: Mapping[str, float]) -> Array:
    """(D,) the full budget's shares that keep the proportions of the rows.

    Args:
        per_row: mean volume of a row in the full run's unit and tokens.
    """
    volumes = np.array(
        [counts[name] * volume for name, volume in per_row.items()]
    )  # in the order of the domains
    return np.asarray(volumes / volumes.sum())


def _full(executor: Executor, final: Final) -> dict[str, Any]:
    """What the one training at the full size came to, beside the base model."""
    record, mixture, phases = final.trained.record, final.mixed.mixture, executor.phases
    base = phases.evaluate("", None)
    goal = executor.goal(final.evaluated) if executor.config.objective not in BY_ROUND_0 else None
    content: dict[str, Any] = {
        "model": executor.config.model,
        "counts": mixture.counts,
        "tokens_by_domain": mixture.tokens_by_domain,
        **{key: getattr(record, key) for key in ("rows", "tokens", "supervised_tokens", "steps")},
        "losses": _losses(final.evaluated.deciding),
        "base_losses": _losses(base.deciding),
        "objective": goal.value(final.evaluated.deciding).value if goal else None,
        "tests": {},
        "scores": {},
    }
    if phases.scored:
        for label, trained in (("base", None), ("mixture", final.trained)):
            scored = phases.score("", trained)
            losses = {name: SetLoss.from_json(loss) for name, loss in scored["tests"].items()}
            content["tests"][label] = _losses(losses)
            content["scores"][label] = {
                name: {key: one[key] for key in ("mean", "se", "n")} for name, one in scored["scores"].items()
            }
    return content


def _losses(sets: Mapping[str, SetLoss]) -> dict[str, Any]:
    return {name: {"mean": loss.mean, "se": finite(loss.se)} for name, loss in sets.items()}


def _sentence(full: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{name} {count:,}" for name, count in full["counts"].items())
    return (
        f"Trained once at the full size on {full['rows']:,} rows ({listed}). Joint SFT was not trained at this size: "
        "the search's comparison is at its own."
    )


def _write(
    folder: RunFolder, config: Config, found: Mapping[str, Any], full: Mapping[str, Any]
) -> dict[str, Any]:
    from idealmix.report.page import write

    seconds = folder.seconds()
    search = config.search.model_dump(mode="json") if config.search else {}
    content = {
        **found,
        "name": folder.path.name,
        "search": {**search, "folder": SEARCH, "model": found["model"]},
        "full": full,
        "timing": {
            **found["timing"],
            "total_s": round(found["timing"]["total_s"] + sum(seconds.values()), 1),
            "full_phases": seconds,
        },
    }
    write_json(folder.path / "result.json", content)
    write(folder.path)
    return content
