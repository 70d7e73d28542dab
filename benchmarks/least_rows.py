"""Many small sources: how many rows of each an influence stage has to read before one step from it goes the right way.

Flows in: suites of twenty sources, each a blend of the built-in skills, the shipped base model. Flows out: one JSON line: for every
suite and least number of rows (`influence.least_rows`) the tokens read, how well influence finds what the sources are made of, and
the test loss of the mixture that one step of `curves` leads to. An interrupted run goes on where it was.

    python -m benchmarks.least_rows --suites 61,62,63,64 --json

Real trainings by `benchmarks.retrainings`' loop, the real stage at its defaults, no gate and no rollback: what is compared is the step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.oracle_gap import many_sources
from benchmarks.retrainings import BATCH_ROWS, Bed, Suite, train
from idealmix import config
from idealmix.allocation import allocate
from idealmix.allocation.curves import Tried, fit, seed_noise
from idealmix.data.pools import split_reference
from idealmix.disk import read_json, write_json
from idealmix.evaluation.loss import reference_loss
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_stage import measure
from idealmix.rounds.evidence import slopes_of
from idealmix.skills import REFERENCED, base_model_path
from idealmix.training.model import load_model

LEAST = (16, 64, 128)


def found_parts(
    matrix: InfluenceMatrix, bed: Bed, blends: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """By skill: correlation over sources of a row's influence on it with the share of the source's rows that are of it."""
    alpha = replace(matrix, centred=False).entries("acting").value
    rows, found = np.array([bed.start()[name] for name in matrix.domains]), {}
    for helped, skill in zip(-alpha, matrix.references, strict=True):
        made_of = [blends[name][skill] for name in matrix.domains]
        found[skill] = float(np.corrcoef(helped / rows, made_of)[0, 1])
    return found


def measured(seed: int, budget: int, output: Path) -> list[dict[str, Any]]:
    """One suite: joint, and the step from it by each least number of rows; what is there already is read."""
    sources = many_sources(f"twenty sources, {seed}", seed)
    if sources.blends is None:
        raise ValueError("a suite of sources has blends")
    shares = {name: float(rows) for name, rows in sources.rows.items()}
    bed = Bed(Suite(sources.name, seed, shares, sources.blends), output, budget)
    paths = {least: bed.folder / f"least-{least}-budget-{budget}.json" for least in LEAST}
    _measure(bed, sources.blends, {least: path for least, path in paths.items() if not path.exists()})
    lines = [read_json(path) for path in paths.values()]
    for line in lines:
        print({key: value for key, value in line.items() if key != "counts"}, flush=True)
    return lines


def _measure(bed: Bed, blends: Mapping[str, Mapping[str, float]], paths: Mapping[int, Path]) -> None:
    """Train joint, then write what the step by each least number of rows comes to."""
    if not paths:
        return
    halves = {name: split_reference(pool, 0) for name, pool in bed.references.items()}
    gradient, deciding = ({name: half[k] for name, half in halves.items()} for k in (0, 1))
    start, seed = bed.start(), bed.suite.seed
    steps = -(-sum(start.values()) // BATCH_ROWS)

    def losses(model: Any, pools: Mapping[str, Any]) -> dict[str, float]:
        return {name: reference_loss(model, pool).mean for name, pool in pools.items()}

    mixture, plan = bed.plan(start, seed, steps)
    model, record = train(bed, plan)
    base = losses(load_model(base_model_path(), "float32").eval(), deciding)
    volumes = {name: rows * bed.row_tokens[name] for name, rows in start.items()}
    at = Tried(volumes, losses(model, deciding))
    joint = losses(model, bed.tests)
    weights = dict.fromkeys(REFERENCED, 1 / len(REFERENCED))
    sizes = {name: len(pool) for name, pool in bed.domains.items()}
    for least, path in paths.items():
        settings = config.Influence(least_rows=least)
        matrix = measure(model, mixture, bed.domains, gradient, settings, record=record)
        curves, why = fit(matrix, weights, base, [at], at, seed_noise(base, [at.losses]))
        if curves is None:
            raise RuntimeError(f"no curves: {why}")
        step = allocate(
            start, sizes, bed.row_tokens, slopes_of(matrix, weights), config.Allocation(gate=False), curves=curves
        )  # fmt: skip
        after, _ = train(bed, bed.plan(step.counts, seed, steps)[1])
        read = matrix.facts["tokens"]
        line = {
            "suite": seed, "least_rows": least, "tokens": mixture.tokens,
            "tokens_read": sum(sum(read[kind].values()) for kind in ("drawn", "unused")),
            "correlation": found_parts(matrix, bed, blends),
            "joint": float(np.mean(list(joint.values()))),
            "after": float(np.mean(list(losses(after, bed.tests).values()))),
            "counts": step.counts,
        }  # fmt: skip
        write_json(path, line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", default="61,62,63,64", help="generator seeds, by comma")
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--output", type=Path, default=Path("runs/least-rows"))
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        line
        for seed in options.suites.split(",")
        for line in measured(int(seed), options.budget, options.output)
    ]
    if options.json:
        print(json.dumps({"budget": options.budget, "steps": found}))


if __name__ == "__main__":
    main()
