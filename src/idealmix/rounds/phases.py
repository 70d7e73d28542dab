"""The phases of a round on disk: mix, train, evaluate, influence, score. Each is done once and can be resumed.

Flows in: the configuration, the inputs, and for each phase what the phases before it made. Flows out: artifacts in
the run folder, and their content. The loop decides what is done next; nothing here decides anything, and what is measured of
a model is `idealmix.rounds.models`'s.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idealmix.config import Config, Score
from idealmix.curvature import Processes
from idealmix.data.materialise import export_jsonl
from idealmix.data.mixture import Mixture, draw
from idealmix.disk import disk_errors, read_json, write_json
from idealmix.errors import IdealmixError
from idealmix.evaluation.score_result import ScoreResult
from idealmix.evaluation.scores import score_digest
from idealmix.evaluation.set_loss import SetLoss
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_stage import measure
from idealmix.rounds.folder import Artifact, RunFolder
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.models import Models
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch
from idealmix.training import SEGMENTS, train
from idealmix.training.model import computing_dtype
from idealmix.training.record import TrainingRecord

# Settings that change where or how a training is watched, not what it computes.
UNWATCHED = {"report_to", "save_steps"}


@dataclass(frozen=True)
class Mixed:
    """A drawn mixture and its artifact."""

    mixture: Mixture
    artifact: Artifact


@dataclass(frozen=True)
class Trained:
    """A finished training: its record, its folder, its artifact."""

    record: TrainingRecord
    artifact: Artifact

    @property
    def model(self) -> Path:
        """The checkpoint's folder."""
        return self.record.model_folder(self.artifact.path)


@dataclass(frozen=True)
class Evaluated:
    """Losses on both halves of every reference set, by name, and the watched scores on deciding halves."""

    deciding: dict[str, SetLoss]
    gradient: dict[str, SetLoss]
    artifact: Artifact
    scores: dict[str, ScoreResult] = field(default_factory=dict)


class Phases:
    """Everything that a loop can ask for, by the folder that it should lie in."""

    def __init__(self, config: Config, inputs: Inputs, folder: RunFolder, team: Team, watch: Watch) -> None:
        self.config, self.inputs, self.folder = config, inputs, folder
        self._team, self._watch = team, watch
        self._models = Models(config, inputs, team, watch)

    def mix(self, where: str, counts: Mapping[str, int], seed: int) -> Mixed:
        """Draw a mixture."""
        domains, limit = self.inputs.domains, self.config.allocation.max_repeats
        artifact = self._do(
            f"{where}/mixture.json",
            self._title(where, "drawing the mixture"),
            {
                "counts": dict(counts),
                "seed": seed,
                "domains": self.inputs.digests("domains"),
                "max_repeats": limit,
            },
            lambda part: draw(domains, counts, seed, max_repeats=limit).write(part),
        )
        return Mixed(Mixture.read(artifact.path, domains), artifact)

    def train(self, where: str, mixed: Mixed, seed: int, steps: int | None) -> Trained:
        """Train the base model on a mixture; every process takes part."""
        mixture, config = mixed.mixture, self.config
        self._models.release()  # room for the training

        def produce(part: Path) -> None:
            train(
                config.model,
                mixture,
                self.inputs.domains,
                config.training,
                seed=seed,
                output=part,
                steps=steps,
                segments=self._segments,
                progress=self._steps,
            )

        artifact = self._do(
            f"{where}/train",
            self._title(where, f"training on {mixture.rows:,} rows"),
            self._training_key(mixed, seed, steps) | ({"segments": self._segments} if self._segments else {}),
            produce,
            together=True,
        )
        return Trained(TrainingRecord.read(artifact.path / "record.json"), artifact)

    def evaluate(self, where: str, trained: Trained | None) -> Evaluated:
        """Losses on the reference sets, and the watched scores; `trained` None: of the base model."""

        def produce(part: Path) -> None:
            found = self._models.evaluation(self._model(trained))
            self._team.lead(lambda: write_json(part, found))

        artifact = self._do(
            f"{where}/evaluation.json",
            self._title(where, "evaluating"),
            {**self._model_key(trained), **self._reference_key()},
            produce,
            together=True,
        )
        return _evaluated(artifact)

    def replicate(self, where: str, mixed: Mixed, seed: int, steps: int | None) -> Evaluated:
        """Train the same mixture with another seed and evaluate it; its checkpoint is not kept."""
        self._models.release()

        def produce(part: Path) -> None:
            # it may have been stopped while it was evaluated; what lies in the part was made from the same inputs
            if not self._team.lead((part / "train" / "record.json").is_file):
                train(
                    self.config.model,
                    mixed.mixture,
                    self.inputs.domains,
                    self.config.training,
                    seed=seed,
                    output=part / "train",
                    steps=steps,
                    progress=self._steps,
                )
            record = self._team.lead(lambda: TrainingRecord.read(part / "train" / "record.json"))
            found = self._models.evaluation(self._models.load(record.model_folder(part / "train"), record))
            self._team.lead(lambda: keep(part, record, found))

        def keep(part: Path, record: TrainingRecord, found: Mapping[str, Any]) -> None:
            write_json(part / "evaluation.json", found)
            record.write(part / "record.json")
            shutil.rmtree(part / "train")

        artifact = self._do(
            where,
            self._title(where, "training with another seed"),
            {**self._training_key(mixed, seed, steps), **self._reference_key()},
            produce,
            together=True,
        )
        return _evaluated(artifact, artifact.path / "evaluation.json")

    def influence(self, where: str, mixed: Mixed, trained: Trained) -> tuple[InfluenceMatrix, Artifact]:
        """The influence matrix at a trained mixture."""
        settings = self.config.influence

        def produce(part: Path) -> None:
            matrix = measure(
                self._model(trained),
                mixed.mixture,
                self.inputs.domains,
                self.inputs.gradient_halves,
                settings,
                record=trained.record,
                folder=trained.artifact.path,
                seed=self.config.seed,
                processes=Processes.all(),
                progress=self._watch.advance,
            )
            self._team.lead(lambda: matrix.write(part))

        artifact = self._do(
            f"{where}/influence.json",
            self._title(where, "measuring influence"),
            {
                **self._model_key(trained),
                "settings": settings.model_dump(mode="json"),
                "references": self.inputs.digests("gradient_halves"),
                "seed": self.config.seed,
            },
            produce,
            together=True,
        )
        return InfluenceMatrix.read(artifact.path), artifact

    def allocation(self, where: str, content: Mapping[str, Any]) -> Artifact:
        """Write down what was allocated."""
        return self._do(
            f"{where}/allocation.json",
            self._title(where, "allocating"),
            {"content": content},
            lambda part: write_json(part, content),
        )

    @property
    def scored(self) -> bool:
        """Whether there is anything to score: test sets, or tasks that bring their own rows."""
        return bool(self.inputs.tests or self.config.final_scores)

    def score(self, where: str, trained: Trained | None) -> dict[str, Any]:
        """Losses and scores on the test sets: ``{"tests": {name: SetLoss}, "scores": {name: ScoreResult}}``."""

        def produce(part: Path) -> None:
            found = self._models.tests(self._model(trained))
            self._team.lead(lambda: write_json(part, found))

        artifact = self._do(
            f"{where}/tests.json",
            self._title(where, "scoring the test sets"),
            {
                **self._model_key(trained),
                "tests": self.inputs.digests("tests"),
                "scores": _score_keys(self.config.final_scores),
            },
            produce,
            together=True,
        )
        return artifact.json()

    def materialise(self, mixed: Mixed, where: str = "mixture") -> Artifact:
        """Write the final mixture's rows: ``mixture/<domain>.jsonl`` and a manifest."""
        return self._do(
            where,
            self._title("", "writing the final mixture"),
            {"mixture": mixed.artifact.key},
            lambda part: export_jsonl(mixed.mixture, part, self.inputs.domains),
        )

    # --- how a phase is done ---------------------------------------------------------------------------------

    def _title(self, where: str, what: str) -> str:
        """What the watch is told of a phase."""
        return f"{where}: {what}" if where else what

    def _do(
        self,
        name: str,
        step: str,
        inputs: Mapping[str, Any],
        produce: Callable[[Path], Any],
        *,
        together: bool = False,
    ) -> Artifact:
        """One phase; `together`: every process runs `produce`, else rank 0 alone."""
        self._watch.begin(step)
        with memory_errors(step):
            if together and self._team.size > 1:
                begun = self._team.lead(lambda: self.folder.begin(name, inputs))
                if not isinstance(begun, Artifact):
                    with disk_errors(begun.part):
                        produce(begun.part)
                    begun = self._team.lead(lambda: self.folder.finish(begun))
            else:
                begun = self._team.lead(lambda: self.folder.phase(name, inputs, produce))
        self._watch.end(begun.seconds, reused=not begun.fresh)
        return begun

    @property
    def _segments(self) -> int:
        """Stages that a training keeps."""
        return SEGMENTS if self.config.influence.response == "unrolled" else 0

    def _training_key(self, mixed: Mixed, seed: int, steps: int | None) -> dict[str, Any]:
        settings = self.config.training.model_dump(mode="json", exclude=UNWATCHED)
        # with a free volume the steps follow from the rows, and their size from the processes
        processes = self._team.size if not self.config.allocation.budget.hold else None
        return {
            **self._model_key(None),
            "mixture": mixed.artifact.key,
            "training": settings,
            "seed": seed,
            "steps": steps,
            "processes": processes,
        }

    def _model_key(self, trained: Trained | None) -> dict[str, Any]:
        if trained is not None:
            return {"train": trained.artifact.key}
        dtype = computing_dtype(self.config.model, self.config.training.dtype)
        return {"model": self.config.model, "content": self.inputs.model_digest, "dtype": dtype}

    def _reference_key(self) -> dict[str, Any]:
        key: dict[str, Any] = {
            half: self.inputs.digests(half) for half in ("deciding_halves", "gradient_halves")
        }
        watched = self.config.watched_scores
        return key | ({"scores": _score_keys(watched)} if watched else {})

    def _model(self, trained: Trained | None) -> Any:
        return (
            self._models.of(trained.model, trained.record) if trained else self._models.of(self.config.model)
        )

    def _steps(self, done: int, total: int, facts: Mapping[str, Any]) -> None:
        loss = facts.get("loss")
        self._watch.advance(done, total, f"loss {loss:.3f}" if loss is not None else "")


def _evaluated(artifact: Artifact, path: Path | None = None) -> Evaluated:
    data = read_json(path or artifact.path)
    halves = {
        half: {name: SetLoss.from_json(sets) for name, sets in data[half].items()}
        for half in ("deciding", "gradient")
    }
    scores = {name: ScoreResult.from_json(one) for name, one in data.get("scores", {}).items()}
    return Evaluated(halves["deciding"], halves["gradient"], artifact, scores)


def _score_keys(scores: Mapping[str, Score]) -> dict[str, Any]:
    """What the figures of these scores depend on, beside the model and the rows."""
    return {
        name: [setting.model_dump(mode="json", exclude={"max_decrease"}), score_digest(name, setting)]
        for name, setting in scores.items()
    }


@contextlib.contextmanager
def memory_errors(step: str) -> Iterator[None]:
    """Turn running out of memory into one message that names the phase and what lowers its need."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise IdealmixError(
            "the memory is too small for this phase",
            where=step,
            mend="lower influence.batch_tokens (evaluation, scores and influence) or select fewer influence.layers, and run again: "
            "what is finished is kept; a lower training.per_device_train_batch_size needs another `output`",
        ) from error
