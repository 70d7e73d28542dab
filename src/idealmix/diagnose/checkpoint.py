"""The trained model that a question is asked of: the best round of a run, or round 0, trained for it.

Flows in: a configuration. Flows out: a `Checkpoint`, which measures influence with the rows behind it, and tells the
step that the loop would take. A round 0 that is trained here is the run's own: `idealmix run` goes on from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idealmix import configfile
from idealmix.allocation import Allocation, allocate
from idealmix.config import Config
from idealmix.data.mixture import Mixture
from idealmix.diagnostics.conclusions import Conclusions
from idealmix.disk import read_json
from idealmix.errors import InputError
from idealmix.evaluation.objective import BY_ROUND_0
from idealmix.evaluation.set_loss import SetLoss
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_rows import Measured
from idealmix.influence_stage import measure_rows
from idealmix.rounds.checks import check_before
from idealmix.rounds.evidence import Trainings, slopes_of
from idealmix.rounds.folder import SEARCH, RunFolder
from idealmix.rounds.goal import Goal
from idealmix.rounds.inputs import Inputs, load_inputs
from idealmix.rounds.loop import claim, on_the_way, refuse_another, start_mixture_counts
from idealmix.rounds.models import device
from idealmix.rounds.phases import Phases, memory_errors
from idealmix.rounds.team import Team
from idealmix.rounds.volume import Drawn, mean_volumes
from idealmix.rounds.watch import Watch
from idealmix.training.model import computing_dtype, load_model
from idealmix.training.record import TrainingRecord

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """One trained round.

    Attributes:
        config: of the run.
        inputs: its data.
        index: the round's.
        mixture: what it was trained on.
        record: of the training.
        folder: where the training lies.
        weights: dO/dL_q of the objective by reference set, at this round.
        trainings: what the run's trained mixtures came to.
        watch: told what is done.
    """

    config: Config
    inputs: Inputs
    index: int
    mixture: Mixture
    record: TrainingRecord
    folder: Path
    weights: dict[str, float]
    trainings: Trainings
    watch: Watch

    @cached_property
    def model(self) -> nn.Module:
        """On its device, in what it computes in."""
        dtype = self.record.dtype or computing_dtype(self.config.model, self.config.training.dtype)
        return load_model(self.record.model_folder(self.folder), dtype).to(device())

    def measure(
        self,
        step: str,
        *,
        seed: int | None = None,
        dampings: Sequence[float] = (),
        all_unused: bool = False,
        **settings: Any,
    ) -> list[Measured]:
        """One influence stage: `measure_rows` with the configuration's settings, some of them changed."""
        self.watch.begin(step)
        with memory_errors(step):
            found = measure_rows(
                self.model,
                self.mixture,
                self.inputs.domains,
                self.inputs.gradient_halves,
                self.config.influence.model_copy(update=settings),
                record=self.record,
                folder=self.folder,
                seed=self.config.seed if seed is None else seed,
                progress=self.watch.advance,
                dampings=dampings,
                all_unused=all_unused,
            )
        self.watch.end(0.0, reused=False)
        return found

    def step(self, matrix: InfluenceMatrix) -> Allocation:
        """The step from this mixture that the loop would take by a matrix, and all losses so far (no-regression limits are left out)."""
        settings, unit = self.config.allocation, self.config.allocation.budget.unit
        slopes = slopes_of(matrix, self.weights)
        if self.config.method == "ideal-paper":  # gradients of the rows that were trained on, for growth too
            none = np.full(len(slopes.domains), np.nan)
            slopes = replace(slopes, growth=none, growth_se=none, growth_dof=none)
        counts = self.mixture.counts
        sizes = {name: len(pool) for name, pool in self.inputs.domains.items()}
        curves = None
        if settings.rule == "curves":
            curves, _ = self.trainings.curves(matrix, self.weights, self.index)
        step = allocate(
            counts, sizes, mean_volumes(self.inputs.domains, unit), slopes, settings, curves=curves
        )
        if not settings.budget.hold:
            return step
        return self._drawn.hold(step, self._drawn.amount(counts), settings)

    def of_round(self, index: int) -> Checkpoint:
        """Where another round of the same run stands, to ask about influence that was measured there; the model stays this round's."""
        where = Path(self.config.output) / f"round-{index}"
        mixture = Mixture.read(where / "mixture.json", self.inputs.domains)
        return replace(self, index=index, mixture=mixture, weights=objective_weights(self.config, where))

    def conclusions(self, matrix: InfluenceMatrix) -> Conclusions:
        """What a matrix concludes, its step included."""
        step = self.step(matrix)
        return Conclusions.of(matrix, self.weights, step, self.shares(step.counts))

    def shares(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Each domain's share of the volume of these counts, in the budget's unit."""
        per_row = mean_volumes(self.inputs.domains, self.config.allocation.budget.unit)
        volumes = {name: count * per_row[name] for name, count in counts.items()}
        return {name: volume / sum(volumes.values()) for name, volume in volumes.items()}

    @property
    def response(self) -> str:
        """Curvature, response and damping in words."""
        settings = self.config.influence
        if settings.curvature == "identity":
            return "identity"
        damped = f", damping {settings.damping:g}" if settings.response == "converged" else ""
        return f"{settings.curvature}, {settings.response}{damped}"

    @property
    def facts(self) -> dict[str, str]:
        """For an answer: what was asked."""
        return {
            "Round": f"{self.index}, trained on {self.record.rows:,} rows, {self.record.tokens:,} tokens",
            "Influence": f"{self.response}, seed {self.config.seed}",
            "Reference rows": ", ".join(
                f"{name} {len(pool):,}" for name, pool in self.inputs.gradient_halves.items()
            )
            + " (the halves that give gradients)",
        }

    @cached_property
    def _drawn(self) -> Drawn:
        return Drawn(self.inputs.domains, self.config.allocation.budget.unit, self.config.seed)


def find(config: Config, watch: Watch) -> Checkpoint:
    """The best round of the run in the output folder; without a finished run its round 0, trained if it is not there.

    Of a run that searched on a smaller model or budget it is the search's best round.

    Raises:
        InputError: the data or the configuration is wrong, the folder holds a run of another configuration or one that is under
            way, or nothing of a run with a ``search`` block.
        IdealmixError: the training failed, or another process works on the folder.
    """
    if config.search is not None:
        config = _of_search(config)
    folder = Path(config.output)
    refuse_another(folder, config, _as_asked)
    watch.begin("reading the data")
    inputs = load_inputs(config, watch)
    watch.end(0.0, reused=False)
    result = read_json(folder / "result.json") if (folder / "result.json").is_file() else {}
    index, rounds = result.get("best"), {one["index"]: one["counts"] for one in result.get("rounds", [])}
    where = folder / f"round-{index or 0}"
    if index is None or not (where / "train" / "record.json").is_file():
        where, index, rounds = _train(config, inputs, watch), 0, {0: start_mixture_counts(config, inputs)}
    return Checkpoint(
        config=config,
        inputs=inputs,
        index=index,
        mixture=Mixture.read(where / "mixture.json", inputs.domains),
        record=TrainingRecord.read(where / "train" / "record.json"),
        folder=where / "train",
        weights=objective_weights(config, where),
        trainings=_trainings(config, inputs, rounds),
        watch=watch,
    )


def _as_asked(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's configuration with what a question may be asked with: how influence is measured, the goal, the step, scores."""
    taken = {
        **on_the_way(old, new),
        **{
            key: new[key]
            for key in ("influence", "objective", "allocation", "tests", "scores", "constraints")
        },
    }
    weights = {name: source["weight"] for name, source in new["references"].items()}
    sources = {
        name: {**source, "weight": weights.get(name, source["weight"])}
        for name, source in old["references"].items()
    }
    return {**taken, "references": sources}


def _of_search(config: Config) -> Config:
    """The configuration that the search ran with, and how it is asked now."""
    path = Path(config.output) / SEARCH / "config.yaml"
    if not path.is_file():
        raise InputError(
            "this configuration searches on a smaller model or budget, and its search has not begun",
            where=str(path.parent),
            mend="idealmix run CONFIG first",
        )
    asked = {name: getattr(config, name) for name in ("influence", "objective", "references")}
    return configfile.load(path).model_copy(update=asked)


def _train(config: Config, inputs: Inputs, watch: Watch) -> Path:
    """Round 0, mixed, trained and evaluated by the run's own phases, so that a run finds them done."""
    check_before(config, inputs)
    folder = RunFolder(Path(config.output), watch.warn)
    with contextlib.ExitStack() as held:
        claim(folder, config, held)
        phases = Phases(config, inputs, folder, Team(), watch)
        mixed = phases.mix("round-0", start_mixture_counts(config, inputs), config.seed)
        trained = phases.train("round-0", mixed, config.seed, None)
        phases.evaluate("round-0", trained)
        phases.evaluate("base", None)
    return folder.path / "round-0"


def objective_weights(config: Config, where: Path) -> dict[str, float]:
    """dO/dL_q at a round; some objectives look at the losses of round 0 and of the base model too."""
    losses, run = _deciding(where), where.parent
    start = _deciding(run / "round-0") if config.objective in BY_ROUND_0 else losses
    base = _deciding(run / "base") if config.objective == "progress" else None
    weights = {name: source.weight for name, source in config.references.items()}
    return Goal(config.objective, weights, start, base=base).gradient(losses)


def _trainings(config: Config, inputs: Inputs, counts: Mapping[int, Mapping[str, int]]) -> Trainings:
    """Of a run's rounds, whose counts its result tells, and of round 0's replicates that are there."""
    run = Path(config.output)
    rounds = {}
    for index, known in counts.items():
        where = run / f"round-{index}"
        if Mixture.read(where / "mixture.json", inputs.domains).counts != known:
            raise InputError(
                f"round {index} is being made anew, its result is of an earlier mixture",
                where=str(run),
                mend="idealmix run CONFIG to its end first",
            )
        rounds[index] = known, _deciding(where)
    numbers = range(1, config.allocation.replicates + 1)
    again = [run / "round-0" / f"replicate-{number}" for number in numbers]
    replicates = [_deciding(where) for where in again if (where / "evaluation.json").is_file()]
    per_row = mean_volumes(inputs.domains, config.allocation.budget.unit)
    return Trainings.of(_deciding(run / "base"), rounds, replicates, per_row)


def _deciding(where: Path) -> dict[str, SetLoss]:
    found = read_json(where / "evaluation.json")["deciding"]
    return {name: SetLoss.from_json(loss) for name, loss in found.items()}
