"""The rules of the step compared: how much of the gap from joint to the best known mixture each closes, by rounds and by cost.

Flows in: generated suites, the shipped base model. Flows out: one JSON line a training, and the table of
docs/results/step.md; the last line is one JSON object. Real trainings by `benchmarks.retrainings`' loop, the real influence
stage after every one that a step starts from, `idealmix.allocation.allocate` for the step. No gate and no rollback: what is
compared is the step. An interrupted run goes on where it was, and rules share what they have in common.

    python -m benchmarks.step_rules --suites 31 34 --seeds 1 2 --rounds 1     # one step of every rule
    python -m benchmarks.step_rules --rules equalise:3 scaled:1 --rounds 3    # three steps of two
    python -m benchmarks.step_rules --table --json                            # what there is by now

``losses`` is a control that measures no influence: `equalise` on the guess that each capability's loss falls with the volume
of the domain of its name, by a power law of one exponent.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.retrainings import BATCH_ROWS, Bed, Suite, train
from idealmix import config
from idealmix.allocation import allocate
from idealmix.allocation.curves import Tried, fit, seed_noise
from idealmix.data.pools import split_reference
from idealmix.evaluation.loss import reference_loss
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_stage import measure
from idealmix.rounds.evidence import slopes_of
from idealmix.skills import REFERENCED, SKILLS, base_model_path
from idealmix.slopes import Slopes
from idealmix.training.model import load_model

SUITES = {
    31: dict.fromkeys(SKILLS, 1.0),
    32: dict.fromkeys(REFERENCED, 1.0),
    33: {"mathematics": 3.0, "coding": 1.0, "reasoning": 2.0, "instruction": 0.5, "chat": 0.5},
    34: {"mathematics": 0.3, "coding": 1.0, "reasoning": 0.5, "instruction": 2.0, "chat": 3.0},
    41: dict.fromkeys(("forum", "textbook", "manual", "repository", "web"), 1.0),
}
"""Rows of each domain at the start, in proportion, by the seed of the suite's generator."""
BLENDS = {
    41: {
        "forum": {"mathematics": 0.3, "chat": 0.7},
        "textbook": {"reasoning": 0.5, "mathematics": 0.3, "coding": 0.2},
        "manual": {"instruction": 0.6, "chat": 0.4},
        "repository": {"coding": 0.7, "instruction": 0.3},
        "web": {"chat": 0.8, "reasoning": 0.2},
    }
}
"""What the domains of a suite are made of, where names do not tell; `losses` has nothing to go by there."""
RULES = (
    "scaled:0.15",
    "scaled:0.5",
    "scaled:1",
    "exponentiated:0.5",
    "exponentiated:1",
    "exponentiated:3",
    "equalise:1",
    "equalise:3",
    "losses:3",
    "curves:1",
    "curves:3",
)
YARDSTICK = "equalise:3"
POWER = 0.43  # of `losses`: its one exponent, the one behind `allocation.rules.RETURNS`
Record = dict[str, Any]


class Lab:
    """One suite at one seed: trains mixtures, each once, and measures influence at them."""

    def __init__(self, suite: int, seed: int, budget: int, output: Path) -> None:
        name = f"suite-{suite}"
        self.bed, self.suite, self.seed = (
            Bed(Suite(name, suite, SUITES[suite], BLENDS.get(suite)), output, budget),
            suite,
            seed,
        )
        halves = {name: split_reference(pool, 0) for name, pool in self.bed.references.items()}
        self.gradient = {name: half[0] for name, half in halves.items()}
        self.deciding = {name: half[1] for name, half in halves.items()}
        self.start = self.bed.start()
        self.steps = -(-sum(self.start.values()) // BATCH_ROWS)
        self.folder = self.bed.folder / f"seed-{seed}-budget-{budget}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def trained(self, counts: Mapping[str, int], *, influence: bool) -> tuple[Record, InfluenceMatrix | None]:
        """A training's losses, and the influence there."""
        key = "-".join(str(n) for n in counts.values())
        losses, matrix = self.folder / f"{key}.json", self.folder / f"{key}.influence.json"
        if losses.exists() and (matrix.exists() or not influence):
            found = InfluenceMatrix.read(matrix) if influence else None
            return json.loads(losses.read_text(encoding="utf-8")), found
        began = time.process_time()
        mixture, plan = self.bed.plan(dict(counts), self.seed, self.steps)
        model, record = train(self.bed, plan)
        line = {
            "suite": self.suite, "seed": self.seed, "counts": dict(counts), "tokens": mixture.tokens,
            "test": {name: reference_loss(model, pool).mean for name, pool in self.bed.tests.items()},
            "deciding": {name: reference_loss(model, pool).mean for name, pool in self.deciding.items()},
            "train_s": round(time.process_time() - began, 1),
        }  # fmt: skip
        found = None
        if influence:
            began, settings = time.process_time(), config.Influence()
            found = measure(model, mixture, self.bed.domains, self.gradient, settings, record=record)
            found.write(matrix)
            line["influence_s"] = round(time.process_time() - began, 1)
        losses.write_text(json.dumps(line), encoding="utf-8")
        return line, found

    def step(self, rule: str, seen: list[Record], matrix: InfluenceMatrix | None) -> dict[str, int]:
        """The counts that a rule such as ``scaled:0.5`` goes to from the last of the trainings `seen`."""
        kind, m = rule.split(":")
        at, weights, curves = (
            seen[-1],
            dict.fromkeys(seen[-1]["deciding"], 1 / len(seen[-1]["deciding"])),
            None,
        )
        if matrix is None:
            slopes = self._guess(at)
        else:
            slopes = slopes_of(matrix, weights)
            if kind == "curves":
                tried = [self._tried(one) for one in seen]
                noise = seed_noise(self.base, [at["deciding"]])
                curves, why = fit(matrix, weights, self.base, tried, tried[-1], noise)
                if curves is None:
                    raise RuntimeError(f"no curves: {why}")
        settings = config.Allocation.model_validate(
            {"rule": "equalise" if kind == "losses" else kind, "m": float(m), "gate": False}
        )
        sizes = {name: len(pool) for name, pool in self.bed.domains.items()}
        return allocate(at["counts"], sizes, self.bed.row_tokens, slopes, settings, curves=curves).counts

    @cached_property
    def base(self) -> dict[str, float]:
        """Losses on the deciding halves before any training."""
        model = load_model(base_model_path(), "float32").eval()
        return {name: reference_loss(model, pool).mean for name, pool in self.deciding.items()}

    def _tried(self, record: Record) -> Tried:
        volumes = {name: rows * self.bed.row_tokens[name] for name, rows in record["counts"].items()}
        return Tried(volumes, record["deciding"])

    def _guess(self, at: Record) -> Slopes:
        names = list(at["counts"])
        volume = np.array([at["counts"][name] * self.bed.row_tokens[name] for name in names])
        free = np.array([-POWER * at["deciding"].get(name, 0.0) / len(at["deciding"]) for name in names])
        slope = free - volume / volume.sum() * free.sum()
        sure = (np.zeros(len(names)), np.full(len(names), 99.0))
        return Slopes(names, slope, *sure, slope, *sure, whole=float(free.sum()))


def play(lab: Lab, rule: str, rounds: int) -> list[float]:
    """Mean test loss at the start and after each step."""
    counts, path, seen = lab.start, [], []
    for number in range(rounds + 1):
        asks = number < rounds and not rule.startswith("losses")
        at, matrix = lab.trained(counts, influence=asks)
        path.append(_mean(at))
        seen.append(at)
        if number < rounds:
            counts = lab.step(rule, seen, matrix)
    return path


def search(lab: Lab, trainings: int) -> None:
    """Random mixtures, and small changes of the best known: so that no rule's own best is all there is to compare with."""
    rng = np.random.default_rng([lab.suite, lab.seed])
    names = list(lab.start)
    for number in range(trainings):
        if number % 2 == 0:
            shares = rng.dirichlet(np.full(len(names), 1.5))
        else:
            best = min(records(lab.folder), key=_mean)["counts"]
            shares = np.array([best[n] * lab.bed.row_tokens[n] for n in names]) * np.exp(
                rng.normal(0, 0.3, len(names))
            )
        shares = dict(zip(names, shares / shares.sum()))
        counts = {n: round(lab.bed.budget * share / lab.bed.row_tokens[n]) for n, share in shares.items()}
        lab.trained(counts, influence=False)


def records(folder: Path) -> list[Record]:
    """Every training of one suite and seed."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith(".influence.json")
    ]


def table(lines: list[Record], output: Path, budget: int) -> dict[str, Any]:
    """Share of the gap that each rule has closed after each round; by cell (a suite and a seed), and how far it is behind
    `YARDSTICK` in the cells that both have.

    The best of a cell is the lowest test loss of all its trainings, whoever asked for them; being the lowest of many, it is
    lower than its mixture would be on another seed, and so shares are a little too small, for all rules alike.
    """
    best = {
        place: min(
            _mean(r) for r in records(output / f"suite-{place[0]}" / f"seed-{place[1]}-budget-{budget}")
        )
        for place in {(line["suite"], line["seed"]) for line in lines}
    }
    closed: dict[str, dict[int, dict[str, float]]] = {}
    for line in lines:
        joint, lowest = line["path"][0], best[line["suite"], line["seed"]]
        for number, loss in enumerate(line["path"][1:], start=1):
            cells = closed.setdefault(line["rule"], {}).setdefault(number, {})
            cells[f"{line['suite']}/{line['seed']}"] = (joint - loss) / (joint - lowest)
    found: dict[str, Any] = {}
    for rule, rounds in closed.items():
        for number, cells in rounds.items():
            other = closed.get(YARDSTICK, {}).get(number, {})
            behind = [other[place] - share for place, share in cells.items() if place in other]
            found.setdefault(rule, {})[f"round {number}"] = {
                "gap_closed": _summary(list(cells.values())),
                "behind_yardstick": None if rule == YARDSTICK or not behind else _summary(behind),
                "cells": {place: round(share, 3) for place, share in sorted(cells.items())},
                "epochs": number + 1,  # trainings of the budget, joint's included
                "influence_stages": 0 if rule.startswith("losses") else number,
            }
    joint = {f"{line['suite']}/{line['seed']}": round(line["path"][0], 4) for line in lines}
    lowest = {f"{suite}/{seed}": round(value, 4) for (suite, seed), value in best.items()}
    return {"yardstick": YARDSTICK, "rules": found, "joint": joint, "best": lowest}


def _mean(record: Record) -> float:
    return float(np.mean(list(record["test"].values())))


def _summary(values: list[float]) -> dict[str, float | int | None]:
    """Mean, standard error over the cells (None: one cell), least."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {
        "mean": round(float(np.mean(values)), 3),
        "standard_error": None if error is None else round(error, 3),
        "least": round(min(values), 3),
        "n": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", type=int, nargs="+", default=[31, 34], choices=sorted(SUITES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--rounds", type=int, default=1, help="steps of each rule")
    parser.add_argument(
        "--search", type=int, default=0, help="further trainings that look for a better mixture"
    )
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--output", type=Path, default=Path("runs/step-rules"))
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.output / f"paths-{options.budget}.jsonl"
    for seed in () if options.table else options.seeds:
        for suite in options.suites:
            lab = Lab(suite, seed, options.budget, options.output)
            for rule in options.rules:
                line = {"suite": suite, "seed": seed, "rule": rule, "path": play(lab, rule, options.rounds)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                if not options.json:
                    print(suite, seed, rule, np.round(line["path"], 4), flush=True)
            search(lab, options.search)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    longest = {
        (line["suite"], line["seed"], line["rule"]): line
        for line in sorted(lines, key=lambda x: len(x["path"]))
    }
    print(json.dumps(table(list(longest.values()), options.output, options.budget)))


if __name__ == "__main__":
    main()
