"""A run that is still going, as far as its finished phases tell: the same mapping as result.json, and what is done now.

Flows in: a run folder (docs/files.md). Flows out: a result for the page, with the key ``under_way``; or None while round
0 is not evaluated yet. Phases write whole files, so whatever is there can be read. No torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from idealmix.config import Config
from idealmix.disk import read_json
from idealmix.errors import InputError
from idealmix.evaluation.score_result import ScoreResult
from idealmix.evaluation.set_loss import SetLoss, known
from idealmix.rounds.goal import Goal, Losses, Scores
from idealmix.rounds.judgement import judge


def read_config(run: Path) -> Config:
    """The resolved configuration of a run folder.

    Raises:
        InputError: it is damaged, or of another version.
    """
    path = run / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValidationError):
        raise InputError(
            "this is not the configuration of a run that this version can read", where=str(path)
        ) from None


def finished(run: Path) -> dict[str, float]:
    """Seconds of every finished phase, by name, in the order in which they ended."""
    markers = [marker for _, marker in dated(files_below(run / ".phases", ".done"))]
    names = [marker.relative_to(run / ".phases").as_posix().removesuffix(".done") for marker in markers]
    return {name: float(read_json(marker)["seconds"]) for name, marker in zip(names, markers)}


def current(run: Path) -> list[str]:
    """Phases that are begun and not finished."""
    return sorted(
        claim.relative_to(run).as_posix().removesuffix(".part.key") for claim in files_below(run, ".part.key")
    )


def files_below(folder: Path, suffix: str) -> Iterator[Path]:
    """Files by the end of their names, none in the parts that are being written; what vanishes on the way is passed over."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".part")]
        yield from (Path(where, name) for name in files if name.endswith(suffix))


def dated(paths: Iterable[Path]) -> list[tuple[int, Path]]:
    """Those of the paths that are there, each after the time of its last change (ns), the oldest first."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    return sorted(found)


def partial(run: Path) -> dict[str, Any] | None:
    """The result so far.

    Raises:
        InputError: a file is damaged.
    """
    config, done = read_config(run), finished(run)
    folders = list(_evaluated(done))
    if not folders:
        return None
    try:
        return _partial(run, config, done, folders)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"a file of this run is of another version: {type(error).__name__} {error}", where=str(run)
        ) from error


def _partial(run: Path, config: Config, done: Mapping[str, float], folders: list[str]) -> dict[str, Any]:
    halves = [_losses(run / where / "evaluation.json") for where in folders]
    weights = {name: source.weight for name, source in config.references.items()}
    scores = [_scores(run / where / "evaluation.json") for where in folders]
    base = _losses(run / "base/evaluation.json")[0] if "base/evaluation.json" in done else {}
    goal = Goal(config.objective, weights, halves[0][0], start_scores=[scores[0]], base=base)
    for name in done:
        if name.startswith("round-0/replicate-") and not name.endswith(".json"):
            goal.replicates.append(_losses(run / name / "evaluation.json")[0])
            goal.start_scores.append(_scores(run / name / "evaluation.json"))
    rounds, best = [], 0
    for index, (where, (deciding, gradient)) in enumerate(zip(folders, halves)):
        decision = judge(config, goal, deciding, scores[index], halves[best][0]) if index else None
        if decision and (decision.kept or config.method == "ideal-paper"):
            best = index
        rounds.append({
            **_trained(run / where, done, where), "index": index,
            "losses": {name: loss.figures() for name, loss in deciding.items()},
            "gradient_half_losses": {name: loss.figures() for name, loss in gradient.items()},
            "objective": goal.value(deciding).to_json(),
            "scores": {name: score.figures() for name, score in scores[index].items()},
            "difference": decision and {k: getattr(decision, k) for k in ("value", "se", "dof", "p")},
            "difference_from_start": _from_start(goal, deciding) if index else None,
            "decision": decision.outcome if decision else "start",
            "reason": decision.reason if decision else "Round 0 is the first to beat.",
        })  # fmt: skip
    allocations = [r["allocation"] for r in rounds[:-1]]
    for one, step in zip(rounds, [None, *allocations]):
        one["m"] = step["m"] if step else config.allocation.m
    return {
        "format": 1, "name": run.resolve().name, "model": config.model, "method": config.method,
        "budget": config.allocation.budget.model_dump(), "objective": config.objective,
        "domains": list(config.domains), "references": list(config.references), "weights": weights, "rounds": rounds,
        "base": {"losses": {name: loss.figures() for name, loss in base.items()}},
        "replicates": {"count": len(goal.replicates), "objectives": goal.seed_values(), "seed_sd_objective": goal.seed_spread()[0]},
        "best": best, "ended": None, "outlook": None, "final": None, "warnings": [], "facts": {},
        "timing": {"total_s": round(sum(done.values()), 1), "phases": dict(done)},
        "under_way": f"Under way: {len(rounds)} of at most {config.allocation.rounds} {'round' if config.allocation.rounds == 1 else 'rounds'} so far.",
    }  # fmt: skip


def _evaluated(done: Mapping[str, float]) -> Iterator[str]:
    """Rounds that are evaluated, from round 0 on."""
    index = 0
    while f"round-{index}/evaluation.json" in done:
        yield f"round-{index}"
        index += 1


def _trained(folder: Path, done: Mapping[str, float], where: str) -> dict[str, Any]:
    """What a round trained on, and what was measured and allocated at it, if it was."""
    domains, record = (
        read_json(folder / "mixture.json")["domains"],
        read_json(folder / "train" / "record.json"),
    )
    found = {key: record[key] for key in ("rows", "tokens", "supervised_tokens", "steps")}
    found["counts"] = {name: part["rows"] for name, part in domains.items()}
    for key in ("tokens", "supervised_tokens"):
        found[f"{key}_by_domain"] = {name: part[key] for name, part in domains.items()}
    for key in ("influence", "allocation"):
        name = f"{where}/{key}.json"
        found[key] = read_json(folder / f"{key}.json") if name in done else None
    return found


def _losses(path: Path) -> tuple[Losses, Losses]:
    """Losses on the deciding and on the gradient halves."""
    data = read_json(path)
    deciding, gradient = (
        {name: SetLoss.from_json(loss) for name, loss in data[half].items()}
        for half in ("deciding", "gradient")
    )
    return deciding, gradient


def _scores(path: Path) -> Scores:
    """The watched scores."""
    return {name: ScoreResult.from_json(one) for name, one in read_json(path).get("scores", {}).items()}


def _from_start(goal: Goal, new: Losses) -> dict[str, float | None]:
    difference = goal.difference(new, goal.start)
    error, freedom = difference.error()
    return {"value": difference.value, "se": known(error), "dof": known(freedom)}
