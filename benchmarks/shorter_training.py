"""Whether a training of joint's mixture at a quarter of the budget tells `curves` more: one step without and with its losses.

Flows in: generated suites, the shipped base model. Flows out: one JSON line: for every suite and seed the test loss of joint and of
both steps, and by skill the fall of the log loss at both volumes with its elasticity between them, log(fall / fall of the quarter) / log 4.

    python -m benchmarks.shorter_training --suites 31 34 32 41 --seeds 1 2 --json

Trainings are those of `benchmarks.step_rules` and shared with it; no gate, m = 7. The quarter has a seed of its own, a quarter of the
rows and of the steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.retrainings import BATCH_ROWS, train
from benchmarks.step_rules import SUITES, Lab, Record
from idealmix.evaluation.loss import reference_loss

PART = 0.25
OTHER_SEED = 100


def quarter(lab: Lab) -> Record:
    """Losses of the suite's start at a quarter of the budget."""
    path = lab.folder / "quarter" / "losses.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        counts = {name: max(1, round(rows * PART)) for name, rows in lab.start.items()}
        _, plan = lab.bed.plan(counts, lab.seed + OTHER_SEED, -(-sum(counts.values()) // BATCH_ROWS))
        model, _ = train(lab.bed, plan)
        deciding = {name: reference_loss(model, pool).mean for name, pool in lab.deciding.items()}
        path.write_text(json.dumps({"counts": counts, "deciding": deciding}), encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def elasticity(fall: float, of_quarter: float) -> float | None:
    """d log fall / d log volume, between a quarter of a volume and all of it; None where a fall is not above 0."""
    if min(fall, of_quarter) <= 0:
        return None
    return float(np.log(fall / of_quarter) / -np.log(PART))


def compared(lab: Lab, rule: str) -> dict[str, Any]:
    """One suite and seed."""
    joint, matrix = lab.trained(lab.start, influence=True)
    short = quarter(lab)
    found: dict[str, Any] = {"suite": lab.suite, "seed": lab.seed, "joint": _test(joint), "skills": {}}
    for skill, base in lab.base.items():
        fall, of_quarter = (float(np.log(base / one["deciding"][skill])) for one in (joint, short))
        found["skills"][skill] = {
            "fall": round(fall, 3),
            "quarter": round(of_quarter, 3),
            "elasticity": elasticity(fall, of_quarter),
        }
    for name, seen in (("without", [joint]), ("with", [short, joint])):
        found[name] = _test(lab.trained(lab.step(rule, seen, matrix), influence=False)[0])
    return found


def _test(record: Record) -> float:
    return round(float(np.mean(list(record["test"].values()))), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", type=int, nargs="+", default=[31, 34, 32, 41], choices=sorted(SUITES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rule", default="curves:7")
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--output", type=Path, default=Path("runs/step-rules"))
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for suite in options.suites:
        for seed in options.seeds:
            found.append(compared(Lab(suite, seed, options.budget, options.output), options.rule))
            print(found[-1], flush=True)
    behind = np.array([one["with"] - one["without"] for one in found])
    error = float(behind.std(ddof=1) / np.sqrt(len(behind))) if len(behind) > 1 else None
    if options.json:
        print(
            json.dumps({"with_minus_without": float(behind.mean()), "standard_error": error, "cells": found})
        )


if __name__ == "__main__":
    main()
