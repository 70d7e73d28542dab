"""How far a mixture carries over that was found small: two model sizes, three budgets, on the built-in skills.

Flows in: the shipped base model and a smaller one (`scripts/train_base_model.py --width 64`). Flows out: for every
search (model, part of the budget, seed) the slopes that it measured at joint, the mixture that it ended with, and the test losses
of that mixture trained at the full size, beside those of joint and of equal shares. Runs lie under --output; what is there is not done again.

    python scripts/train_base_model.py --width 64 --output runs/transfer/base-64
    python -m benchmarks.transfer --json --small runs/transfer/base-64          # seeds 0 and 1

The search is the product's own (`search:` in a configuration). A search of the whole budget on the model itself is what the others
are compared with.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from idealmix import configfile
from idealmix.comparison.single import run_any
from idealmix.rounds.watch import Silent
from idealmix.skills import base_model_path, demo_config, write_suite

FRACTIONS = (0.1, 1 / 3, 1.0)


def searched(output: Path, model: Path, label: str, fraction: float, seed: int) -> dict[str, Any]:
    """One search and its training in full: slopes at joint, counts, test losses."""
    suite = output / f"suite-{seed}"
    write_suite(suite, seed=SUITE + seed)
    config = demo_config(suite, seed=seed) | {
        "scores": {},
        "search": {"model": str(model), "fraction": fraction},
        "output": str(output / f"{label}-{fraction:.2f}-seed-{seed}"),
    }
    found = run_any(configfile.from_mapping(config, folder=Path.cwd()), Silent())
    moves = found["rounds"][0]["allocation"]["moves"]
    return {
        "search": label,
        "fraction": round(fraction, 2),
        "seed": seed,
        "slopes": {name: move["slope"] for name, move in moves.items()},
        "counts": found["full"]["counts"],
        "tokens": found["full"]["tokens"],
        "kept": found["best"],
        "rounds": len(found["rounds"]),
        "losses": {name: loss["mean"] for name, loss in found["full"]["tests"]["mixture"].items()},
        "search_s": found["timing"]["total_s"] - sum(found["timing"]["full_phases"].values()),
    }


SUITE = 51
"""The first suite's generator seed; no other benchmark uses it."""


def unsearched(method: str, output: Path, seed: int) -> dict[str, float]:
    """Test losses, at the full size, of a mixture that needs no search: joint or uniform."""
    suite = output / f"suite-{seed}"
    write_suite(suite, seed=SUITE + seed)
    config = demo_config(suite, seed=seed)
    config |= {"scores": {}, "method": method, "output": str(output / f"{method}-seed-{seed}")}
    config["allocation"]["replicates"] = 0
    found = run_any(configfile.from_mapping(config, folder=Path.cwd()), Silent())
    return {name: loss["mean"] for name, loss in found["final"]["chosen"]["tests"].items()}


def gain(losses: dict[str, float], joint: dict[str, float]) -> float:
    """How far the mean test loss lies below joint's, nats per supervised token."""
    return float(np.mean([joint[name] - loss for name, loss in losses.items()]))


def agreement(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Of two searches' slopes by domain: correlation, rank correlation, share of equal signs."""
    a, b = (np.array([slopes[name] for name in one]) for slopes in (one, other))
    return {
        "pearson": float(pearsonr(a, b).statistic),
        "spearman": float(spearmanr(a, b).statistic),
        "signs": float(np.mean(np.sign(a) == np.sign(b))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=Path, required=True, help="the smaller model's folder")
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {"same": base_model_path(), "small": options.small.resolve()}
    rows, joints, uniform = [], {}, {}
    for seed in range(options.seeds):
        joints[seed] = unsearched("joint", options.output, seed)
        uniform[seed] = gain(unsearched("uniform", options.output, seed), joints[seed])
        own = searched(options.output, models["same"], "same", 1.0, seed)
        for label, fraction in product(models, FRACTIONS):
            row = searched(options.output, models[label], label, fraction, seed)
            row["agreement"] = agreement(row["slopes"], own["slopes"])
            row["gain"] = gain(row["losses"], joints[seed])
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    by_search = {
        f"{label} {fraction:.2f}": {
            key: float(
                np.mean(
                    [
                        r[key] if key == "gain" else r["agreement"][key]
                        for r in rows
                        if same(r, label, fraction)
                    ]
                )
            )
            for key in ("gain", "pearson", "spearman", "signs")
        }
        for label, fraction in product(models, FRACTIONS)
    }
    result = {
        "seeds": options.seeds,
        "joint": joints,
        "uniform_gain": uniform,
        "by_search": by_search,
        "searches": rows,
    }
    if options.json:
        print(json.dumps(result))


def same(row: dict[str, Any], label: str, fraction: float) -> bool:
    """Whether a row is of that search."""
    return bool(row["search"] == label and row["fraction"] == round(fraction, 2))


if __name__ == "__main__":
    main()
