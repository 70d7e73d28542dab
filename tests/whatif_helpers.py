"""Finished runs without a training: random moments and pools, and the real allocation made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from report_helpers import sample

from idealmix import config as schema
from idealmix.allocation import allocate
from idealmix.allocation.curves import Tried, fit, seed_noise
from idealmix.disk import write_json
from idealmix.errors import InputError
from idealmix.evaluation.objective import objective_gradient
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Moments, Rows
from idealmix.rounds.evidence import slopes_of
from idealmix.rounds.volume import Drawn, mean_volumes
from idealmix.slopes import Limit
from idealmix.volumes import fill, whole_rows

NAMES = ("zeta", "Alpha", "coding 2", "mathe.matik", "äther", "b-c")


class Pool(SimpleNamespace):
    """As much of a pool as draws ask for."""

    def __len__(self) -> int:
        return len(self.ids)


class Run:
    """A run folder as a finished run leaves it, for the page; `counts` is what idealmix does with a choice."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        domains: int = 4,
        references: int = 3,
        unit: str = "tokens",
        hold: bool = True,
        objective: str = "mean_loss",
        method: str = "ideal",
        allocation: Mapping[str, Any] | None = None,
        sets: Mapping[str, Any] | None = None,
        most: int = 150_000,
        learned: bool = True,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.folder, self.unit, self.method, self.most = folder, unit, method, most
        self.names = list(NAMES[:domains])
        self.references = [f"r{q}" for q in range(references)]
        self.pools = {name: _pool(rng) for name in self.names}
        self.limited = 0  # steps that a limit changed
        self.config = schema.Config.model_validate({
            "model": "m", "method": method, "objective": objective, "seed": seed,
            "domains": {name: f"{name}.jsonl" for name in self.names},
            "references": {q: {"path": f"{q}.jsonl", "weight": float(w)} for q, w in zip(self.references, rng.choice([0.5, 1, 1, 2], references))},
            "allocation": {"m": 0.3, "budget": {"unit": unit, "hold": hold}, **(allocation or {})}, **(sets or {}),
        })  # fmt: skip
        self.matrix = _matrix(rng, self.names, self.references, centred=hold)
        self.start = {name: int(rng.integers(20, len(pool))) for name, pool in self.pools.items()}
        self.losses = {q: float(rng.uniform(0.5, 2)) for q in self.references}
        self.base = {q: mean * float(rng.uniform(1.2, 5)) for q, mean in self.losses.items()}
        if not learned:  # training lowered no loss, so there are no curves
            self.base = {q: 0.9 * mean for q, mean in self.losses.items()}
        self.rule = self.config.allocation.rule
        self.drawn = Drawn(self.pools, unit, seed)
        self.amount = self.drawn.amount(self.start)
        weights = {q: source.weight for q, source in self.config.references.items()}
        step = self.step(weights, self.config.allocation, self.amount)
        self.rule = step.rule  # the page goes by the run's: equalise where it had no curves
        self._write(step)

    def step(self, weights: Mapping[str, float], settings: schema.Allocation, budget: int) -> Any:
        """The step as the loop makes it; a budget of another size scales the mixture in proportion first."""
        sizes = {name: len(pool) for name, pool in self.pools.items()}
        per_row = mean_volumes(self.pools, self.unit)
        counts = dict(self.start)
        if budget != self.amount:
            names = sorted(counts)
            n, w, most = (np.array([float(of[k]) for k in names]) for of in (counts, per_row, sizes))
            most *= settings.max_repeats
            volumes = fill(n * w, 0 * n, most * w, float(n @ w) * budget / self.amount)
            rows = whole_rows(volumes / w, w, float(n @ w) * budget / self.amount, 0 * n, most)
            counts = {name: int(k) for name, k in zip(names, rows)}
            if self.drawn.amount(counts) < 0.99 * budget:
                raise InputError("beyond the pools")
        gradient = objective_gradient(self.losses, weights, self.config.objective, self.losses, self.base)
        slopes = slopes_of(self.matrix, gradient)
        if self.method == "ideal-paper":
            none = np.full(len(self.names), np.nan)
            slopes = type(slopes)(
                slopes.domains, none, none, none, slopes.drawn, slopes.drawn_se, slopes.drawn_dof
            )
        limits = [  # a replicate of round 0 has lost 0.0002 more: round 0 stands 0.0001 below their mean
            Limit(q, slopes_of(self.matrix, {q: 1.0}), limit.max_increase + 0.0001)
            for q, limit in self.config.constraints.items()
        ]
        curves = None
        if self.rule == "curves":
            start = Tried({name: n * per_row[name] for name, n in self.start.items()}, self.losses)
            curves, _ = fit(
                self.matrix, gradient, self.base, [start], start, seed_noise(self.base, [self.losses])
            )
        step = allocate(counts, sizes, per_row, slopes, settings, m=settings.m, limits=limits, curves=curves)
        self.limited += "beyond what it may still lose" in step.reason
        return self.drawn.hold(step, budget, settings) if settings.budget.hold else step

    def counts(self, choice: Mapping[str, Any]) -> list[int] | None:
        """Counts in the page's order for a choice of the page; None: idealmix refuses it."""
        given = self.config.allocation.model_dump()
        names = sorted(self.names)
        settings = schema.Allocation.model_validate(
            {
                **given,
                "m": choice["m"],
                "max_repeats": choice["max_repeats"],
                "gate": choice["gate"],
                "floor": dict(zip(names, choice["floor"])),
                "cap": dict(zip(names, choice["cap"])),
            }
        )
        try:
            step = self.step(dict(zip(self.references, choice["weights"])), settings, choice["budget"])
        except InputError:
            return None
        return [step.counts[name] for name in names]

    def choice(self, rng: np.random.Generator) -> dict[str, Any]:
        """A random choice, also of what bounds make impossible."""
        D = len(self.names)
        weights = np.round(rng.choice([0, 0.5, 1, 2, 3.35], len(self.references)), 2)
        if not weights.any():
            weights[0] = 1.0
        floor = float(rng.choice([0, 0, round(0.3 / D, 3), round(1 / D, 3)]))
        cap = float(rng.choice([1, 1, round(1.4 / D, 2), round(1 / D + 0.01, 2)]))
        budget = self.amount if rng.random() < 0.5 else round(self.amount * float(rng.uniform(0.3, 3)))
        return {
            "weights": weights.tolist(), "m": round(float(rng.uniform(0.01, max(1, self.config.allocation.m))), 2), "budget": budget,
            "floor": [floor] * D, "cap": [cap] * D, "max_repeats": int(rng.integers(1, 6)), "gate": bool(rng.random() < 0.5),
        }  # fmt: skip

    def _write(self, step: Any) -> None:
        (self.folder / "round-0" / "replicate-1").mkdir(parents=True, exist_ok=True)
        found = sample(rounds=2, domains=tuple(self.names))
        for r in found["rounds"]:
            r["counts"] = dict(self.start)
            r["losses"] = {q: {"mean": mean, "se": 0.01} for q, mean in self.losses.items()}
        found["base"] = {"losses": {q: {"mean": mean, "se": 0.01} for q, mean in self.base.items()}}
        first = found["rounds"][0]
        first["influence"], first["allocation"] = self.matrix.to_json(), step.to_json()
        found["references"], found["weights"] = (
            self.references,
            {q: s.weight for q, s in self.config.references.items()},
        )
        found["replicates"]["count"] = 1
        losses = {q: {"mean": mean + 0.0002} for q, mean in self.losses.items()}
        write_json(self.folder / "round-0" / "replicate-1" / "evaluation.json", {"deciding": losses})
        sizes = {
            name: {
                "rows": len(pool),
                "tokens": int(pool.tokens.sum()),
                "supervised_tokens": int(pool.supervised.sum()),
            }
            for name, pool in self.pools.items()
        }
        draw = {"format": 1, "unit": self.unit, "seed": self.config.seed, "amount": self.amount}
        for name, content in (
            ("result.json", found),
            ("manifest.json", {"data": {"domains": sizes}}),
            ("draw.json", {**draw, "domains": self.drawn.to_json(self.most)}),
        ):
            (self.folder / name).write_text(json.dumps(content), encoding="utf-8")
        text = yaml.safe_dump(self.config.model_dump(mode="json"), allow_unicode=True)
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")


def _pool(rng: np.random.Generator) -> Pool:
    size = int(rng.integers(60, 400))
    tokens = rng.lognormal(float(rng.uniform(3, 5)), 0.7, size).astype(np.int64) + 2
    return Pool(
        ids=[f"row {n}" for n in range(size)],
        tokens=tokens,
        supervised=np.maximum(tokens // 3, 1),
        digest="d",
    )


def _matrix(
    rng: np.random.Generator, names: list[str], references: list[str], *, centred: bool
) -> InfluenceMatrix:
    D, Q = len(names), len(references)
    lean = rng.normal(0, 1, (Q, 2 * D))
    exhausted = int(rng.integers(D)) if rng.random() < 0.3 else None  # a domain without unused rows
    training: list[Rows | None] = []
    for s in range(2 * D):
        n = int(rng.integers(12, 60))
        rows = Rows(
            lean[:, s] + rng.normal(0, 2.5, (n, Q)), rng.integers(5, 60, n).astype(float), np.ones(n), 0.5
        )
        training.append(None if exhausted is not None and s - D == exhausted else rows)
    halves = []
    for q in range(Q):
        n = int(rng.integers(8, 30))
        halves.append(
            Rows(lean[q] + rng.normal(0, 1.5, (n, 2 * D)), rng.integers(5, 60, n).astype(float), np.ones(n))
        )
    moments = Moments.of(training, halves)
    share = rng.dirichlet(np.full(D, 3.0))
    facts = {"curvature": "ekfac", "response": "converged", "fisher": "sampled", "damping": 1e-3}
    layers = {f"model.layers.{k}.mlp": moments.mean / 4 for k in range(4)}
    v, losses = dict(zip(names, share.tolist())), dict.fromkeys(references, 1.0)
    return InfluenceMatrix(tuple(names), tuple(references), v, centred, moments, layers, losses, facts)
