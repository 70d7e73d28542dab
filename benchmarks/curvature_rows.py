"""How few rows the curvature may rest on before alpha changes.

Flows in: numbers of rows for the Kronecker factors and for the eigenvalues. Flows out: the cosine of row-centred alpha with that of
the curvature on all rows, and the ratio of their norms, over random subsets. The gradients are the same in all of them.

    python -m benchmarks.curvature_rows --json [--case base] [--seed 0] [--subsets 3]

The model is trained on the five built-in skills (the shipped base model, fine-tuned; or a small one from random weights). Rows are drawn
from each domain in proportion. For scale: every row again with other sampled labels, and two halves of the rows with each other.
"""

from __future__ import annotations

import argparse
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.fidelity_approximation import CASES, Row, model_of, rows_of, train
from benchmarks.measured import told
from idealmix.curvature import Collector, fit_curvature, make_batches, select_layers, sum_gradient
from idealmix.skills import REFERENCED, SKILLS, base_model_path

# Rows of A and S, rows of the eigenvalues; K-FAC has only the first.
PAIRS = [
    (32, 32), (64, 64), (128, 128), (256, 256), (512, 512),
    (32, 64), (64, 128), (32, 128), (64, 256), (128, 256), (256, 512),
]  # fmt: skip
REFERENCE_ROWS = 60


def compare(case: str, seed: int, subsets: int) -> dict[str, Any]:
    """All pairs on one trained model."""
    torch.set_num_threads(1)
    tokenizer, model, chosen = (
        AutoTokenizer.from_pretrained(base_model_path()),
        model_of(case, seed),
        CASES[case],
    )
    pools = {skill: rows_of(tokenizer, skill, chosen.rows, seed, "train") for skill in SKILLS}
    train(model, [row for pool in pools.values() for row in pool], chosen, seed)
    collector = Collector(model, select_layers(model))
    domains = [_mean(collector, pool) for pool in pools.values()]
    references = [
        _mean(collector, rows_of(tokenizer, skill, REFERENCE_ROWS, seed, "reference")) for skill in REFERENCED
    ]
    tokens = np.array([sum(sum(t != -100 for t in row[2]) for row in pool) for pool in pools.values()])
    shares = tokens / tokens.sum()
    every = sum(map(len, pools.values()))

    def alpha(
        kind: Any, eigenvalues: list[Row], factors: list[Row] | None = None, labels: int = 0
    ) -> np.ndarray:
        curvature = fit_curvature(
            kind, collector, _batches(eigenvalues),
            for_factors=None if factors is None else _batches(factors), label_seed=labels,
        )  # fmt: skip
        dots = np.zeros((len(references), len(domains)))
        for layer in collector.layers:
            gradients = torch.stack([each[layer.name] for each in domains])
            response = curvature.respond(layer.name, gradients).flatten(1).double()
            asked = torch.stack([each[layer.name] for each in references]).flatten(1).double()
            dots += (asked @ response.T).numpy()
        return -shares * (dots - (dots @ shares)[:, None])

    whole = [row for pool in pools.values() for row in pool]
    best = {kind: alpha(kind, whole) for kind in ("ekfac", "kfac")}
    found = []
    for factors, eigenvalues in PAIRS:
        if eigenvalues >= every:
            continue
        for kind in ("ekfac", "kfac") if factors == eigenvalues else ("ekfac",):
            near = []
            for subset in range(subsets):
                rows = _subset(pools, eigenvalues / every, subset)
                near.append(_near(alpha(kind, rows, _subset(pools, factors / every, subset)), best[kind]))
            cosines, sizes = zip(*near)
            found.append(
                {
                    "curvature": kind, "rows_factors": factors, "rows_eigenvalues": eigenvalues,
                    "tokens_factors": round(factors / every * _tokens(whole)),
                    "cosine_min": round(min(cosines), 5), "cosine_mean": round(float(np.mean(cosines)), 5),
                    "size_min": round(min(sizes), 3), "size_max": round(max(sizes), 3),
                }
            )  # fmt: skip
    halves = [[row for pool in pools.values() for row in pool[i::2]] for i in range(2)]
    return {
        "case": case, "seed": seed, "subsets": subsets, "rows": every, "tokens": _tokens(whole),
        "widest": max(max(layer.d_in, layer.d_out) for layer in collector.layers),
        "other_labels_cosine": round(_near(alpha("ekfac", whole, labels=1), best["ekfac"])[0], 5),
        "halves_cosine": round(_near(alpha("ekfac", halves[0]), alpha("ekfac", halves[1], labels=1))[0], 5),
        "pairs": found,
    }  # fmt: skip


def _near(alpha: np.ndarray, best: np.ndarray) -> tuple[float, float]:
    """The cosine of the row-centred matrices, and the ratio of their norms."""
    one, other = (x - x.mean(1, keepdims=True) for x in (alpha, best))
    norms = np.linalg.norm(one), np.linalg.norm(other)
    return float((one * other).sum() / norms[0] / norms[1]), float(norms[0] / norms[1])


def _subset(pools: dict[str, list[Row]], part: float, seed: int) -> list[Row]:
    """That share of every pool; a smaller one is a part of a larger one of the same seed."""
    return [
        row
        for number, pool in enumerate(pools.values())
        for row in Random(1000 * seed + number).sample(pool, len(pool))[: max(1, round(part * len(pool)))]
    ]


def _batches(rows: list[Row]) -> Any:
    return make_batches(rows, 4096)


def _mean(collector: Collector, rows: list[Row]) -> dict[str, torch.Tensor]:
    return sum_gradient(collector, _batches(rows)).mean()


def _tokens(rows: list[Row]) -> int:
    return sum(len(row[1]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=list(CASES), default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subsets", type=int, default=3)
    told(parser, compare)


if __name__ == "__main__":
    main()
