"""How often the stated 95% intervals of alpha hold what they are about: 200 draws of the rows each.

Flows in: a checkpoint of `benchmarks.retrainings`, freshly generated rows. Flows out: coverage by entry; the last line is one JSON
object.

    python -m benchmarks.error_coverage --json

* ``se_subsample``: half of the rows of a data set, against alpha of all of them.
* ``se_population``: fresh data sets, training and reference rows both, against alpha of the population they come from.

Checkpoint, curvature and layers (the attention's output projections) are held fixed. All products of a training row's and a
reference row's gradient are then computed once, ``<g_n, R g_m>``; a draw only picks among them, and goes through idealmix's own
`Moments` and `InfluenceMatrix`. The population is the generated pool itself: data sets are drawn from it with replacement, so
that its alpha is known exactly. Not in the intervals, and so not tested: what another sample would change in the curvature.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from benchmarks.retrainings import SUITES, folder_of
from idealmix import config
from idealmix.curvature import (
    Batch,
    Collector,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.data.pools import Pool, load_pool
from idealmix.data.tokenise import Encoder
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Array, Estimate, Moments, Rows
from idealmix.skills import REFERENCED, base_model_path, generate
from idealmix.training.model import load_model, load_tokenizer
from idealmix.training.record import TrainingRecord

LAYERS = "self_attn.o_proj"
LEVEL, TARGET = 0.95, (0.90, 0.98)
Places = Any  # integer arrays


@dataclass(frozen=True)
class World:
    """Every pair's product. Places of the rows of a domain or a reference set are given by name.

    products: (N, M), <g_n, R g_m>; train_tokens (N,), reference_tokens (M,): supervised tokens.
    """

    products: Array
    train_tokens: Array
    reference_tokens: Array
    domains: dict[str, Places]
    references: dict[str, Places]
    v: dict[str, float]

    def matrix(
        self, training: list[tuple[Places, Array, float]], references: list[Places]
    ) -> InfluenceMatrix:
        """Of drawn rows: every domain's drawn rows, then its unused ones, as places, weights and fraction."""
        means = np.stack([self.products[:, m].sum(1) / self.reference_tokens[m].sum() for m in references], 1)
        sums = [(w @ self.products[n]) / (w @ self.train_tokens[n]) for n, w, _ in training]
        moments = Moments.of(
            [Rows(means[n], self.train_tokens[n], w, fraction) for n, w, fraction in training],
            [
                Rows(np.stack([s[m] for s in sums], 1), self.reference_tokens[m], np.ones(len(m)))
                for m in references
            ],
        )
        return InfluenceMatrix(
            domains=tuple(self.domains),
            references=tuple(self.references),
            step_weights=self.v,
            centred=True,
            moments=moments,
            layers={},
            losses={},
            facts={},
        )


def build(folder: Path, rows: int, seed: int) -> World:
    """Generate `rows` rows of each set, and all products of their gradients at the checkpoint's end."""
    record = TrainingRecord.read(folder / "record.json")
    model = load_model(folder / "end" / "model", "float32")
    collector = Collector(model, select_layers(model, LAYERS))
    with tempfile.TemporaryDirectory() as place:
        pools = {
            split: {name: _pool(Path(place), name, rows, seed, split) for name in names}
            for split, names in (("train", list(record.step_weights)), ("reference", list(REFERENCED)))
        }
        batches = [b for name, pool in pools["train"].items() for b in _batches(name, pool)]
        curvature = fit_curvature("ekfac", collector, batches, rho=config.Influence().damping, label_seed=0)
        queries: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in collector.layers}
        tokens: list[float] = []
        for pool in pools["reference"].values():
            for row in map(pool.row, range(len(pool))):
                gradient = sum_gradient(
                    collector, make_batches([(row.id, row.input_ids, row.labels, 1.0)], 10**6)
                )
                tokens.append(gradient.supervised)
                for name, found in queries.items():
                    found.append(curvature.respond(name, gradient.matrices[name]))
        dots = row_dots(collector, batches, {name: torch.stack(found) for name, found in queries.items()})
    owners = np.array([row.split("/")[0] for row in dots.rows.row_ids])
    return World(
        products=dots.dots.numpy(),
        train_tokens=dots.rows.supervised.double().numpy(),
        reference_tokens=np.array(tokens),
        domains={name: np.flatnonzero(owners == name) for name in pools["train"]},
        references={name: np.arange(k * rows, (k + 1) * rows) for k, name in enumerate(REFERENCED)},
        v=record.step_weights,
    )


def _pool(place: Path, name: str, rows: int, seed: int, split: str) -> Pool:
    path = place / f"{name}-{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate(name, rows, seed, split)))
    return load_pool(
        name, config.Source(path=str(path)), Encoder(load_tokenizer(base_model_path()), 96), seed=0
    )


def _batches(name: str, pool: Pool) -> list[Batch]:
    rows = [pool.row(k) for k in range(len(pool))]
    return make_batches([(f"{name}/{row.id}", row.input_ids, row.labels, 1.0) for row in rows], 4096)


def subsample(world: World, draws: int, size: int, fraction: float, rng: np.random.Generator) -> Array:
    """(draws, Q, D) bool: the interval of `se_subsample` holds alpha of all rows; every draw has its own data set.

    Every fourth drawn row is in the mixture twice, since repetitions are weights.
    """
    D, references = len(world.domains), [m[:size] for m in world.references.values()]
    twice = np.where(np.arange(size) % 4 == 0, 2.0, 1.0)
    held, chosen = [], round(size * fraction)
    for _ in range(draws):
        full, sample = [], []
        for s, pool in enumerate([*world.domains.values()] * 2):
            places, weights = rng.choice(pool, size, replace=False), twice if s < D else np.ones(size)
            full.append((places, weights, 1.0))
            sample.append((places[k := rng.permutation(size)[:chosen]], weights[k], chosen / size))
        found = world.matrix(sample, references).entries("acting", subsample=True)
        held.append(_holds(found, world.matrix(full, references).alpha))
    return np.array(held)


def population(world: World, draws: int, size: int, rng: np.random.Generator) -> Array:
    """(draws, Q, D) bool: the interval of `se_population` from fresh training and reference rows holds the population's."""
    every = [(n, np.ones(len(n)), 1.0) for _ in range(2) for n in world.domains.values()]
    truth = world.matrix(every, list(world.references.values())).alpha
    held = []
    for _ in range(draws):
        training = [(rng.choice(n, size), np.ones(size), 1.0) for n, _, _ in every]
        references = [rng.choice(m, size) for m in world.references.values()]
        held.append(_holds(world.matrix(training, references).entries("acting"), truth))
    return np.array(held)


def _holds(found: Estimate, truth: Array) -> Array:
    return np.abs(found.value - truth) <= stdtrit(found.dof, 0.5 + LEVEL / 2) * found.se


def summary(held: Array) -> dict[str, Any]:
    """Coverage by entry, its mean and range, and the share of entries within the target."""
    by_entry = held.mean(0)
    within = (by_entry >= TARGET[0]) & (by_entry <= TARGET[1])
    return {
        "draws": len(held),
        "coverage": float(by_entry.mean()),
        "least": float(by_entry.min()),
        "most": float(by_entry.max()),
        "entries": int(by_entry.size),
        "entries_within_target": int(within.sum()),
        "by_entry": by_entry.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/fidelity"), help="of benchmarks.retrainings"
    )
    parser.add_argument("--suite", type=int, default=0)
    parser.add_argument("--checkpoint", type=int, default=301, help="seed of the training")
    parser.add_argument("--rows", type=int, default=300, help="of each set in the population")
    parser.add_argument("--sizes", default="200,64,32", help="rows of each set in a data set")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=901, help="of the generated rows and the draws")
    parser.add_argument("--json", action="store_true", help="nothing before the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, rng = time.monotonic(), np.random.default_rng(options.seed)
    folder = folder_of(SUITES[options.suite], options.output) / f"seed-{options.checkpoint}"
    world = build(folder, options.rows, options.seed)
    found: dict[str, Any] = {"se_subsample": {}, "se_population": {}, "layers": LAYERS, "rows": options.rows}
    for size in map(int, options.sizes.split(",")):
        found["se_subsample"][size] = summary(subsample(world, options.draws, size, 0.5, rng))
        found["se_population"][size] = summary(population(world, options.draws, size, rng))
        if not options.json:
            for kind in ("se_subsample", "se_population"):
                line = {k: v for k, v in found[kind][size].items() if k != "by_entry"}
                print(kind, size, line, flush=True)
    found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main()
