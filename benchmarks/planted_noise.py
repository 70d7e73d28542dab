"""How well the influence of a row finds wrong labels, and what they do to the domain's volume.

Flows in: four generated skills; 10, 20 and 40 per cent of two domains' rows get another row's answer. Flows out: the area under
the ROC curve of finding them, by influence and by the row's own loss, and the domain's slope and step; the last line is one JSON
object. A world (seed and share) takes one training and one influence stage; finished ones are kept and not done again.

    python -m benchmarks.planted_noise --json
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.planted import World, kept, mislabelled, skill
from idealmix import config
from idealmix.allocation import allocate
from idealmix.diagnostics.noise import DomainRows, row_influence
from idealmix.rounds.evidence import slopes_of
from idealmix.rounds.volume import mean_volumes
from idealmix.skills import REFERENCED

NOISY = ("mathematics", "reasoning")
SHARES = (0.0, 0.1, 0.2, 0.4)
POOL_ROWS, REFERENCE_ROWS = 600, 200
DAMPINGS = (1e-3, 1e-1, 1e1)
"""The default first; the largest comes near the plain dot of gradients."""


def auc(score: Any, wrong: Any) -> float:
    """The chance that a wrong row scores above a right one, ties half (Mann and Whitney)."""
    ranks, n = rankdata(score), int(wrong.sum())
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n)))


def world(seed: int, share: float) -> dict[str, Any]:
    """One training with that share of wrong labels in the noisy domains."""
    rows = {name: skill(name, POOL_ROWS, seed) for name in REFERENCED}
    wrong: dict[str, set[str]] = {}
    for name in NOISY:
        rows[name], wrong[name] = mislabelled(rows[name], share, seed)
    references = {name: skill(name, REFERENCE_ROWS, seed, "reference") for name in REFERENCED}
    at = World.of(rows, references, seed)
    model, record, mixture = at.train(at.counts())
    stages = at.measure(model, record, mixture, dampings=DAMPINGS)
    weights = dict.fromkeys(REFERENCED, 1 / len(REFERENCED))
    ranked, *damped = (row_influence(stage, weights) for stage in stages)
    slopes = slopes_of(stages[0].matrix, weights)
    step = allocate(
        mixture.counts,
        {name: len(pool) for name, pool in at.domains.items()},
        mean_volumes(at.domains, "tokens"),
        slopes,
        config.Allocation(m=0.5),
    )
    return {
        "seed": seed,
        "share": share,
        "rows": mixture.counts,
        "auc": {
            name: finding(each, [other[name] for other in damped], wrong[name], REFERENCED.index(name))
            for name, each in ranked.items()
            if wrong.get(name)
        },
        "hurt": {name: float((each.influence > 0).mean()) for name, each in ranked.items()},
        "beta": {name: move.beta for name, move in step.moves.items()},
        "gated": {name: move.gated for name, move in step.moves.items()},
        "slope": {name: move.slope for name, move in step.moves.items()},
        "slope_se": {name: move.slope_se for name, move in step.moves.items()},
        "losses": dict(stages[0].matrix.losses),
    }


def finding(each: DomainRows, damped: list[DomainRows], wrong: set[str], own: int) -> dict[str, Any]:
    """AUC by each score, of rows in the mixture and of unused ones."""
    truth = np.array([row in wrong for row in each.ids])
    scores = {
        "influence": each.influence,
        **{f"influence, damping {rho:g}": other.influence for rho, other in zip(DAMPINGS[1:], damped)},
        "influence on its own skill": each.by_reference[:, own],
        "own loss per token": each.loss,
        "own loss": each.loss * each.tokens,
    }
    return {
        part: {name: auc(score[mask], truth[mask]) for name, score in scores.items()}
        | {"rows": int(mask.sum()), "wrong": int(truth[mask].sum())}
        for part, mask in (("drawn", each.drawn), ("unused", ~each.drawn))
    }


def summary(worlds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with the standard deviation between them."""

    def spread(values: list[float]) -> dict[str, float]:
        return {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }

    found: dict[str, Any] = {"seeds": sorted({w["seed"] for w in worlds}), "auc": {}, "beta": {}}
    for share in sorted({w["share"] for w in worlds}):
        these = [w for w in worlds if w["share"] == share]
        found["beta"][f"{share:g}"] = {
            name: spread([w["beta"][name] for w in these])
            | {"slope": spread([w["slope"][name] or 0.0 for w in these])}
            | {
                "gated": sum(w["gated"][name] for w in these),
                "hurt": spread([w["hurt"][name] for w in these]),
            }
            for name in these[0]["beta"]
        }
        if share:
            found["auc"][f"{share:g}"] = {
                name: {
                    part: {
                        score: spread([w["auc"][name][part][score] for w in these])
                        for score in these[0]["auc"][name][part]
                        if score not in ("rows", "wrong")
                    }
                    for part in ("drawn", "unused")
                }
                for name in NOISY
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/planted"))
    parser.add_argument("--seeds", default="41,42,43")
    parser.add_argument("--json", action="store_true", help="nothing before the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worlds = []
    for seed in map(int, options.seeds.split(",")):
        for share in SHARES:
            worlds.append(
                kept(options.output / "noise.jsonl", f"{seed}/{share:g}", partial(world, seed, share))
            )
            if not options.json:
                print(json.dumps(worlds[-1]), flush=True)
    print(json.dumps(summary(worlds), allow_nan=False))


if __name__ == "__main__":
    main()
