"""The primary figure of docs/results/paper.md: how much more than joint a method gains over the base model.

Flows in: the folder of a finished `idealmix compare`. Flows out: for every method and seed the paired per-row difference of the test loss
to joint, each capability over joint's own gain over the base model, and their mean over capabilities.

    python -m benchmarks.paper runs/paper-cpu/compare --json
    python -m benchmarks.paper runs/paper-cpu/compare --steps --json     # every step that IDEAL trained, kept or not

0.07 means: its gain is 7 % above joint's. The error of one seed is clustered by test row (joint's gain taken as known); over seeds it is the
spread of the seeds' means, and knows the seed's noise. `detectable` is 1.96 of the larger of the two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from idealmix import configfile
from idealmix.data.mixture import Mixture
from idealmix.evaluation.loss import reference_loss
from idealmix.evaluation.set_loss import SetLoss, paired_difference
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.watch import Silent
from idealmix.training.model import load_model
from idealmix.training.record import TrainingRecord

Sets = Mapping[str, SetLoss]


def tests_of(path: Path) -> Sets:
    """A ``tests.json``'s losses by row."""
    found = json.loads(path.read_text(encoding="utf-8"))["tests"]
    return {name: SetLoss.from_json(loss) for name, loss in found.items()}


def beyond_joint(method: Sets, joint: Sets, base: Sets) -> dict[str, Any]:
    """One method at one seed."""
    shares = {}
    for name, before in joint.items():
        value, se, _ = paired_difference(method[name], before)
        gain = base[name].mean - before.mean
        shares[name] = {"more": -value / gain, "se": se / abs(gain), "joints_gain": gain}
    return {
        "more": float(np.mean([one["more"] for one in shares.values()])),
        "se_rows": float(np.sqrt(sum(one["se"] ** 2 for one in shares.values())) / len(shares)),
        "by_capability": shares,
    }


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds with both errors."""
    each = [run["more"] for run in runs]
    rows = float(np.sqrt(sum(run["se_rows"] ** 2 for run in runs))) / len(runs)
    seeds = float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
    return {
        "more": float(np.mean(each)), "se_rows": rows, "se_seeds": seeds,
        "detectable": 1.96 * max(rows, seeds or 0.0), "runs": runs,
    }  # fmt: skip


def figures(folder: Path) -> dict[str, Any]:
    """Every method that ended with one mixture a seed."""
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    base = tests_of(folder / "base" / "tests.json")

    def of(name: str, seed: int) -> Sets:
        (run,) = (run for run in content["methods"][name]["runs"] if run["seed"] == seed)
        (mixture,) = run["mixtures"]
        return tests_of(folder / mixture["folder"] / "tests.json")

    found = {}
    for name, method in content["methods"].items():
        if name == "joint" or any(len(run["mixtures"]) != 1 for run in method["runs"]):
            continue
        runs = [
            {"seed": seed, **beyond_joint(of(name, seed), of("joint", seed), base)}
            for seed in content["seeds"]
        ]
        found[name] = {**over_seeds(runs), "search_epochs": method["search_epochs"]}
    return {"seeds": content["seeds"], "budget": content["budget"], "methods": found}


def steps(folder: Path) -> list[dict[str, Any]]:
    """Every mixture that IDEAL's rounds trained beside joint: the same figure, its test losses measured now."""
    config = configfile.load(folder / "config.yaml")
    inputs = load_inputs(config, Silent())
    content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    base = tests_of(folder / "base" / "tests.json")
    found = []
    for run in content["methods"]["joint"]["runs"]:
        (mixture,) = run["mixtures"]
        joint = tests_of(folder / mixture["folder"] / "tests.json")
        for path in sorted(folder.glob(f"searches/ideal-seed-{run['seed']}/round-*/allocation.json")):
            moves = json.loads(path.read_text(encoding="utf-8"))["moves"]
            counts = {name: move["after"] for name, move in moves.items()}
            for trained in trainings(folder, counts, run["seed"]):
                record = TrainingRecord.read(trained / "record.json")
                model = load_model(record.model_folder(trained), "float32")
                tests = {name: reference_loss(model, pool, 2048) for name, pool in inputs.tests.items()}
                found.append({"seed": run["seed"], "counts": counts, **beyond_joint(tests, joint, base)})
    return found


def trainings(folder: Path, counts: Mapping[str, int], seed: int) -> list[Path]:
    """The folders of the trainings on these rows."""
    mixtures = folder.glob("trainings/*/mixture.json")
    same = [path.parent for path in mixtures if drawn(path) == (dict(counts), seed)]
    return [record.parent for place in same for record in place.glob("*/train/record.json")]


def drawn(path: Path) -> tuple[dict[str, int], int]:
    """A mixture's counts and seed."""
    mixture = Mixture.read(path)
    return dict(mixture.counts), mixture.seed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--steps", action="store_true", help="the steps that IDEAL trained instead")
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(steps(options.folder)))
        return
    found = figures(options.folder)
    if not options.json:
        for name, method in found["methods"].items():
            print(
                f"{name}: {method['more']:+.3f}, by rows ± {method['se_rows']:.3f}, by seeds ± {method['se_seeds']}"
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
