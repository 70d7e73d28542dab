"""A world in which trainings are formulas: the loop's phases without a model, for what only the loop can show.

Losses and their gradients by share are given by functions; row noise is the same for every mixture, as paired rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from idealmix.config import Config
from idealmix.decision import LoopState
from idealmix.evaluation.set_loss import SetLoss
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Moments
from idealmix.rounds.loop import Story, tell
from idealmix.rounds.phases import Evaluated
from idealmix.rounds.result import assemble

Shares = Mapping[str, float]
Formula = Callable[[Shares], float]
POOL = 4000


class Pool(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.ids)


def pool(rows: int = POOL, tokens: int = 10) -> Pool:
    ids = [str(n) for n in range(rows)]
    each = np.full(rows, tokens, dtype=np.int64)
    return Pool(ids=ids, index={i: n for n, i in enumerate(ids)}, tokens=each, supervised=each, digest="d")


@dataclass
class World:
    """Losses as formulas of the shares.

    Attributes:
        losses: of each reference set; `tests`: of each test set, default the same formulas.
        untrained: of the base model.
        slope_error: standard error of every product of gradients: the reference rows' and the training rows'.
        rows: of each half of a reference set. seed_noise: deviation of a loss between seeds.
        measured: gradient of a loss by a domain's share; default by finite differences.
        wrong: multiplies what is measured.
    """

    losses: Mapping[str, Formula]
    tests: Mapping[str, Formula] | None = None
    untrained: float = 3.0
    slope_error: tuple[float, float] = (0.001, 0.001)
    rows: int = 200
    seed_noise: float = 0.0
    row_noise: float = 0.01
    wrong: float = 1.0
    trained: list[dict[str, int]] = field(default_factory=list)

    def run(self, tmp_path: Any, domains: tuple[str, ...], **allocation: Any) -> tuple[Story, dict[str, Any]]:
        """The loop over formulas; the story and the content of result.json."""
        budget = {
            "unit": "tokens",
            "hold": True,
            "size": 10_000 * len(domains),
            **allocation.pop("budget", {}),
        }
        extra = {
            key: allocation.pop(key) for key in ("influence", "constraints", "method") if key in allocation
        }
        config = Config(
            model="none",
            domains={name: "none" for name in domains},
            references={name: "none" for name in self.losses},
            tests={name: "none" for name in self.tests or self.losses},
            allocation={"start": "uniform", "replicates": 2, "budget": budget, **allocation},
            output=str(tmp_path),
            **extra,
        )
        inputs = SimpleNamespace(
            domains={name: pool() for name in domains}, tests=config.tests, warnings=[], facts=dict
        )
        watch = Recorder()
        story = tell(config, inputs, Fake(self, inputs, config), watch)  # type: ignore[arg-type]
        folder = SimpleNamespace(path=tmp_path, seconds=dict)
        return story, assemble(story, folder) | {"notes": watch.notes, "warned": watch.warnings}  # type: ignore[arg-type]


class Recorder:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def begin(self, step: str) -> None: ...
    def advance(self, done: int, total: int, detail: str = "") -> None: ...
    def end(self, seconds: float, reused: bool) -> None: ...
    def table(self, *_: Any) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Fake:
    """`rounds.phases.Phases` over a `World`."""

    def __init__(self, world: World, inputs: Any, config: Config) -> None:
        self.world, self.inputs, self.config = world, inputs, config
        self.names, self.scored = tuple(inputs.domains), True

    def mix(self, _where: str, counts: Mapping[str, int], _seed: int) -> Any:
        tokens = {name: 10 * n for name, n in counts.items()}
        mixture = SimpleNamespace(
            counts=dict(counts), tokens_by_domain=tokens, supervised_tokens_by_domain=tokens
        )
        return SimpleNamespace(mixture=mixture, artifact=None)

    def train(self, _where: str, mixed: Any, seed: int, _steps: int | None) -> Any:
        self.world.trained.append(mixed.mixture.counts)
        n = sum(mixed.mixture.tokens_by_domain.values())
        record = SimpleNamespace(
            seed=seed, steps=100, rows=n // 10, tokens=n, supervised_tokens=n, warnings=[], processes=1
        )
        return SimpleNamespace(record=record, shares=self.shares(mixed), seed=seed)

    def shares(self, mixed: Any) -> dict[str, float]:
        tokens = mixed.mixture.tokens_by_domain
        return {name: n / sum(tokens.values()) for name, n in tokens.items()}

    def evaluate(self, _where: str, trained: Any) -> Evaluated:
        return Evaluated(self.sets(trained, self.world.losses), {}, None)  # type: ignore[arg-type]

    def replicate(self, where: str, mixed: Any, seed: int, steps: int | None) -> Evaluated:
        return self.evaluate(where, SimpleNamespace(shares=self.shares(mixed), seed=seed))

    def sets(self, trained: Any, formulas: Mapping[str, Formula]) -> dict[str, SetLoss]:
        found, world = {}, self.world
        for number, (name, formula) in enumerate(formulas.items()):
            rows = np.random.default_rng(number).normal(0, 1, world.rows)
            # what a row gains by training differs from row to row: paired differences have an error
            mean, own = world.untrained, np.zeros(world.rows)
            if trained is not None:
                luck = np.random.default_rng([number, trained.seed, len(world.trained)])
                mean = formula(trained.shares) + luck.normal(0, world.seed_noise)
                own = luck.normal(0, world.row_noise, world.rows)
            sums = mean + rows - rows.mean() + own - own.mean()
            ids = tuple(str(n) for n in range(world.rows))
            found[name] = SetLoss(name, ids, sums, np.ones(world.rows, dtype=np.int64))
        return found

    def influence(self, _where: str, mixed: Any, trained: Any) -> tuple[InfluenceMatrix, None]:
        world, shares, D, Q = self.world, trained.shares, len(self.names), len(self.world.losses)
        # products such that alpha = -v (g - v'g): g is minus the loss's slope by share, up to what is common
        mean = np.zeros((Q, 2 * D))
        for q, formula in enumerate(world.losses.values()):
            for i, name in enumerate(self.names):
                low, high = (formula({**shares, name: shares[name] * f}) for f in (0.999, 1.001))
                slope = (high - low) / 0.002  # by the log of the domain's volume
                mean[q, i] = mean[q, D + i] = -world.wrong * slope / max(shares[name], 1e-9)
        of_references, of_training = world.slope_error
        eye = np.eye(2 * D)
        moments = Moments(
            mean=mean,
            training=np.repeat(np.eye(Q)[None] * of_training**2, 2 * D, 0),
            reference=np.repeat(eye[None] * of_references**2, Q, 0),
            rows=np.full(2 * D, 100.0),
            fraction=np.full(2 * D, 0.5),
            reference_rows=np.full(Q, float(world.rows)),
            dof=np.full(2 * D + Q, 99.0),
        )
        weights = {name: shares[name] for name in self.names}
        matrix = InfluenceMatrix(
            self.names, tuple(world.losses), weights, True, moments, {"all": mean}, dict.fromkeys(world.losses, 1.0), {}
        )  # fmt: skip
        return matrix, None

    def allocation(self, *_: Any) -> None: ...
    def materialise(self, *_: Any) -> None: ...

    def score(self, _where: str, trained: Any) -> dict[str, Any]:
        sets = self.sets(trained, self.world.tests or self.world.losses)
        return {"tests": {name: loss.to_json() for name, loss in sets.items()}, "scores": {}}


def own_domain(power: float = 0.5, size: float = 1.0) -> Callable[[str], Formula]:
    """A capability that follows a power law in its own domain's share."""
    return lambda name: lambda shares: size * max(shares[name], 1e-6) ** -power


def state_of(story: Story) -> LoopState:
    assert story.state is not None
    return story.state
