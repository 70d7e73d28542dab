"""How a mixture's cost grows with the number of domains, and with one pool that dwarfs the others.

Flows in: the shipped base model and generated rows. Flows out: seconds and peak memory.

    python -m benchmarks.imbalance --json                       # 2, 5, 20, 100 domains; pools of 50 to 1,000,000 rows: an hour
    python -m benchmarks.imbalance --json --largest 100000      # ten minutes

domains  the influence stage and the allocation with D domains: at a fixed number of rows in all, and at a fixed number a domain
sizes    pools of 50, 1,000, 20,000 and `largest` rows in one mixture of 135,000 tokens: reading them, drawing, the stage
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Peak, alone, told
from idealmix import config
from idealmix.allocation import allocate
from idealmix.data.mixture import Mixture, draw
from idealmix.data.pools import Pool, load_pool
from idealmix.data.tokenise import Encoder
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_stage import measure
from idealmix.rounds.evidence import slopes_of
from idealmix.rounds.volume import Drawn, mean_volumes
from idealmix.skills import base_model_path
from idealmix.training.model import load_model, load_tokenizer

DOMAINS = (2, 5, 20, 100)
REFERENCES, REFERENCE_ROWS, BUDGET = 4, 64, 135_000
LETTERS = "abcdefghijklmnop"


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """Rows of short words and their reversals; no two prompts are equal."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            word = "".join(rng.choices(LETTERS, k=rng.randint(3, 9)))
            row = {"prompt": f"turn {word} {seed} {number}", "response": word[::-1]}
            file.write(json.dumps(row) + "\n")
    return path


def pools(folder: Path, kind: str, rows: dict[str, int], first_seed: int) -> dict[str, Pool]:
    encoder = Encoder(load_tokenizer(base_model_path()), 96)
    return {
        name: load_pool(
            name,
            config.Source(path=str(write_rows(folder / f"{kind}-{name}.jsonl", count, first_seed + i))),
            encoder,
            seed=0,
        )
        for i, (name, count) in enumerate(rows.items())
    }


def staged(domains: dict[str, Pool], references: dict[str, Pool], mixture: Mixture) -> dict[str, Any]:
    """One influence stage and the allocation that follows."""
    peak = Peak()
    peak.reset()
    began = time.perf_counter()
    model = load_model(base_model_path(), "float32")
    matrix = measure(model, mixture, domains, references, config.Influence())
    staged_s, peak_mb = time.perf_counter() - began, peak.value()
    began = time.perf_counter()
    moved = allocated(matrix, domains, mixture)
    return {
        "stage_s": round(staged_s, 2),
        "stage_peak_mb": round(peak_mb),
        "stage_tokens": sum(matrix.facts["pass_tokens"].values()),
        "allocate_s": round(time.perf_counter() - began, 3),
        "moved": moved,
    }


def allocated(matrix: InfluenceMatrix, domains: dict[str, Pool], mixture: Mixture) -> int:
    """How many domains move, at a budget that is checked to be held."""
    settings = config.Allocation(m=0.5)
    slopes = slopes_of(matrix, dict.fromkeys(matrix.references, 1 / len(matrix.references)))
    sizes = {name: len(pool) for name, pool in domains.items()}
    step = allocate(mixture.counts, sizes, mean_volumes(domains, "tokens"), slopes, settings, m=0.5)
    drawn = Drawn(domains, "tokens", 0)
    step = drawn.hold(step, drawn.amount(mixture.counts), settings)
    off = abs(drawn.amount(step.counts) / drawn.amount(mixture.counts) - 1)
    if off > 0.01:
        raise RuntimeError(f"the budget is missed by {off:.1%}")
    return sum(move.after != move.before for move in step.moves.values())


def of_domains(number: int, rows: int) -> dict[str, Any]:
    """`number` domains of `rows` rows each, all of them drawn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = {f"d{i:03d}": rows for i in range(number)}
        domains = pools(Path(folder), "domain", names, 1000)
        references = pools(
            Path(folder), "reference", {f"q{i}": REFERENCE_ROWS for i in range(REFERENCES)}, 9000
        )
        mixture = draw(domains, names, 0, max_repeats=1)
        return {"domains": number, "rows_each": rows, **staged(domains, references, mixture)}


def of_sizes(largest: int) -> dict[str, Any]:
    """Four pools of very unequal size in one mixture: equal tokens of each while the pool lasts (four repetitions at most)."""
    torch.set_num_threads(1)
    peak = Peak()
    peak.reset()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        domains = pools(
            Path(folder), "domain", {"tiny": 50, "small": 1000, "large": 20_000, "largest": largest}, 1000
        )
        read_s, read_mb = time.perf_counter() - began, peak.value()
        references = pools(
            Path(folder), "reference", {f"q{i}": REFERENCE_ROWS for i in range(REFERENCES)}, 9000
        )
        per_row = mean_volumes(domains, "tokens")
        counts = {name: min(4 * len(pool), int(BUDGET / 4 / per_row[name])) for name, pool in domains.items()}
        began = time.perf_counter()
        mixture = draw(domains, counts, 0, max_repeats=4)
        drawn_s = time.perf_counter() - began
        return {
            "largest": largest,
            "read_s": round(read_s, 1),
            "read_peak_mb": round(read_mb),
            "draw_s": round(drawn_s, 2),
            "mixture_rows": mixture.rows,
            **staged(domains, references, mixture),
        }


def growth(found: list[dict[str, Any]]) -> float:
    """The exponent of the stage's time in the number of domains, by least squares in logarithms."""
    number = np.log([one["domains"] for one in found])
    return round(float(np.polyfit(number, np.log([one["stage_s"] for one in found]), 1)[0]), 3)


def compare(rows: int, rows_each: int, largest: int) -> dict[str, Any]:
    """All cases, each alone in a process."""
    fixed = [alone("benchmarks.imbalance:of_domains", number=n, rows=rows // n) for n in DOMAINS]
    growing = [alone("benchmarks.imbalance:of_domains", number=n, rows=rows_each) for n in DOMAINS]
    sizes = [alone("benchmarks.imbalance:of_sizes", largest=n) for n in sorted({50_000, largest})]
    return {
        "same_rows_in_all": fixed,
        "exponent_same_rows_in_all": growth(fixed),
        "same_rows_each": growing,
        "exponent_same_rows_each": growth(growing),
        "sizes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=3200, help="in all, where their number is fixed")
    parser.add_argument("--rows-each", type=int, default=32)
    parser.add_argument("--largest", type=int, default=1_000_000)
    told(parser, compare)


if __name__ == "__main__":
    main()
