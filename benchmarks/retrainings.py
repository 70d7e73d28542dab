"""Retrains the built-in skills with every domain at 0.5x and 1.5x: what influence has to predict.

Flows in: generated suites, the shipped base model. Flows out: one JSON line a training (counts, steps, test losses row by
row), and for the unchanged mixture of every seed checkpoints with second moments in the middles of the training's thirds and at its
end, its record and mixture. An interrupted run goes on where it was: finished lines are skipped.

    python -m benchmarks.retrainings --budget 30000 --seeds 5       # 40 minutes of one idle core
    python -m benchmarks.retrainings --suite 0                      # one suite: a process for each of the three

A loop of our own over idealmix's plan of steps: the same rows in the same order as its trainer, AdamW, clipping and a linear
schedule. TRL's set-up would double the time of trainings this short.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from idealmix import config
from idealmix.curvature import make_batches
from idealmix.data.mixture import Mixture, draw
from idealmix.data.pools import Pool, load_pool
from idealmix.data.tokenise import Encoder
from idealmix.evaluation.loss import reference_loss
from idealmix.skills import REFERENCED, SKILLS, base_model_path, demo_config, write_suite
from idealmix.training import SEGMENTS
from idealmix.training.model import load_model, load_tokenizer
from idealmix.training.order import StepPlan, plan_steps
from idealmix.training.record import TrainingRecord
from idealmix.training.segments import middles

FACTORS = (0.5, 1.5)
TRAINED_ROWS, REFERENCE_ROWS, TEST_ROWS = 6000, 400, 200  # a skill's
BATCH_ROWS, WARMUP = 16, 0.125  # rows of a step at the start; share of the steps, as the demo's 30 of 240
CLIPPED = 1.0  # the largest norm of a step's gradient


@dataclass(frozen=True)
class Suite:
    """A generated suite and the mixture that it starts from.

    Attributes:
        name: of the suite.
        seed: of its generator.
        shares: rows of each domain, in proportion.
        blends: for each domain the skills that its rows are of, in proportion; None: a domain is a skill.
    """

    name: str
    seed: int
    shares: dict[str, float]
    blends: dict[str, dict[str, float]] | None = None


SUITES = (
    Suite("five domains, uniform", 11, dict.fromkeys(SKILLS, 1.0)),
    Suite("four domains, uniform", 12, dict.fromkeys(REFERENCED, 1.0)),
    Suite(
        "five domains, skewed",
        13,
        {"mathematics": 3.0, "coding": 1.0, "reasoning": 2.0, "instruction": 0.5, "chat": 0.5},
    ),
)


def blended(
    folder: Path, paths: Mapping[str, Mapping[str, Path]], blends: Mapping[str, Mapping[str, float]]
) -> dict[str, Path]:
    """A file of rows for each blend out of `TRAINED_ROWS` of every skill; no row is in two of them."""
    left = {skill: iter(paths[skill]["train"].read_text(encoding="utf-8").splitlines()) for skill in SKILLS}
    wanted = {skill: sum(parts.get(skill, 0.0) for parts in blends.values()) for skill in SKILLS}
    rows = TRAINED_ROWS / max(wanted.values())  # of a blend
    found = {}
    for name, parts in blends.items():
        lines = [line for skill, part in parts.items() for line in islice(left[skill], int(rows * part))]
        found[name] = folder / f"blend-{name}.jsonl"
        found[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def folder_of(suite: Suite, output: Path) -> Path:
    """Where a suite's data, trainings and checkpoints lie."""
    return output / suite.name.replace(", ", "-").replace(" ", "-")


class Bed:
    """One suite's pools, and what its mixtures are trained with."""

    def __init__(self, suite: Suite, output: Path, budget: int) -> None:
        self.suite, self.folder, self.budget = suite, folder_of(suite, output), budget
        paths = write_suite(
            self.folder / "data",
            seed=suite.seed,
            train=TRAINED_ROWS,
            reference=REFERENCE_ROWS,
            test=TEST_ROWS,
            skills=tuple(suite.shares) if suite.blends is None else SKILLS,
        )
        if suite.blends:
            paths |= {
                name: {"train": path}
                for name, path in blended(self.folder / "data", paths, suite.blends).items()
            }
        settings = demo_config(self.folder)["training"]
        self.rate, self.beta2 = settings["learning_rate"], settings["adam_beta2"]
        encoder = Encoder(load_tokenizer(base_model_path()), settings["max_length"])

        def pools(split: str, names: Mapping[str, Any]) -> dict[str, Pool]:
            return {
                name: load_pool(name, config.Source(path=str(paths[name][split])), encoder, seed=0)
                for name in names
            }

        asked = [name for name in (suite.shares if suite.blends is None else SKILLS) if name in REFERENCED]
        self.domains = pools("train", suite.shares)
        self.references, self.tests = (
            pools("reference", dict.fromkeys(asked)),
            pools("test", dict.fromkeys(asked)),
        )
        self.row_tokens = {name: float(pool.tokens.mean()) for name, pool in self.domains.items()}

    def start(self) -> dict[str, int]:
        """Rows of the unchanged mixture."""
        return self._filled(self.suite.shares, self.budget)

    def changed(self, domain: str, factor: float, hold: bool) -> dict[str, int]:
        """Rows with one domain's multiplied: the others as they were, or scaled so that the tokens stay."""
        counts = self.start()
        rows = round(counts[domain] * factor)
        others = {name: float(count) for name, count in counts.items() if name != domain}
        if hold:
            left = (
                sum(n * self.row_tokens[name] for name, n in counts.items()) - rows * self.row_tokens[domain]
            )
            others = dict(self._filled(others, left))
        return {name: rows if name == domain else int(others[name]) for name in counts}

    def plan(self, counts: dict[str, int], seed: int, steps: int | None) -> tuple[Mixture, StepPlan]:
        """The rows that a seed draws, and their order."""
        mixture = draw(self.domains, counts, seed, max_repeats=4)
        return mixture, plan_steps(
            mixture, self.domains, seed=seed, epochs=1, micro_batch_rows=BATCH_ROWS, steps=steps
        )

    def _filled(self, shares: Mapping[str, float], tokens: float) -> dict[str, int]:
        scale = tokens / sum(share * self.row_tokens[name] for name, share in shares.items())
        return {name: round(scale * share) for name, share in shares.items()}


def train(bed: Bed, plan: StepPlan, save: Path | None = None) -> tuple[Any, TrainingRecord]:
    """Train the base model on a plan; with `save`, checkpoints in it: ``middle-1``, .. and ``end``."""
    began, model = time.monotonic(), load_model(base_model_path(), "float32").train()
    betas = (0.9, bed.beta2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=bed.rate, betas=betas, eps=1e-8, weight_decay=0.0)
    steps, warmup, rates, norms = len(plan.steps), round(WARMUP * len(plan.steps)), [], []
    kept = {step: f"middle-{k}" for k, step in enumerate(middles(steps, SEGMENTS), 1)} | {steps: "end"}
    for number, rows in enumerate(plan.steps):
        rates.append(bed.rate * min(number / warmup, (steps - number) / (steps - warmup)))
        optimiser.param_groups[0]["lr"] = rates[-1]
        _backward(bed, model, plan, rows)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)))
        optimiser.step()
        optimiser.zero_grad()
        if save and number + 1 in kept:
            folder = save / kept[number + 1]
            model.save_pretrained(folder / "model")
            save_file(_second_moments(model, optimiser), folder / "second_moments.safetensors")
    record = TrainingRecord(
        backend="benchmark",
        seed=0,
        steps=steps,
        rows=plan.rows,
        tokens=plan.tokens,
        supervised_tokens=plan.supervised_tokens,
        step_weights=plan.step_weights,
        token_shares=plan.token_shares,
        model_path="model",
        seconds=time.monotonic() - began,
        step_sizes=rates,
        gradient_norms=norms,
        optimiser={
            "name": "AdamW",
            "betas": list(betas),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "max_grad_norm": CLIPPED,
        },
        segments=[step for step, name in kept.items() if name != "end"],
    )
    return model.eval(), record


def _backward(bed: Bed, model: Any, plan: StepPlan, rows: Any) -> None:
    """The gradient of the step's mean loss over its supervised tokens."""
    found = [bed.domains[plan.domains[domain]].row(row) for domain, row in rows]
    supervised = sum(sum(label >= 0 for label in row.labels[1:]) for row in found)
    parts = (
        [found] if len(found) <= 8 else [found[: len(found) // 2], found[len(found) // 2 :]]
    )  # longest first
    for part in parts:
        (batch,) = make_batches(
            [(row.id + str(i), row.input_ids, row.labels, 1.0) for i, row in enumerate(part)], 10**9
        )
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]  # pads lie to the right
        targets = batch.labels[:, 1:]
        asked = targets >= 0
        loss = torch.nn.functional.cross_entropy(logits[asked], targets[asked], reduction="sum")
        (loss / supervised).backward()


def _second_moments(model: Any, optimiser: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """AdamW's, bias-corrected, by parameter name."""
    beta2 = optimiser.param_groups[0]["betas"][1]
    return {
        name: (state["exp_avg_sq"] / (1 - beta2 ** float(state["step"]))).contiguous()
        for name, state in ((name, optimiser.state[p]) for name, p in model.named_parameters())
    }


def wanted(suite: Suite, seeds: range) -> Iterator[tuple[int, str, str, float]]:
    """Seed, domain, mode and factor of every training; whole seeds first, so that any stop leaves some complete."""
    for seed in seeds:
        yield seed, "", "start", 1.0
        for mode in ("held", "free"):
            for domain in suite.shares:
                for factor in FACTORS:
                    yield seed, domain, mode, factor


def retrain(bed: Bed, seed: int, domain: str, mode: str, factor: float) -> dict[str, Any]:
    """One training and its test losses, as a flat record."""
    began = time.monotonic()
    start = bed.start()
    steps = -(-sum(start.values()) // BATCH_ROWS)
    counts = start if mode == "start" else bed.changed(domain, factor, hold=mode == "held")
    mixture, plan = bed.plan(counts, seed, None if mode == "free" else steps)
    save = bed.folder / f"seed-{seed}" if mode == "start" else None
    model, record = train(bed, plan, save)
    if save:
        record.write(save / "record.json")
        mixture.write(save / "mixture.json")
    losses = {name: reference_loss(model, pool) for name, pool in bed.tests.items()}
    return {
        "suite": bed.suite.name,
        "seed": seed,
        "domain": domain,
        "mode": mode,
        "factor": factor,
        "budget": bed.budget,
        "counts": counts,
        "tokens": mixture.tokens,
        "tokens_by_domain": mixture.tokens_by_domain,
        "steps": len(plan.steps),
        "losses": {name: loss.mean for name, loss in losses.items()},
        "rows": {
            name: {"sums": [round(x, 5) for x in loss.loss_sums.tolist()], "counts": loss.counts.tolist()}
            for name, loss in losses.items()
        },
        "train_s": round(record.seconds, 1),
        "total_s": round(time.monotonic() - began, 1),
    }


def finished(path: Path) -> set[tuple[Any, ...]]:
    """What the file holds by now; several processes may add to it."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = ("seed", "domain", "mode", "factor", "budget")
    return {tuple(json.loads(line)[name] for name in names) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of the unchanged mixture")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=301)
    parser.add_argument(
        "--starts", action="store_true", help="only the checkpoints of the unchanged mixture, anew"
    )
    parser.add_argument("--suite", type=int, help="only this one, counted from 0: one process a suite")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for suite in SUITES if options.suite is None else [SUITES[options.suite]]:
        bed = Bed(suite, options.output, options.budget)
        path = bed.folder / "retrainings.jsonl"
        for seed, domain, mode, factor in wanted(
            suite, range(options.first_seed, options.first_seed + options.seeds)
        ):
            done = (seed, domain, mode, factor, options.budget) in finished(path)
            if done != options.starts or (options.starts and mode != "start"):
                continue
            record = retrain(bed, seed, domain, mode, factor)
            if not done:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            shown = {name: round(value, 4) for name, value in record["losses"].items()}
            print(
                suite.name, seed, domain, mode, factor, record["steps"], shown, record["total_s"], flush=True
            )


if __name__ == "__main__":
    main()
