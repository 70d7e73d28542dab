"""Worlds with planted relations and planted wrong labels, trained and measured: what `idealmix diagnose` has to find.

Flows in: a seed. Flows out: pools whose truth is known, a training of the shipped base model on them, and one influence stage
with its rows. `benchmarks.planted_conflict` and `benchmarks.planted_noise` ask the questions.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.retrainings import BATCH_ROWS, train
from idealmix import config
from idealmix.data.mixture import Mixture, draw
from idealmix.data.pools import Pool, load_pool
from idealmix.data.tokenise import Encoder
from idealmix.influence_rows import Measured
from idealmix.influence_stage import measure_rows
from idealmix.skills import base_model_path, demo_config, generate
from idealmix.training.model import load_tokenizer
from idealmix.training.order import plan_steps
from idealmix.training.record import TrainingRecord

Rows = list[dict[str, str]]
BUDGET = 30_000
"""Training tokens."""


def contradicted(rows: Rows) -> Rows:
    """The same prompts, every letter of the answer in the other case."""
    return [row | {"id": f"contrary-{row['id']}", "response": row["response"].swapcase()} for row in rows]


def rephrased(rows: Rows) -> Rows:
    """The same skill, asked in other words."""
    return [row | {"id": f"tutor-{row['id']}", "prompt": f"say who: {row['prompt']}"} for row in rows]


def copied(rows: Rows) -> Rows:
    """The same rows under other ids."""
    return [row | {"id": f"copy-{row['id']}"} for row in rows]


def mislabelled(rows: Rows, share: float, seed: int) -> tuple[Rows, set[str]]:
    """A share of the rows gets the answer of another row, never an equal one. Returns the rows and the ids of the wrong ones."""
    rng = Random(f"mislabelled/{seed}")
    wrong = {row["id"] for row in rng.sample(rows, round(share * len(rows)))}

    def other(answer: str) -> str:
        while True:
            found = rng.choice(rows)["response"]
            if found != answer:
                return found

    return [row | {"response": other(row["response"])} if row["id"] in wrong else row for row in rows], wrong


@dataclass
class World:
    """Pools, and what `benchmarks.retrainings.train` asks of a bed.

    Attributes:
        domains, references: pools by name.
        rate, beta2: the demo's learning rate and AdamW's second beta.
        seed: of the generated rows, the draw and the order.
    """

    domains: dict[str, Pool]
    references: dict[str, Pool]
    rate: float
    beta2: float
    seed: int

    @classmethod
    def of(cls, domains: Mapping[str, Rows], references: Mapping[str, Rows], seed: int) -> World:
        """From rows."""
        settings = demo_config(Path("."))["training"]
        encoder = Encoder(load_tokenizer(base_model_path()), settings["max_length"])
        return cls(
            {name: as_pool(name, rows, encoder) for name, rows in domains.items()},
            {name: as_pool(name, rows, encoder) for name, rows in references.items()},
            settings["learning_rate"],
            settings["adam_beta2"],
            seed,
        )

    def counts(self, budget: int = BUDGET, factors: Mapping[str, float] | None = None) -> dict[str, int]:
        """Equal rows of every domain that fill the budget; then some domains' multiplied, volume free."""
        per_row = sum(float(pool.tokens.mean()) for pool in self.domains.values())
        return {name: round(budget / per_row * (factors or {}).get(name, 1.0)) for name in self.domains}

    def train(self, counts: Mapping[str, int]) -> tuple[Any, TrainingRecord, Mixture]:
        """The model trained on these counts, in one pass."""
        mixture = draw(self.domains, counts, self.seed, max_repeats=4)
        plan = plan_steps(
            mixture, self.domains, seed=self.seed, epochs=1, micro_batch_rows=BATCH_ROWS, steps=None
        )
        model, record = train(self, plan)  # type: ignore[arg-type]
        return model, record, mixture

    def measure(
        self,
        model: Any,
        record: TrainingRecord,
        mixture: Mixture,
        references: Mapping[str, Any] | None = None,
        dampings: Sequence[float] = (),
        **settings: Any,
    ) -> list[Measured]:
        """One stage over all drawn and all unused rows, at every damping."""
        return measure_rows(
            model,
            mixture,
            self.domains,
            references or self.references,
            config.Influence(sample_fraction=1.0, **settings),
            record=record,
            seed=self.seed,
            dampings=dampings,
            all_unused=True,
        )


def skill(name: str, count: int, seed: int, split: str = "train") -> Rows:
    """Generated rows of a built-in skill."""
    return list(generate(name, count, seed, split))


def as_pool(name: str, rows: Rows, encoder: Encoder) -> Pool:
    """Tokenised, as a user's file would be."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_pool(name, config.Source(path=str(path)), encoder, seed=0)


def kept(path: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The record of that key from a file of JSON lines; else made, and added to the file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {record["key"]: record for record in map(json.loads, lines)}
    if key not in found:
        found[key] = {"key": key, **make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found[key], allow_nan=False) + "\n")
    return found[key]
