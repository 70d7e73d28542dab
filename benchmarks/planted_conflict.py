"""Does `idealmix diagnose --conflict` find planted relations, and how often does it name one where there is none?

Flows in: generated skills, four planted domains. Flows out: the relations that are told, retrainings that check their sign, and
false positives of two nulls; the last line is one JSON object. Finished worlds are kept and not done again.

    python -m benchmarks.planted_conflict --json

Planted: `contrary` has coding's own prompts with contradicting answers (upper for lower case), `tutor` teaches reasoning in other words,
`copy` is arithmetic's rows again, `noise` has instruction's kind of prompts with shuffled answers. (Arithmetic with every
answer one too large is no contradiction to a model that is far from knowing arithmetic: it learned from it.)

Unrelated pairs have to be unrelated in truth, at this very model: two real domains share a format at least. So the nulls are made.
Echo: reference sets whose answers the trained model itself has sampled. The expected gradient of the log-likelihood under a
model's own samples is zero, so no domain helps or hurts them: alpha = 0 exactly, for any R and any domain. Halves: one domain's
unused rows in two random halves; their effects on a reference set are equal in truth. Each pair is judged at its own 5%.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from benchmarks.planted import World, contradicted, copied, kept, mislabelled, rephrased, skill
from idealmix.certainty import LEVEL, p_value
from idealmix.data.pools import Pool
from idealmix.data.tokenise import IGNORED, Encoder
from idealmix.diagnostics.conflict import likeness, relations
from idealmix.evaluation.loss import reference_loss
from idealmix.influence_rows import Measured
from idealmix.moments import Moments, Rows
from idealmix.skills import REFERENCED, base_model_path
from idealmix.training.model import load_tokenizer

PLANTED = {
    ("contrary", "coding"): "hurts",
    ("tutor", "reasoning"): "helps",
    ("copy", "mathematics"): "helps",
    ("noise", "instruction"): "hurts",
}
POOL_ROWS, REFERENCE_ROWS, TEST_ROWS = 400, 200, 300
ECHO_SETS, ECHO_ROWS, ECHO_TOKENS = 8, 100, 48
FACTORS = (0.5, 1.5)


def build(seed: int) -> World:
    """The four skills and the four planted domains."""
    rows = {name: skill(name, POOL_ROWS, seed) for name in REFERENCED}
    more = {name: skill(name, 2 * POOL_ROWS, seed)[POOL_ROWS:] for name in ("reasoning", "instruction")}
    planted = {
        "contrary": contradicted(rows["coding"]),
        "tutor": rephrased(more["reasoning"]),
        "copy": copied(rows["mathematics"]),
        "noise": mislabelled(more["instruction"], 1.0, seed)[0],
    }
    references = {name: skill(name, REFERENCE_ROWS, seed, "reference") for name in REFERENCED}
    return World.of(rows | planted, references, seed)


class Echo:
    """A reference set whose answers the model samples, one token after the other, at temperature 1; prompts of all skills."""

    def __init__(
        self, name: str, model: Any, pools: list[Pool], rows: int, generator: torch.Generator
    ) -> None:
        self.name = name
        self._rows: list[Any] = []
        prompts = [prompt for pool in pools for prompt in _prompts(pool)]
        order = torch.randperm(len(prompts), generator=generator)[:rows]
        end = load_tokenizer(base_model_path()).eos_token_id
        chosen = [prompts[k] for k in order.tolist()]
        for length in sorted({len(prompt) for prompt in chosen}):  # equal lengths need no pads
            ids = torch.tensor([prompt for prompt in chosen if len(prompt) == length])
            for _ in range(ECHO_TOKENS):
                with torch.no_grad():
                    logits = model(input_ids=ids, use_cache=False).logits[:, -1].double()
                ids = torch.cat([ids, torch.multinomial(logits.softmax(1), 1, generator=generator)], 1)
            for row in ids.tolist():
                answer = row[length:]
                answer = answer[: answer.index(end) + 1] if end in answer else answer
                self._add(row[:length], answer)
        self.ids = [row.id for row in self._rows]
        self.index = {row_id: i for i, row_id in enumerate(self.ids)}
        self.supervised = np.array([sum(x != IGNORED for x in row.labels[1:]) for row in self._rows])
        self.tokens = np.array([len(row.input_ids) for row in self._rows])

    def _add(self, prompt: list[int], answer: list[int]) -> None:
        labels = [IGNORED] * len(prompt) + answer
        row = SimpleNamespace(id=f"{self.name}-{len(self._rows)}", input_ids=prompt + answer, labels=labels)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Any:
        return self._rows[number]


def _prompts(pool: Pool) -> list[list[int]]:
    encoder = Encoder(load_tokenizer(base_model_path()), 96)
    return [encoder.prompt(pool.conversation(k)) for k in range(len(pool))]


def world(seed: int) -> dict[str, Any]:
    """One training, its relations, and the pairs of both nulls."""
    at = build(seed)
    model, record, mixture = at.train(at.counts())
    generator = torch.Generator().manual_seed(seed)
    prompts = {name: skill(name, 300, seed + 1000, "test") for name in REFERENCED}
    fresh = list(World.of({}, prompts, seed).references.values())
    echoes = {f"echo-{k}": Echo(f"echo-{k}", model, fresh, ECHO_ROWS, generator) for k in range(ECHO_SETS)}
    (found,) = at.measure(model, record, mixture, centred=False)
    (null,) = at.measure(model, record, mixture, echoes, centred=False)
    alike = likeness(found)
    names = list(found.matrix.domains)
    return {
        "seed": seed,
        "rows": mixture.counts,
        "losses": dict(found.matrix.losses),
        "relations": [r.to_json() for r in relations(found.matrix)],
        "likeness": {f"{a}, {b}": float(alike[names.index(a), names.index(b)]) for a, b in PLANTED},
        "echo": [[r.reference, r.domain, r.p, r.value / r.se] for r in relations(null.matrix)],
        "echo_loss": dict(null.matrix.losses),
        "halves": halves(found, seed),
    }  # fmt: skip


def halves(found: Measured, seed: int) -> list[list[Any]]:
    """p of the difference between two random halves of every domain's unused rows, on every reference set.

    Both halves meet the same reference rows, so only the training rows' error counts.
    """
    rng, references = np.random.default_rng(seed), found.matrix.references
    pairs = []
    for name, each in found.unused.items():
        order, half = rng.permutation(len(each)), len(each) // 2
        parts = [
            Rows(each.rows.products[n], each.rows.supervised[n], each.rows.weights[n])
            for n in (order[:half], order[half : 2 * half])
        ]
        still = [Rows(np.zeros((2, 2)), np.ones(2), np.ones(2)) for _ in references]
        moments = Moments.of(parts, still)
        for q, reference in enumerate(references):
            difference = moments.combine(np.eye(len(references))[q], np.array([[1.0, -1.0]]))
            pairs.append([reference, name, p_value(*(float(x[0]) for x in difference))])
    return pairs


def retrained(seed: int, domain: str, reference: str) -> dict[str, Any]:
    """A planted pair's slope by training with half and one and a half times the domain, volume free."""
    at = build(seed)
    tests = World.of({}, {reference: skill(reference, TEST_ROWS, seed, "test")}, seed).references[reference]
    low, high = (reference_loss(at.train(at.counts(factors={domain: f}))[0], tests).mean for f in FACTORS)
    return {"seed": seed, "domain": domain, "slope": (high - low) / (FACTORS[1] - FACTORS[0])}


def rate(p: list[float], clusters: list[str]) -> dict[str, Any]:
    """Share of p at most 5%, with the exact binomial 95% interval and one that draws whole clusters."""
    hit = np.array(p) <= LEVEL
    n, k = len(hit), int(hit.sum())
    rng, names = np.random.default_rng(0), sorted(set(clusters))
    by_name = {name: hit[np.array(clusters) == name] for name in names}
    draws = [np.concatenate([by_name[c] for c in rng.choice(names, len(names))]).mean() for _ in range(2000)]
    return {
        "pairs": n,
        "named": k,
        "rate": k / n,
        "binomial": [
            float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0,
            float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0,
        ],
        "clusters": len(names),
        "clustered": np.quantile(draws, [0.025, 0.975]).tolist(),
    }


def summary(worlds: list[dict[str, Any]], checked: list[dict[str, Any]]) -> dict[str, Any]:
    """What was told of the planted pairs, and the false positives."""
    found: dict[str, Any] = {"seeds": [w["seed"] for w in worlds], "planted": {}, "false_positives": {}}
    for (domain, reference), sign in PLANTED.items():
        these = [
            next(r for r in w["relations"] if (r["domain"], r["reference"]) == (domain, reference))
            for w in worlds
        ]
        found["planted"][f"{domain} {sign} {reference}"] = {
            "told": [r["says"] for r in these],
            "alone": [r["alone"] for r in these],
            "right": sum(r["says"] == sign for r in these),
            "z": [r["value"] / r["se"] for r in these],
            "retrained": [c["slope"] for c in checked if c["domain"] == domain],
        }
    found["likeness"] = {pair: [w["likeness"][pair] for w in worlds] for pair in worlds[0]["likeness"]}
    found["false_positives"] = {
        "echo": rate(
            [p for w in worlds for _, _, p, _ in w["echo"]],
            [f"{w['seed']}/{reference}" for w in worlds for reference, *_ in w["echo"]],
        ),
        "halves": rate(
            [p for w in worlds for _, _, p in w["halves"]],
            [f"{w['seed']}/{domain}" for w in worlds for _, domain, _ in w["halves"]],
        ),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/planted"))
    parser.add_argument("--seeds", default="41,42,43")
    parser.add_argument(
        "--retrain", default="41,42,43", help="seeds whose planted pairs are retrained; '' none"
    )
    parser.add_argument("--json", action="store_true", help="nothing before the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worlds, checked = [], []
    for seed in map(int, options.seeds.split(",")):
        worlds.append(kept(options.output / "conflict.jsonl", str(seed), partial(world, seed)))
        if not options.json:
            print(json.dumps(worlds[-1]["relations"][:12]), flush=True)
    for seed in map(int, filter(None, options.retrain.split(","))):
        for pair in PLANTED:
            key, path = f"{seed}/{pair[0]}", options.output / "conflict-retrained.jsonl"
            checked.append(kept(path, key, partial(retrained, seed, *pair)))
    print(json.dumps(summary(worlds, checked), allow_nan=False))


if __name__ == "__main__":
    main()
