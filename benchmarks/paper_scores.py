"""Scores of docs/results/paper.md: what the models of a finished comparison get right, and who differs from joint, row by row.

Flows in: the folder of a finished `idealmix compare` that kept its checkpoints; a configuration whose `scores` and `tests` are asked. Flows
out: for each score and model its mean over rows, and the paired difference to joint with a 95 % interval by rows. The models are
the base and, of each method, the mixture of the first seed.

    python -m benchmarks.paper_scores runs/paper-cpu/compare examples/paper-gpu.yaml --methods joint ideal --rows 57 --json

A score is `uninformative` where neither the base model nor joint can be told from zero: their 95 % intervals hold it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from idealmix import configfile
from idealmix.config import Config
from idealmix.data.pools import load_pool
from idealmix.data.tokenise import Encoder
from idealmix.evaluation.score_result import ScoreResult
from idealmix.evaluation.scores import score
from idealmix.rounds.models import device
from idealmix.training.model import load_model, load_tokenizer
from idealmix.training.record import TrainingRecord


def interval(values: np.ndarray) -> list[float]:
    """95 % of a mean over rows, by Student's t."""
    half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return [float(values.mean()) - half, float(values.mean()) + half]


def compared(found: dict[str, dict[str, ScoreResult]]) -> dict[str, Any]:
    """Scores by model and name -> figures by score and model; `joint` is what the others are compared with."""
    tables: dict[str, Any] = {}
    for name in found["joint"]:
        rows = {
            model: np.array(list((scores[name].per_row or {}).values())) for model, scores in found.items()
        }
        table: dict[str, Any] = {
            model: {"mean": float(values.mean()), "interval": interval(values), "rows": len(values)}
            for model, values in rows.items()
        }
        for model in rows.keys() - {"joint"}:
            change = rows[model] - rows["joint"]
            table[model]["minus_joint"] = {"mean": float(change.mean()), "interval": interval(change)}
        silent = all(table[model]["interval"][0] <= 0 for model in ("base", "joint"))
        tables[name] = {"informative": not silent, "models": table}
    return tables


def models(folder: Path, methods: list[str]) -> dict[str, Path | str]:
    """The base model and each method's first mixture: where the weights lie."""
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    places: dict[str, Path | str] = {"base": content["model"]}
    for name in methods:
        (mixture,) = content["methods"][name]["runs"][0]["mixtures"]
        training = folder / mixture["folder"] / "train"
        places[name] = TrainingRecord.read(training / "record.json").model_folder(training)
    return places


def measured(path: Path | str, config: Config, rows: int | None, where: Path) -> dict[str, ScoreResult]:
    """All of a configuration's final scores of one model."""
    tokenizer = load_tokenizer(config.model)
    encoder = Encoder(tokenizer, config.training.max_length)
    model = load_model(path, "bfloat16" if device() != "cpu" else "float32").to(device())
    found = {}
    for name, setting in config.final_scores.items():
        pool = load_pool(str(setting.test), config.tests[str(setting.test)], encoder, seed=config.seed)
        fewer = min(rows or len(pool), setting.rows or len(pool))
        found[name] = score(
            name, model, tokenizer, pool, setting.model_copy(update={"rows": fewer}), folder=where
        )
        print(f"{path}: {name} {found[name].mean:.3f} of {found[name].n}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", default=["joint", "ideal"], help="joint among them")
    parser.add_argument("--rows", type=int, help="of each score, at most")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    options = parser.parse_args()
    config = configfile.load(options.config, [])
    found = {
        name: measured(path, config, options.rows, options.config.parent)
        for name, path in models(options.folder, options.methods).items()
    }
    tables = compared(found)
    if not options.json:
        for name, table in tables.items():
            print(name, "" if table["informative"] else "(uninformative)")
            for model, figures in table["models"].items():
                print(f"  {model}: {figures}")
    print(json.dumps(tables))


if __name__ == "__main__":
    main()
