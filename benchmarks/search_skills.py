"""Find the best known mixture of the built-in skills by search, and show how far above the seed noise it is.

Flows in: the shipped base model and the demo's settings. Flows out: one JSON line a training, and the table of
docs/results/skills.md. A search trains dozens of models, so it uses a plain loop with the objective of
idealmix's trainer (AdamW, linear warm-up and decay, loss over the supervised tokens of a step, a fixed number of steps).

    python benchmarks/search_skills.py search  --output runs/skills-search.jsonl     # seed 0, chat at zero
    python benchmarks/search_skills.py confirm --output runs/skills-uniform.jsonl
    python benchmarks/search_skills.py confirm --output runs/skills-best.jsonl --shares 0.4,0.2,0.3,0.1
    python benchmarks/search_skills.py table   --output runs

The best mixture with `chat` in the suite is looked for at a `chat` share of zero, where nothing is spent on it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from idealmix.skills import REFERENCED, SKILLS, base_model_path, demo_config, write_suite

Encoded = tuple[list[int], list[int]]  # prompt ids, response ids (end of turn included)


class Suite:
    """Encoded pools and reference sets of the demo."""

    def __init__(self, seed: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.paths = write_suite(self.folder, seed=seed)
        self.config = demo_config(self.folder)
        self.budget = self.config["allocation"]["budget"]["size"]
        self.training = self.config["training"]
        tokenizer = AutoTokenizer.from_pretrained(base_model_path())
        self.rows = {
            (skill, split): [self._encode(tokenizer, line) for line in path.read_text().splitlines()]
            for skill, files in self.paths.items()
            for split, path in files.items()
        }
        self.tokens = {s: float(np.mean([len(q) + len(a) for q, a in self.rows[s, "train"]])) for s in SKILLS}

    @staticmethod
    def _encode(tokenizer, line: str) -> Encoded:
        row = json.loads(line)
        question = tokenizer.encode(f"<user>{row['prompt']}<assistant>")
        return question, tokenizer.encode(f"{row['response']}<end>")

    def counts(self, shares: dict[str, float]) -> dict[str, int]:
        """Rows of each skill that spend the token budget in proportion to row shares."""
        scale = self.budget / sum(share * self.tokens[skill] for skill, share in shares.items())
        return {skill: round(scale * share) for skill, share in shares.items()}

    def steps(self, skills: Iterable[str]) -> int:
        """Optimiser steps of round 0, which every mixture of these skills is given."""
        rows = sum(self.counts(dict.fromkeys(skills, 1.0)).values())
        return -(-rows // self.training["per_device_train_batch_size"])


def padded(rows: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids (pad 0) and labels (-100 outside responses), both (rows, longest)."""
    width = max(len(q) + len(a) for q, a in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for i, (q, a) in enumerate(rows):
        ids[i, : len(q) + len(a)] = torch.tensor(q + a)
        labels[i, len(q) : len(q) + len(a)] = torch.tensor(a)
    return ids, labels


def loss_sum(model: torch.nn.Module, rows: list[Encoded]) -> torch.Tensor:
    """Summed loss over the supervised tokens, in nats."""
    ids, labels = padded(rows)
    logits, targets = model(input_ids=ids).logits[:, :-1], labels[:, 1:]
    asked = targets != -100
    return torch.nn.functional.cross_entropy(logits[asked], targets[asked], reduction="sum")


def width(row: Encoded) -> int:
    return len(row[0]) + len(row[1])


def train(suite: Suite, counts: dict[str, int], seed: int, steps: int) -> torch.nn.Module:
    """Fine-tune the base model on a seeded draw."""
    order: list[Encoded] = []
    for skill, count in counts.items():
        pool = list(suite.rows[skill, "train"])
        Random(f"{seed}/{skill}").shuffle(pool)
        order += (pool * (count // len(pool) + 1))[:count]
    Random(f"{seed}/order").shuffle(order)
    model = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    rate, warmup = suite.training["learning_rate"], suite.training["warmup_steps"]
    betas = (0.9, suite.training["adam_beta2"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=0.0)
    cuts = np.linspace(0, len(order), steps + 1).round().astype(int)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(step / warmup, (steps - step) / (steps - warmup))
        rows = sorted(order[cuts[step] : cuts[step + 1]], key=width)
        supervised = sum(len(a) for _, a in rows)
        for i in range(0, len(rows), 16):
            (loss_sum(model, rows[i : i + 16]) / supervised).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return model


@torch.no_grad()
def losses(suite: Suite, model: torch.nn.Module) -> dict[str, float]:
    """Token-mean loss on every reference set, nats a supervised token."""
    model.eval()
    means = {}
    for skill in REFERENCED:
        rows = sorted(suite.rows[skill, "reference"], key=width)
        total = sum(loss_sum(model, rows[i : i + 100]).item() for i in range(0, len(rows), 100))
        means[skill] = total / sum(len(a) for _, a in rows)
    return means


@torch.no_grad()
def accuracies(suite: Suite, model: torch.nn.Module, split: str = "test") -> dict[str, float]:
    """Share of greedy answers that are right to the letter, end of turn included."""
    model.eval()
    found = {}
    for skill in REFERENCED:
        by_length: dict[int, list[Encoded]] = {}
        for row in suite.rows[skill, split]:
            by_length.setdefault(len(row[0]), []).append(row)
        right = 0
        for length, rows in by_length.items():
            longest = max(len(a) for _, a in rows)
            ids = torch.tensor([q for q, _ in rows])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=0,
            )
            right += sum(o[: len(a)] == a for o, (_, a) in zip(out[:, length:].tolist(), rows))
        found[skill] = right / len(suite.rows[skill, split])
    return found


def measure(
    suite: Suite, name: str, shares: dict[str, float], seed: int, steps: int, *, answers: bool
) -> dict:
    """One training and what it gives, as a flat record."""
    began = time.time()
    counts = suite.counts(shares)
    model = train(suite, counts, seed, steps)
    trained = time.time() - began
    found = losses(suite, model)
    record = {"name": name, "seed": seed, "steps": steps, "counts": counts, "losses": found}
    record["mean"] = float(np.mean(list(found.values())))
    if answers:
        record["accuracy"] = accuracies(suite, model)
    return record | {"train_s": round(trained, 1), "total_s": round(time.time() - began, 1)}


def search(suite: Suite, randoms: int, refinements: int, seed: int) -> Iterable[dict]:
    """Uniform, then random mixtures (Dirichlet over token shares), then small steps from the best so far."""
    generator = np.random.default_rng(seed)
    steps = suite.steps(REFERENCED)

    def attempt(name: str, token_shares: np.ndarray) -> dict:
        shares = {s: float(x) / suite.tokens[s] for s, x in zip(REFERENCED, token_shares)}
        record = measure(suite, name, shares, seed, steps, answers=False)
        return record | {"token_shares": [round(float(x), 4) for x in token_shares / token_shares.sum()]}

    uniform = np.array([suite.tokens[s] for s in REFERENCED])
    tried = [attempt("uniform", uniform)]
    yield tried[0]
    for i in range(randoms):
        tried.append(attempt(f"random-{i}", generator.dirichlet(np.full(len(REFERENCED), 1.5))))
        yield tried[-1]
    for i in range(refinements):
        best = min(tried, key=lambda record: record["mean"])["token_shares"]
        tried.append(attempt(f"near-{i}", np.array(best) * np.exp(generator.normal(0, 0.35, len(best)))))
        yield tried[-1]


def confirm(suite: Suite, shares: dict[str, float] | None, seeds: range) -> Iterable[dict]:
    """On fresh seeds: the given mixture (none: uniform), at the steps of five domains and of four."""
    label = "best" if shares else "uniform"
    plans = {
        f"{label}, five domains": (shares or dict.fromkeys(SKILLS, 1.0), SKILLS),
        f"{label}, four domains": (shares or dict.fromkeys(REFERENCED, 1.0), REFERENCED),
    }
    for seed in seeds:
        for name, (wanted, skills) in plans.items():
            yield measure(suite, name, wanted, seed, suite.steps(skills), answers=True)


def table(uniform: Path, best: Path) -> str:
    """The confirmation as Markdown: per seed, spread, gap over noise, losses and accuracies by skill."""
    records = [json.loads(line) for path in (uniform, best) for line in path.read_text().splitlines()]
    lines = []
    for domains in ("five domains", "four domains"):
        runs = {
            kind: {r["seed"]: r for r in records if r["name"] == f"{kind}, {domains}"}
            for kind in ("uniform", "best")
        }
        seeds = sorted(runs["uniform"].keys() & runs["best"].keys())
        means = {kind: np.array([found[seed]["mean"] for seed in seeds]) for kind, found in runs.items()}
        lines += [
            f"### {domains}",
            "",
            "| mean reference loss | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | sd |",
            "|---|" + "---|" * (len(seeds) + 2),
        ]
        for kind, values in means.items():
            cells = [*(f"{v:.4f}" for v in values), f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}"]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        gap = means["uniform"].mean() - means["best"].mean()
        noise = max(values.std(ddof=1) for values in means.values())
        lines += ["", f"Gap {gap:.4f}; larger of the two sds {noise:.4f}; gap / sd = {gap / noise:.1f}.", ""]
        lines += ["| mean over seeds | " + " | ".join(REFERENCED) + " |", "|---|" + "---|" * len(REFERENCED)]
        for kind, found in runs.items():
            for key, form in (("losses", "{:.3f}"), ("accuracy", "{:.1%}")):
                cells = [form.format(np.mean([found[seed][key][s] for seed in seeds])) for s in REFERENCED]
                lines.append(f"| {kind}, {key} | " + " | ".join(cells) + " |")
            spread = [
                (min(v), max(v)) for v in ([found[seed]["accuracy"][s] for seed in seeds] for s in REFERENCED)
            ]
            lines.append(
                f"| {kind}, accuracy, range | " + " | ".join(f"{a:.1%} to {b:.1%}" for a, b in spread) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("search", "confirm", "table"))
    parser.add_argument("--output", type=Path, required=True, help="table: the folder of the other files")
    parser.add_argument("--randoms", type=int, default=20)
    parser.add_argument("--refinements", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="confirm: how many")
    parser.add_argument("--first-seed", type=int, default=201, help="confirm: the first of them")
    parser.add_argument("--shares", help=f"confirm: token shares of {', '.join(REFERENCED)}; none: uniform")
    options = parser.parse_args()
    if options.what == "table":
        print(table(options.output / "skills-uniform.jsonl", options.output / "skills-best.jsonl"))
        return
    torch.set_num_threads(1)
    suite = Suite()
    if options.what == "search":
        records = search(suite, options.randoms, options.refinements, options.seed)
    else:
        shares = None
        if options.shares:
            wanted = [float(x) for x in options.shares.split(",")]
            shares = {s: x / suite.tokens[s] for s, x in zip(REFERENCED, wanted, strict=True)}
        records = confirm(suite, shares, range(options.first_seed, options.first_seed + options.seeds))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
