"""Other ways to choose a step, beside the rules of `benchmarks.step_rules`: a second-order model of the loss, a trust region, a line search.

Flows in: the suites and trainings of `step_rules`, in the same folder. Flows out: lines in its format, so that its table holds both; the last
line is one JSON object.

    python -m benchmarks.step_models --suites 31 34 32 --seeds 1
    python -m benchmarks.step_rules --table --json

With x_i = v_i b_i, the change b_i of a domain's volume times its weight, the trained parameters move by sum_i x_i e_i, e_i = - R (gbar_i -
gbar_mix), and the references' mean loss by

    q(x) = x'a + x'B x / 2        a_i = gbar_ref' e_i        B_ij = e_i' H_ref e_j

with H_ref the references' own Gauss-Newton matrix, exact (`curvature.gauss_newton`). The step is the least q within 1 / (1 + m) <= 1 + b <= 1 +
m at an equal budget of tokens. R is EK-FAC's, by the response in the rule's name:

    second-converged:3     R = (H + damping)^-1, as the derivation has it
    second-calibrated:3    the same with all e_i times 0.0013, the slope that retraining gave it (docs/results/fidelity.md)
    second-finite:3        R of the training that was done, slope 0.63
    trusted-finite:1       the same, three trainings: m doubles after a gain of three quarters of what q promised or more, halves
                           after one below a quarter, and a step that lost is taken back
    line-equalise:3        towards and beyond the step of `equalise:3`, its change of each volume to the power of 0.5, 1 and 1.5: each
                           trained for a quarter of the budget, the lowest on the deciding halves trained in full
    line-curves:3          the same along `curves:3`
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.fidelity import Checkpoint
from benchmarks.retrainings import train
from benchmarks.step_rules import SUITES, Lab, Record
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.data.pools import Pool
from idealmix.evaluation.loss import reference_loss
from idealmix.influence_sample import Sampler

RULES = (
    "second-converged:3",
    "second-calibrated:3",
    "second-finite:3",
    "trusted-finite:1",
    "line-equalise:3",
    "line-curves:3",
)
SLOPE = 0.0013
LENGTHS = (0.5, 1.0, 1.5)
PART = 0.25
Array = np.ndarray
Move = dict[str, torch.Tensor]
"""A change of parameters, by name."""


@dataclass(frozen=True)
class Model:
    """The second-order model at a trained mixture.

    Attributes:
        weight: (D,) v_i.
        share: (D,) of the budget's tokens.
        slope: (D,) a.
        bend: (D, D) B.
    """

    weight: Array
    share: Array
    slope: Array
    bend: Array

    def change(self, b: Array) -> float:
        """q at relative changes of volume."""
        x = self.weight * b
        return float(x @ self.slope + x @ self.bend @ x / 2)

    def step(self, m: float) -> Array:
        """(D,) the least q within m."""
        size = max(abs(self.change(sign * m * row)) for row in np.eye(len(self.share)) for sign in (1, -1))
        found = minimize(
            lambda b: self.change(b) / size,
            np.zeros(len(self.share)),
            bounds=[(-m / (1 + m), m)] * len(self.share),
            constraints={"type": "eq", "fun": lambda b: float(self.share @ b)},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-10},
        )
        return np.asarray(found.x)


def measured(lab: Lab, counts: dict[str, int], response: str) -> Model:
    """The model at these rows' training."""
    at = checkpoint(lab, counts)
    weight = np.array([at.record.step_weights[name] for name in counts])
    tokens = np.array([at.mixture.tokens_by_domain[name] for name in counts], dtype=float)
    moves = directions(at, weight, response)
    return Model(weight, tokens / tokens.sum(), *along(at.collector.model, lab.gradient, moves))


def directions(at: Checkpoint, weight: Array, response: str) -> list[Move]:
    """e_i of every domain."""
    finite = float(sum(at.record.clipped_steps)) if response == "finite" else None
    curvature, scale = at.fit("ekfac", finite), SLOPE if response == "calibrated" else 1.0
    moves = []
    for gradients in at.unused:
        move: Move = {}
        for layer in at.layers:
            mixed = sum(v * g[layer.name] for v, g in zip(weight, at.drawn))
            answer = curvature.respond(layer.name, gradients[layer.name] - mixed)
            move |= layer.parameters(-scale * answer)
        moves.append(move)
    return moves


def along(model: Any, references: Mapping[str, Pool], moves: Sequence[Move]) -> tuple[Array, Array]:
    """a (D,) and B (D, D) of the mean over reference sets of their loss, nats per supervised token."""
    slope, bend = np.zeros(len(moves)), np.zeros((len(moves), len(moves)))
    for name, pool in references.items():
        batches = list(Sampler(1.0, 1, 4096, 0).whole(name, pool).batches)
        matrix = GaussNewton(model, batches, list(moves[0]))
        flat = torch.stack([matrix.flat(move) for move in moves])
        slope += (flat @ matrix.gradient(batches)).numpy() / len(references)
        bend += (flat @ torch.stack([matrix.product(v) for v in flat]).T).numpy() / len(references)
    return slope, bend


def checkpoint(lab: Lab, counts: dict[str, int]) -> Checkpoint:
    """The mixture's training with its checkpoint, made once."""
    key: Any = f"{lab.seed}-budget-{lab.bed.budget}-at-" + "-".join(str(n) for n in counts.values())
    folder = lab.bed.folder / f"seed-{key}"
    if not (folder / "record.json").exists():
        mixture, plan = lab.bed.plan(dict(counts), lab.seed, lab.steps)
        folder.mkdir(parents=True, exist_ok=True)
        _, record = train(lab.bed, plan, folder)
        mixture.write(folder / "mixture.json")
        record.write(folder / "record.json")
    return Checkpoint(lab.bed, key)


def rows(lab: Lab, volume: Array, part: float = 1.0) -> dict[str, int]:
    """Counts of a mixture of these token volumes, in proportion, at a part of the budget."""
    shares = volume / volume.sum() * lab.bed.budget * part
    return {name: round(share / lab.bed.row_tokens[name]) for name, share in zip(lab.start, shares)}


def volumes(lab: Lab, counts: dict[str, int]) -> Array:
    """(D,) tokens."""
    return np.array([counts[name] * lab.bed.row_tokens[name] for name in lab.start])


def second(lab: Lab, response: str, m: float) -> list[Record]:
    """One step."""
    b = measured(lab, lab.start, response).step(m)
    return [_trained(lab, lab.start), _trained(lab, rows(lab, volumes(lab, lab.start) * (1 + b)))]


def trusted(lab: Lab, response: str, m: float, rounds: int = 3) -> list[Record]:
    """`rounds` trainings after the start; the deciding halves judge, as in a run."""
    best = _trained(lab, lab.start)
    path, model = [best], measured(lab, lab.start, response)
    for _ in range(rounds):
        b = model.step(m)
        new = _trained(lab, rows(lab, volumes(lab, best["counts"]) * (1 + b)))
        gained, promised = _deciding(new) - _deciding(best), model.change(b)
        ratio = gained / promised if promised < 0 else 0.0
        m = 2 * m if ratio >= 0.75 else m / 2 if ratio < 0.25 else m
        if gained < 0:
            best = new
            model = measured(lab, best["counts"], response)
        path.append(best)
    return path


def line(lab: Lab, rule: str, m: float) -> list[Record]:
    """Short trainings along a rule's step."""
    start, matrix = lab.trained(lab.start, influence=True)
    there = volumes(lab, lab.step(f"{rule}:{m:g}", [start], matrix))
    here = volumes(lab, lab.start)
    short = []
    for length in LENGTHS:
        counts = rows(lab, here * (there / here) ** length, PART)
        mixture, plan = lab.bed.plan(counts, lab.seed, max(1, round(lab.steps * PART)))
        model, _ = train(lab.bed, plan)
        losses = [reference_loss(model, pool).mean for pool in lab.deciding.values()]
        short.append((float(np.mean(losses)), length, mixture.tokens))
    length = min(short)[1]
    return [start, _trained(lab, rows(lab, here * (there / here) ** length))]


def walk(lab: Lab, rule: str) -> list[Record]:
    """The trainings that a rule is judged by: the start, then after each step."""
    kind, m = rule.split(":")
    name, _, by = kind.partition("-")
    return {"line": line, "second": second, "trusted": trusted}[name](lab, by, float(m))


def _trained(lab: Lab, counts: dict[str, int]) -> Record:
    return lab.trained(counts, influence=False)[0]


def _deciding(record: Record) -> float:
    return float(np.mean(list(record["deciding"].values())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", type=int, nargs="+", default=[31, 34, 32], choices=sorted(SUITES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--output", type=Path, default=Path("runs/step-rules"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, found = options.output / f"paths-{options.budget}.jsonl", []
    for suite in options.suites:
        for seed in options.seeds:
            lab = Lab(suite, seed, options.budget, options.output)
            for rule in options.rules:
                walked = walk(lab, rule)
                losses = [float(np.mean(list(record["test"].values()))) for record in walked]
                one = {"suite": suite, "seed": seed, "rule": rule, "path": losses}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(one) + "\n")
                found.append(one | {"counts": [list(record["counts"].values()) for record in walked]})
                print(suite, seed, rule, np.round(losses, 4), found[-1]["counts"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
