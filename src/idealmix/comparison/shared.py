"""Phases that lie where their content says, so that what two methods ask for is done once; and what each method spent.

Flows in: what a method asks for. Flows out: artifacts under ``trainings/<content>/``, and a ledger of their cost. A
training is named by its counts, its seed and its steps; what belongs to one method alone lies under
``searches/<method>-seed-<n>/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idealmix.config import Config, Training
from idealmix.disk import hash_json, write_json
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.methods.protocol import Rule
from idealmix.rounds.folder import Artifact, RunFolder
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.models import device
from idealmix.rounds.phases import UNWATCHED, Evaluated, Mixed, Phases, Trained
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch


@dataclass(frozen=True)
class Spent:
    """One thing that was done: its kind (training, influence, proxy), epochs over the budget's mixture, seconds."""

    kind: str
    epochs: float
    seconds: float


@dataclass
class Ledger:
    """What one search was told, by name; asking twice costs once.

    Attributes:
        tokens: of one pass over the mixture of joint: an epoch.
    """

    tokens: int
    spent: dict[str, Spent] = field(default_factory=dict)


def steps_of(settings: Training, rows: int, processes: int) -> int:
    """Optimiser steps over so many rows of a mixture, as `training.order.plan_steps` has them."""
    return max(1, math.ceil(math.floor(settings.epochs * rows + 0.5) / rows_of_step(settings, processes)))


def rows_of_step(settings: Training, processes: int) -> int:
    """Rows of one optimiser step."""
    return settings.per_device_train_batch_size * settings.gradient_accumulation_steps * processes


class SharedPhases(Phases):
    """`Phases` by content.

    Args:
        steps: optimiser steps of every training at a held budget that does not say its own.
        own: the folder of what is the search's alone, ``""``: the run's.
        label: of the search, in what the watch is told.
        ledger: where costs are written.
    """

    def __init__(
        self,
        config: Config,
        inputs: Inputs,
        folder: RunFolder,
        team: Team,
        watch: Watch,
        *,
        steps: int,
        own: str,
        label: str,
        ledger: Ledger,
    ) -> None:
        super().__init__(config, inputs, folder, team, watch)
        self._steps_of_budget, self._own, self._label, self._ledger = steps, own, label, ledger

    def mix(self, where: str, counts: Mapping[str, int], seed: int) -> Mixed:
        """Draw a mixture; `where` is not used."""
        place = hash_json({"counts": dict(counts), "seed": seed})[:16]
        return super().mix(f"trainings/{place}", counts, seed)

    def train(self, where: str, mixed: Mixed, seed: int, steps: int | None) -> Trained:
        """Train; `where` is not used."""
        if steps is None:  # always said, so that the same training has one name
            held = self.config.allocation.budget.hold
            rows = mixed.mixture.rows
            steps = self._steps_of_budget if held else steps_of(self.config.training, rows, self._team.size)
        place = f"{self._relative(mixed.artifact.path.parent)}/{steps}-steps"
        trained = super().train(place, mixed, seed, steps)
        epochs = trained.record.tokens / self._ledger.tokens
        self._ledger.spent[place] = Spent("training", epochs, trained.artifact.seconds)
        return trained

    def evaluate(self, where: str, trained: Trained | None) -> Evaluated:
        """Evaluate, beside the training."""
        return super().evaluate(self.place(trained), trained)

    def replicate(self, where: str, mixed: Mixed, seed: int, steps: int | None) -> Evaluated:
        """A training like any other: another seed's joint is one too."""
        return self.evaluate(where, self.train(where, mixed, seed, steps))

    def influence(self, where: str, mixed: Mixed, trained: Trained) -> tuple[InfluenceMatrix, Artifact]:
        """Measure, beside the training, in a folder named by the settings and the seed."""
        kind = hash_json([self.config.influence.model_dump(mode="json"), self.config.seed])[:8]
        place = f"{self.place(trained)}/influence-{kind}"
        matrix, artifact = super().influence(place, mixed, trained)
        spent = Spent("influence", self._influence_epochs(matrix), artifact.seconds)
        self._ledger.spent[place] = spent
        return matrix, artifact

    def allocation(self, where: str, content: Mapping[str, Any]) -> Artifact:
        """Write down what was allocated, in the search's own folder."""
        return super().allocation(self._in_own(where), content)

    def score(self, where: str, trained: Trained | None) -> dict[str, Any]:
        """Score, beside the training."""
        return super().score(self.place(trained), trained)

    def materialise(self, mixed: Mixed, where: str = "mixture") -> Artifact:
        """Write the mixture's rows into the search's own folder."""
        return super().materialise(mixed, self._in_own(where))

    def adapt(
        self,
        number: int,
        rule: Rule,
        *,
        steps: int,
        seed: int,
        reference: Trained | None,
        weights: Mapping[str, float],
    ) -> list[list[float]]:
        """Train a proxy whose weights `rule` changes; (steps, D).

        Args:
            number: of the proxy in its search.
            reference: the training whose checkpoint excess losses are measured against.
            weights: of the reference sets that gradients are aligned with; empty: none.
        """
        from idealmix.methods.online import OnlineResult, train_online
        from idealmix.training.model import load_model

        settings = self.config.training
        # the first process trains it alone, on the batches that all of them together train on
        rows = rows_of_step(settings, self._team.size)
        self._models.release()

        def produce(part: Path) -> None:
            known = load_model(reference.model, "float32").to(device()).eval() if reference else None
            found = train_online(
                load_model(self.config.model, "float32").to(device()),
                self.inputs.domains,
                rule,
                settings,
                steps=steps,
                rows=rows,
                seed=seed,
                reference=known,
                targets={name: (self.inputs.gradient_halves[name], w) for name, w in weights.items() if w},
                progress=self._watch.advance,
            )
            write_json(part, found.to_json())

        artifact = self._do(
            self._in_own(f"proxy-{number}.json"),
            self._title("", f"training a proxy for {steps:,} steps"),
            {
                **self._model_key(None),
                "reference": reference.artifact.key if reference else None,
                "domains": self.inputs.digests("domains"),
                "order": list(self.inputs.domains),  # weights are by place
                "targets": [self.inputs.digests("gradient_halves"), dict(weights)] if weights else None,
                "training": settings.model_dump(mode="json", exclude=UNWATCHED),
                "rule": {"measures": rule.measures, "interval": rule.interval, **rule.settings()},
                "steps": steps,
                "rows": rows,
                "seed": seed,
            },
            produce,
        )
        result = OnlineResult.from_json(artifact.json())
        # a forward pass costs about a third of a forward and a backward one
        tokens = result.trained_tokens + result.forward_tokens / 3
        self._ledger.spent[f"proxy-{number}"] = Spent("proxy", tokens / self._ledger.tokens, artifact.seconds)
        return result.weights.tolist()

    def place(self, trained: Trained | None) -> str:
        """The folder of a training in the run's; of the base model's figures: ``base``."""
        return self._relative(trained.artifact.path.parent) if trained else "base"

    def forget(self) -> None:
        """Let go of the model that was loaded last."""
        self._models.release()

    def _title(self, where: str, what: str) -> str:
        """For whom, since a folder that is named by its content tells nobody anything."""
        return f"{self._label}: {what}"

    def _training_key(self, mixed: Mixed, seed: int, steps: int | None) -> dict[str, Any]:
        """Steps are always said here, so no training depends on the number of processes, free volume or not."""
        return {**super()._training_key(mixed, seed, steps), "processes": None}

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def _in_own(self, name: str) -> str:
        return f"{self._own}/{name}" if self._own else name

    def _influence_epochs(self, matrix: InfluenceMatrix) -> float:
        """Tokens passed forward and backward, prompts too, as a training's are counted."""
        return float(sum(matrix.facts["pass_tokens"].values()) / self._ledger.tokens)
