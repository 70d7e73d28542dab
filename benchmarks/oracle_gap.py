"""Does it win? The share of the gap from joint to the best known mixture that every method closes, on generated suites.

Flows in: suites of the built-in skills, the shipped base model, the demo's settings at a smaller budget. Flows out: one
JSON line: for each method the smallest share over suites, its standard error and its cost, and every suite in full.

    python -m benchmarks.oracle_gap --json                    # everything; goes on where it was
    python -m benchmarks.oracle_gap --suite 0                 # one suite: a process for each of the five
    python -m benchmarks.oracle_gap --only joint,uniform      # some rows

Methods, trainings, influence and rounds are the product's own: `idealmix.comparison.executor` on a generated configuration.
A method searches with one seed on the reference sets. Its final mixture is retrained on fresh seeds, the same for all, and
measured on the test sets, which nothing else sees. "Best" is the mean of the five best mixtures of a wide search, each
retrained on one of the fresh seeds. The cost is everything that a search was told: trainings (rejected rounds and
replicates too), influence stages and proxies, in passes over the mixture of joint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.oracle_figures import headline, of_suite, table
from benchmarks.oracle_methods import BEST, EQUAL_COST, ORDER, VARIANTS, made
from benchmarks.retrainings import TRAINED_ROWS, blended
from idealmix import configfile
from idealmix.comparison.executor import Executor, Final
from idealmix.disk import write_json
from idealmix.errors import InputError
from idealmix.evaluation.set_loss import SetLoss
from idealmix.methods.protocol import Array, Method, Proposal, simplex
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.loop import claim
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Silent
from idealmix.skills import REFERENCED, SKILLS, demo_config, write_suite

SEARCH_SEEDS = (0, 1, 2)
FRESH_SEEDS = (901, 902, 903, 904, 905)


@dataclass(frozen=True)
class Suite:
    """A generated suite.

    Attributes:
        name: of the suite.
        seed: of its generator; 0 and 11 to 13 were used for tuning, and are not used here.
        rows: of each domain's pool; joint takes the pools in proportion.
        blends: for each domain the skills that its rows are of, in proportion; None: a domain is a skill.
    """

    name: str
    seed: int
    rows: dict[str, int]
    blends: dict[str, dict[str, float]] | None = None


def many_sources(name: str, seed: int, number: int = 20) -> Suite:
    """Sources of unlike sizes (log-uniform, 100 to 1,000 rows), each a Dirichlet(1/2) blend of the five skills."""
    generator = np.random.default_rng(seed)
    parts = generator.dirichlet(np.full(len(SKILLS), 0.5), number)
    rows = np.exp(generator.uniform(np.log(100), np.log(1000), number)).round()
    names = [f"source-{place:02}" for place in range(1, number + 1)]
    return Suite(
        name,
        seed,
        {source: int(count) for source, count in zip(names, rows, strict=True)},
        {
            source: dict(zip(SKILLS, part.tolist(), strict=True))
            for source, part in zip(names, parts, strict=True)
        },
    )


SUITES = (
    Suite("five domains, equal", 21, dict.fromkeys(SKILLS, 6000)),
    Suite("four domains, equal", 22, dict.fromkeys(REFERENCED, 6000)),
    Suite(
        "five domains, skewed 10 to 1",
        23,
        {"mathematics": 1200, "coding": 12000, "reasoning": 1200, "instruction": 12000, "chat": 3600},
    ),
    many_sources("twenty sources, blends", 24),
    many_sources("twenty other sources", 25),
)


def configuration(suite: Suite, folder: Path, budget: int) -> Path:
    """Write the suite's data and its configuration; returns the path of the latter."""
    path = folder / "config.yaml"
    skills = tuple(suite.rows) if suite.blends is None else SKILLS
    train = max(suite.rows.values()) if suite.blends is None else TRAINED_ROWS
    paths = write_suite(folder, seed=suite.seed, train=train, skills=skills)
    config = demo_config(folder.resolve(), skills=skills)
    files = config["domains"] if suite.blends is None else blended(folder.resolve(), paths, suite.blends)
    demo_budget = config["allocation"]["budget"]["size"]
    config["allocation"]["budget"]["size"] = budget
    config["training"]["warmup_steps"] = round(config["training"]["warmup_steps"] * budget / demo_budget)
    config["domains"] = {name: {"path": str(files[name]), "rows": rows} for name, rows in suite.rows.items()}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


class Progress(Silent):
    """Tells on stderr what was done anew."""

    def begin(self, step: str) -> None:
        self._step = step

    def end(self, seconds: float, reused: bool) -> None:
        if not reused:
            print(f"{self._step}: {seconds:.1f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bed:
    """One suite in its folder: searches and retrainings, each done once."""

    def __init__(self, suite: Suite, output: Path, budget: int) -> None:
        self.suite, self.budget = suite, budget
        self.folder = output / suite.name.replace(", ", "-").replace(" ", "-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = configfile.load(configuration(suite, self.folder, budget))
        self.run = RunFolder(self.folder / "run")
        self.watch, self.team = Progress(), Team()
        self.inputs = load_inputs(self.config, self.watch)

    def executor(self, seed: int, name: str) -> Executor:
        """The product's, at one seed."""
        slug = name.replace(", ", "-").replace(" ", "-")
        changed = {
            block: getattr(self.config, block).model_copy(update=settings)
            for block, settings in VARIANTS.get(name, {}).items()
        }
        return Executor(
            self.config.model_copy(update=changed),
            self.inputs,
            self.run,
            self.team,
            self.watch,
            seed=seed,
            own=f"searches/{slug}-seed-{seed}",
            label=f"{name}, seed {seed}",
        )

    def search(self, name: str, seed: int, epochs: float | None) -> dict[str, Any]:
        """One search: the shares of its mixtures, what it cost, and the options that it was given."""
        executor = self.executor(seed, name)
        worth = None if epochs is None else epochs / self.config.training.epochs
        method: Method = made(name, executor.problem, worth)
        proposals = executor.search(method)
        spent = list(executor.spent.values())
        return {
            "seed": seed,
            "options": repr(method),
            "shares": [self.shares_of(executor, proposal) for proposal in proposals],
            "epochs": sum(one.epochs for one in spent),
            **{
                f"{kind}s": sum(one.kind == kind for one in spent)
                for kind in ("training", "influence", "proxy")
            },
        }

    def retrained(
        self, name: str, shares: Sequence[Mapping[str, float]], seeds: Sequence[int]
    ) -> dict[str, Any]:
        """Test figures by fresh seed: of the one mixture, of mixture j at seed j (best), or the mean over mixtures."""
        found: dict[str, Any] = {"loss": [], "score": [], "losses": [], "scores": []}
        for number, seed in enumerate(seeds):
            executor = self.executor(seed, name)
            of_seed = [shares[number % len(shares)]] if name == BEST else shares
            ends = []
            for each in of_seed:
                wanted = np.array([each[domain] for domain in executor.problem.domains])
                ends.append(_measured(executor, executor.final(simplex(wanted, name))))
            for key in found:
                found[key].append(
                    float(np.mean([end[key] for end in ends]))
                    if key in ("loss", "score")
                    else {s: float(np.mean([end[key][s] for end in ends])) for s in ends[0][key]}
                )
        return found

    def shares_of(self, executor: Executor, proposal: Proposal) -> dict[str, float]:
        """A proposal's shares of tokens; of row counts, by the mean row of each pool, whichever rows a seed draws."""
        domains = executor.problem.domains
        if isinstance(proposal, Mapping):
            proposal = np.array([proposal[name] * executor.per_row[name] for name in domains], dtype=float)
        shares: Array = simplex(proposal, "the method")
        return dict(zip(domains, shares.tolist(), strict=True))


def _measured(executor: Executor, final: Final) -> dict[str, Any]:
    scored = executor.phases.score("", final.trained)
    losses = {name: SetLoss.from_json(loss).mean for name, loss in scored["tests"].items()}
    scores = {name: float(found["mean"]) for name, found in scored["scores"].items()}
    return {
        "loss": float(np.mean(list(losses.values()))),
        "score": float(np.mean(list(scores.values()))),
        "losses": losses,
        "scores": scores,
    }


def known_rows(path: Path, budget: int, seeds: Sequence[int]) -> dict[str, Any]:
    """What an earlier call wrote for the same budget and seeds; rows that are asked for again are written anew."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return old["rows"] if (old.get("budget"), old.get("seeds")) == (budget, list(seeds)) else {}


def searched(bed: Bed, name: str, searches: int, rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row's searches, one for each seed.

    Raises:
        InputError: the method cannot be asked of this suite, or is given the cost of IDEAL, which is not known yet.
    """
    cost: Sequence[float | None] = [None] * searches
    if name in EQUAL_COST:
        if "ideal" not in rows:
            raise InputError("it is given the epochs of ideal, which was not asked for")
        cost = [search["epochs"] for search in rows["ideal"]["searches"]]
    seeds = SEARCH_SEEDS[: 1 if name == BEST else searches]
    return [bed.search(name, seed, epochs) for seed, epochs in zip(seeds, cost, strict=False)]


def measure(bed: Bed, only: Sequence[str], searches: int, seeds: int) -> None:
    """Fill ``figures.json`` row by row."""
    path, fresh = bed.folder / "figures.json", FRESH_SEEDS[:seeds]
    rows = known_rows(path, bed.budget, fresh)
    for name in (name for name in ORDER if name in only or name in ("joint", BEST)):
        try:
            found_by_search = searched(bed, name, searches, rows)
        except InputError as error:  # DMO models each loss by the domain of its name
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        found = [bed.retrained(name, each["shares"], fresh) for each in found_by_search]
        rows[name] = {"searches": found_by_search, **{key: [one[key] for one in found] for key in found[0]}}
        write_json(
            path,
            {
                "suite": bed.suite.name,
                "generator_seed": bed.suite.seed,
                "budget": bed.budget,
                "seeds": list(fresh),
                "rows": rows,
            },
        )
        if BEST in rows:
            print(table(of_suite(json.loads(path.read_text(encoding="utf-8")))), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/oracle"))
    parser.add_argument("--budget", type=int, default=30_000, help="training tokens of a mixture")
    parser.add_argument("--suite", type=int, help="only this one, counted from 0: one process a suite")
    parser.add_argument(
        "--only", default=",".join(ORDER), help="rows, by comma; joint and best are always there"
    )
    parser.add_argument(
        "--searches", type=int, default=1, help=f"searches of a method, 1 to {len(SEARCH_SEEDS)}"
    )
    parser.add_argument("--seeds", type=int, default=5, help=f"fresh seeds, 2 to {len(FRESH_SEEDS)}")
    parser.add_argument("--tables", action="store_true", help="print what there is; measure nothing")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if unknown := set(only := options.only.split(",")) - set(ORDER):
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(ORDER)}")
    chosen = SUITES if options.suite is None else [SUITES[options.suite]]
    found = []
    for suite in chosen:
        folder = options.output / suite.name.replace(", ", "-").replace(" ", "-")
        if not options.tables:
            with contextlib.ExitStack() as held:
                bed = Bed(suite, options.output, options.budget)
                claim(bed.run, bed.config, held)
                measure(bed, only, options.searches, options.seeds)
        if (folder / "figures.json").is_file():
            found.append(of_suite(json.loads((folder / "figures.json").read_text(encoding="utf-8"))))
    if not options.json:
        for suite_figures in found:
            print(f"\n### {suite_figures['suite']}\n\n{table(suite_figures)}")
    print(json.dumps({"methods": headline(found), "suites": found}))


if __name__ == "__main__":
    main()
