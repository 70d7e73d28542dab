"""The plan: every phase of every round on one machine.

Flows in: a configuration, its `Inputs`, a `Machine`. Flows out: a `Plan`: tokens, seconds, peak memory and disk of each
phase, their totals, and warnings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from idealmix import config
from idealmix.plan import cost, memory
from idealmix.plan.cost import Cost
from idealmix.plan.machine import Machine
from idealmix.plan.memory import Batch, Moments
from idealmix.plan.shapes import Blueprint, Shape
from idealmix.plan.work import GENERATED, Answers, Work

if TYPE_CHECKING:
    from idealmix.plan.shapes import Linear

# Resident memory of a CPU process that its sizes do not tell: libraries loaded on first use, threads, data, the
# optimiser's and the pools' objects. Round figures.
OVERHEAD_TRAINING, OVERHEAD_MEASURING = 60e6, 40e6


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        round: ``base``, ``round 0``, ``replicates``, ``later rounds`` or ``tests``.
        name: the phase's.
        times: how often it is done in that round at most.
        tokens: read once, without pads; null where an outside command trains.
        seconds, peak: of once; null where an outside command trains.
        disk: bytes that once leaves behind.
        scratch: bytes on disk while it runs.
        moments: bytes held at each moment; `peak` is the largest.
    """

    round: str
    name: str
    times: int
    tokens: int | None
    seconds: float | None
    peak: float | None
    disk: float = 0.0
    scratch: float = 0.0
    moments: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a run will need on a machine.

    Attributes:
        dtype: what is computed in.
        shape: the model's sizes.
        measured: parameters in the measured layers, and how many layers.
        warnings: what the plan does not know.
    """

    machine: Machine
    dtype: str
    shape: Shape
    measured: tuple[int, int]
    phases: tuple[Phase, ...]
    warnings: tuple[str, ...] = ()

    @property
    def peak(self) -> float:
        """Of the whole run."""
        return max(phase.peak or 0.0 for phase in self.phases)

    @property
    def seconds(self) -> float:
        """Of all phases that are known."""
        return sum(phase.times * (phase.seconds or 0.0) for phase in self.phases)

    @property
    def disk(self) -> float:
        """What the run folder grows to, scratch files of the largest phase included."""
        kept = sum(phase.times * phase.disk for phase in self.phases)
        return kept + max(phase.scratch for phase in self.phases)

    @property
    def tokens(self) -> int:
        """Read by all phases."""
        return sum(phase.times * (phase.tokens or 0) for phase in self.phases)

    @property
    def lacking(self) -> list[Phase]:
        """Phases that need more memory than there is."""
        return [phase for phase in self.phases if (phase.peak or 0.0) > self.machine.memory]

    @property
    def fits(self) -> bool:
        """Memory and, where it is known, disk suffice."""
        return not self.lacking and (self.machine.disk is None or self.disk <= self.machine.disk)

    def to_json(self) -> dict[str, Any]:
        """Plain types; bytes and seconds."""
        return {
            "machine": {**asdict(self.machine), "share": self.machine.share},
            "dtype": self.dtype,
            "model": asdict(self.shape),
            "measured_layers": {"parameters": self.measured[0], "layers": self.measured[1]},
            "phases": [asdict(phase) for phase in self.phases],
            "totals": {
                "tokens": self.tokens,
                "seconds": self.seconds,
                "peak": self.peak,
                "disk": self.disk,
            },
            "fits": self.fits,
            "warnings": list(self.warnings),
        }


def make_plan(
    settings: config.Config, blueprint: Blueprint, work: Work, machine: Machine, dtype: str
) -> Plan:
    """Plan a run.

    Args:
        blueprint: the model, with the adapters that `settings` ask for.
        work: counted with the same settings.
        dtype: ``float32`` or ``bfloat16``, what is computed in.
    """
    planner = _Planner(settings, blueprint, work, machine, dtype)
    layers = planner.layers
    return Plan(
        machine,
        dtype,
        planner.shape,
        (sum(each.d_in * each.d_out for each in layers), len(layers)),
        tuple(planner.phases()),
        tuple(planner.warnings()),
    )


@dataclass
class _Planner:
    settings: config.Config
    blueprint: Blueprint
    work: Work
    machine: Machine
    dtype: str

    def __post_init__(self) -> None:
        self.shape: Shape = self.blueprint.shape
        self.layers: list[Linear] = self.blueprint.layers(self.settings.influence.layers)
        self.outside = self.settings.training.backend == "command"

    def phases(self) -> list[Phase]:
        allocation = self.settings.allocation
        train, influence = self._train(), self._influence()
        evaluate = [self._evaluate(), *self._generate("watched scores", self.work.watched)]
        again = allocation.rounds > 1

        def within(round: str, times: int, *phases: Phase) -> list[Phase]:
            return [replace(phase, round=round, times=times) for phase in phases if times]

        # a replicate's checkpoint is not kept, but lies there while it is evaluated
        passing = replace(train, disk=0.0, scratch=max(train.scratch, train.disk))
        later = allocation.rounds - 1
        found = within("base", 1, *evaluate) + within("round 0", 1, train, *evaluate)
        found += within("replicates", allocation.replicates if again else 0, passing, *evaluate)
        found += within("round 0", int(again), *influence)
        found += within("later rounds", later, train, *evaluate)
        found += within("later rounds", max(0, later - 1), *influence)  # none after the last round
        if len(self.work.tests.lengths):
            found += within("tests", 3 if again else 2, *self._tests())
        rows = Phase("end", "mixture", 1, 0, 0.0, 0.0, disk=self.work.bytes_of_rows)
        return [*found, rows]

    def _train(self) -> Phase:
        training, work, shape = self.settings.training, self.work.training, self.shape
        weights, trained = shape.weights(self.dtype), 4.0 * shape.trained
        # adapters are saved without their base; AdamW's second moments lie beside them
        kept = (trained if training.lora else weights) + trained
        if self.outside:
            return Phase("", "train", 1, None, None, None, disk=weights)
        adamw = "adam" in training.optim
        kept_bytes = self.blueprint.training(work.batch.length, self.dtype, training.gradient_checkpointing)
        moments = memory.training(
            shape, work.batch, kept_bytes, self.dtype, steps=work.steps, accelerator=self.machine.accelerator,
            adamw=adamw,
        )  # fmt: skip
        moments = self._on_host(moments, OVERHEAD_TRAINING)
        seconds = cost.training(
            shape, work.padded, work.padded / max(1, work.rows), training.gradient_checkpointing
        )
        # the trainer keeps two checkpoints inside the training: weights, moments
        inside = 2 * (trained + 2 * trained * adamw) if training.save_steps else 0.0
        return self._phase("train", work.tokens, seconds, moments, disk=kept, scratch=inside)

    def _evaluate(self) -> Phase:
        rows, limit = self.work.references, self.settings.influence.batch_tokens
        batches = rows.batches(limit)
        moments = self._on_host(
            memory.evaluation(self.shape, _largest(batches), self.dtype), OVERHEAD_MEASURING
        )
        padded, length = _padded(batches)
        return self._phase("evaluate", rows.tokens, cost.evaluation(self.shape, padded, length), moments)

    def _influence(self) -> list[Phase]:
        """One entry for each pass; the peak of each is that of its own moments."""
        settings, work, shape, layers = self.settings.influence, self.work, self.shape, self.layers
        # exact: conjugate gradients, preconditioned by EK-FAC, whose iterations are not known beforehand
        kind = "ekfac" if settings.curvature not in ("kfac", "identity") else settings.curvature
        q, d = work.reference_sets, work.samples
        limit = settings.batch_tokens
        batches = {name: rows.batches(limit) for name, rows in work.passes.items()}
        largest = {name: self._scored(_largest(found)) for name, found in batches.items()}
        measuring = partial(self.blueprint.measuring, dtype=self.dtype, spec=settings.layers)
        disk = self.on_disk()
        moments = self._on_host(
            memory.influence(
                shape,
                layers,
                {name: (batch, measuring(batch.length)) for name, batch in largest.items()},
                self.dtype,
                curvature=kind,
                references=q,
                samples=d,
                accelerator=self.machine.accelerator,
                sampled=settings.fisher == "sampled",
                on_disk=disk,
            ),
            OVERHEAD_MEASURING,
        )
        whole = memory.Matrices.of(layers)
        # bases and lambda, or factors and their Cholesky factors, then responses on top of them
        bases = whole.a + whole.s if kind != "identity" else 0.0
        curved = bases + {"ekfac": whole.whole, "kfac": whole.a_each + whole.s}.get(kind, 0.0)
        lying = {
            "eigenvalues": curved,
            "references": curved + q * whole.whole,
            "domains": curved + (q + d) * whole.whole,
            "reference rows": curved + d * whole.whole,
        }
        each_batch = {"eigenvalues": bases, "domains": q * whole.whole, "reference rows": d * whole.whole}
        costs: dict[str, Cost] = {}
        for name, found in batches.items():
            padded, length = _padded(found)
            if name == "covariances":
                costs[name] = cost.covariances(shape, layers, padded, length)
                costs["eigendecompositions"] = cost.decompositions(layers, kind)
            elif name == "eigenvalues":
                costs[name] = cost.eigenvalues(shape, layers, padded, length)
            else:
                queries, responses = {"references": (0, q), "domains": (q, d), "reference rows": (d, 0)}[name]
                responses = responses if kind != "identity" else 0
                costs[name] = cost.gradients(shape, layers, padded, length, queries, responses)
        skipped = {"identity": {"covariances", "eigendecompositions", "eigenvalues"}, "kfac": {"eigenvalues"}}
        names = {"eigendecompositions": "Cholesky factors"} if kind == "kfac" else {}
        if disk:
            for name in each_batch:
                costs[name] = replace(costs[name], read=len(batches[name]) * each_batch[name])
        return [
            self._phase(
                f"influence: {names.get(name, name)}",
                work.passes[name].tokens if name in work.passes else 0,
                each,
                {name: moments[name]},
                scratch=lying.get(name, 0.0) if disk else 0.0,
            )
            for name, each in costs.items()
            if name not in skipped.get(kind, set())
        ]

    def _scored(self, batch: Batch) -> Batch:
        """As the engine asks for its logits: at all positions where the model makes no others, or its head is measured."""
        return (
            batch if self.blueprint.selects(self.settings.influence.layers) else replace(batch, columns=None)
        )

    def on_disk(self) -> bool:
        """Whether the influence stage keeps its matrices in a scratch folder, by its own rule."""
        from idealmix.influence_stage import SMALL

        store = self.settings.influence.store
        m = memory.Matrices.of(self.layers)
        matrices = self.work.reference_sets + 2 * len(self.settings.domains)
        wide = (matrices + 1) * m.whole + m.a_each + m.s
        return store == "disk" or (store == "auto" and wide > max(12 * self.shape.parameters, SMALL))

    def _tests(self) -> list[Phase]:
        rows = self.work.tests
        batches = rows.batches(self.settings.influence.batch_tokens)
        moments = self._on_host(
            memory.evaluation(self.shape, _largest(batches), self.dtype), OVERHEAD_MEASURING
        )
        losses = self._phase(
            "test losses", rows.tokens, cost.evaluation(self.shape, *_padded(batches)), moments
        )
        return [losses, *self._generate("test scores", self.work.answers)]

    def _generate(self, name: str, answers: Answers) -> list[Phase]:
        """The answers for scores; none where there are none."""
        if not answers.prompts:
            return []
        at_once = min(answers.prompts, max(1, GENERATED // answers.longest))
        held = memory.generation(self.shape, at_once, answers.longest, self.dtype)
        # one token at a time for all rows of a batch: the weights are read for each, which memory's speed limits;
        # counted as passes at a tenth of the share
        each = cost.evaluation(self.shape, 10.0 * answers.new_tokens, float(answers.longest))
        return [self._phase(name, answers.new_tokens, each, self._on_host(held, OVERHEAD_MEASURING))]

    def _on_host(self, moments: Moments, overhead: float) -> Moments:
        """On a CPU, what the sizes do not tell, and reading the checkpoint."""
        if self.machine.accelerator:
            return moments
        return {name: value + overhead for name, value in moments.items() if value} | {
            "loading": memory.loading(self.shape, self.dtype)
        }

    def _phase(self, name: str, tokens: int, each: Cost, moments: Moments, **disk: float) -> Phase:
        seconds = each.seconds(self.machine, self.dtype)
        return Phase("", name, 1, tokens, seconds, memory.peak(moments), moments=moments, **disk)

    def warnings(self) -> list[str]:
        found = (
            [] if not self.outside else ["your command's training is not planned: only what it leaves behind"]
        )
        if self.settings.influence.curvature not in ("ekfac", "kfac", "identity"):
            found.append(
                f"curvature {self.settings.influence.curvature} is planned as ekfac: its iterations are not counted"
            )
        if self.settings.influence.response == "finite":
            found.append("response finite: the optimiser's second moments are read too, which is not counted")
        return found


def _largest(batches: list[Batch]) -> Batch:
    return max(batches, key=lambda batch: (batch.tokens, batch.supervised))


def _padded(batches: list[Batch]) -> tuple[float, float]:
    """Tokens with pads, and the mean length of a row."""
    tokens, rows = sum(batch.tokens for batch in batches), sum(batch.rows for batch in batches)
    return float(tokens), tokens / max(1, rows)
