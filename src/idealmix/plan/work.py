"""What a run will read: rows, tokens and batches of every phase, from the tokenised data.

Flows in: a configuration and its `Inputs`. Flows out: `Work`, without a model. Round 0's mixture is drawn as the run
will draw it; later mixtures of a held budget have as many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idealmix import config
from idealmix.plan.memory import Batch

if TYPE_CHECKING:
    from idealmix.data.pools import Pool
    from idealmix.influence_sample import Sample
    from idealmix.rounds.inputs import Inputs

# What `idealmix.evaluation.generation.generate` puts into one batch of prompts and answers.
GENERATED = 4096


@dataclass(frozen=True)
class Rows:
    """The rows of one pass.

    Attributes:
        lengths, supervised: (N,) tokens and positions with a label of each.
        first: (N,) positions before the first label; 0 where that is not known.
        sets: (N,) which set a row belongs to: batches do not mix sets.
    """

    lengths: NDArray[np.int64]
    supervised: NDArray[np.int64]
    first: NDArray[np.int64]
    sets: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> Rows:
        """From the lengths, supervised counts and positions before the first label of each set."""
        none = np.zeros(0, np.int64)
        lengths, supervised, first = (
            np.concatenate([none, *(np.asarray(part[which], np.int64) for part in parts)])
            for which in range(3)
        )
        sets = np.concatenate([none, *(np.full(len(part[0]), i, np.int64) for i, part in enumerate(parts))])
        return cls(lengths, supervised, first, sets)

    @property
    def tokens(self) -> int:
        """Without pads."""
        return int(self.lengths.sum())

    def batches(self, batch_tokens: int) -> list[Batch]:
        """As `idealmix.curvature.make_batches` makes them: longest first, pads included, at least one row."""
        found: list[list[int]] = []
        for number in np.unique(self.sets):
            mine = np.flatnonzero(self.sets == number)
            group: list[int] = []
            for row in mine[np.argsort(-self.lengths[mine], kind="stable")]:
                if group and (len(group) + 1) * self.lengths[group[0]] > batch_tokens:
                    found.append(group)
                    group = []
                group.append(int(row))
            found += [group] if group else []
        return [
            Batch(
                len(group),
                length := int(self.lengths[group[0]]),
                int(self.supervised[group].sum()),
                length - int(self.first[group].min()),
            )
            for group in found
        ]


@dataclass(frozen=True)
class Training:
    """One training: optimiser steps, rows and tokens with epochs and pads, the largest micro-batch."""

    steps: int
    rows: int
    tokens: int
    padded: int
    batch: Batch


@dataclass(frozen=True)
class Answers:
    """What is generated for scores.

    Attributes:
        prompts, new_tokens: answers, and their longest tokens in all.
        longest: tokens of the longest prompt with its answer.
    """

    prompts: int = 0
    new_tokens: int = 0
    longest: int = 0

    @classmethod
    def of(cls, scores: Sequence[tuple[Pool | None, config.Score]]) -> Answers:
        """Of exact match and tests of code; what a user's function or lm-eval generates is not known beforehand."""
        asked = [
            (min(len(pool), score.rows or len(pool)), score.max_new_tokens, int(pool.tokens.max()))
            for pool, score in scores
            if pool is not None and (score.exact_match or score.code_tests) is not None
        ]
        return cls(
            sum(number for number, _, _ in asked),
            sum(number * new for number, new, _ in asked),
            max((tokens + new for _, new, tokens in asked), default=0),
        )


@dataclass(frozen=True)
class Work:
    """Everything that a run reads.

    Attributes:
        training: one training.
        references: all rows of both halves, for one evaluation.
        passes: rows of each pass of the influence stage, by its name in `influence_stage`.
        reference_sets, samples: how many responses of each kind the influence stage holds.
        tests: rows of the test sets.
        answers, watched: generated for the scores of test sets, and for those of one evaluation.
        bytes_of_rows: of the final mixture's files, about.
    """

    training: Training
    references: Rows
    passes: dict[str, Rows]
    reference_sets: int
    samples: int
    tests: Rows
    answers: Answers
    watched: Answers
    bytes_of_rows: float


def count(settings: config.Config, inputs: Inputs, *, widest: int) -> Work:
    """Count a run's work.

    Args:
        widest: the largest side of a measured layer, which says how many rows the curvature takes.
    """
    from idealmix.data.mixture import draw
    from idealmix.influence_sample import Sampler
    from idealmix.rounds.loop import start_mixture_counts

    counts = start_mixture_counts(settings, inputs)
    mixture = draw(inputs.domains, counts, settings.seed, max_repeats=settings.allocation.max_repeats)
    influence = settings.influence
    sampler = Sampler(influence.sample_fraction, influence.least_rows, influence.batch_tokens, settings.seed)
    rows = mixture.row_ids
    drawn = [sampler.drawn(name, pool, rows[name]) for name, pool in inputs.domains.items()]
    unused = [sampler.unused(name, pool, rows[name]) for name, pool in inputs.domains.items()]
    held_out = [sampler.whole(name, pool) for name, pool in inputs.gradient_halves.items()]
    part = curvature_part(influence, widest, drawn)
    fitted = [sampler.drawn(name, pool, rows[name], part) for name, pool in inputs.domains.items()]
    halves = [*inputs.deciding_halves.values(), *inputs.gradient_halves.values()]
    passes = {
        "covariances": fitted,
        "eigenvalues": fitted,
        "references": held_out,
        "domains": [*drawn, *unused],
        "reference rows": held_out,
    }
    return Work(
        training=_training(settings, inputs, mixture),
        references=_rows(halves),
        passes={name: _sampled(samples) for name, samples in passes.items()},
        reference_sets=len(held_out),
        samples=sum(1 for sample in [*drawn, *unused] if sample.rows),
        tests=_rows(list(inputs.tests.values())),
        answers=Answers.of([(inputs.tests.get(s.test or ""), s) for s in settings.final_scores.values()]),
        watched=Answers.of(
            [(inputs.deciding_halves[str(s.reference)], s) for s in settings.watched_scores.values()]
        ),
        # a token is some four characters of text
        bytes_of_rows=4.0 * mixture.tokens + 200.0 * mixture.rows,
    )


def curvature_part(settings: config.Influence, widest: int, drawn: Sequence[Sample]) -> float:
    """The share of the drawn sample that the curvature rests on, as the influence stage takes it."""
    from idealmix.influence_stage import CURVATURE_ROWS, TOKENS_PER_DIMENSION

    if settings.curvature_fraction != "auto":
        return settings.curvature_fraction
    tokens, rows = sum(sample.tokens for sample in drawn), sum(sample.rows for sample in drawn)
    return min(1.0, max(TOKENS_PER_DIMENSION * widest / max(1, tokens), CURVATURE_ROWS / max(1, rows)))


def _training(settings: config.Config, inputs: Inputs, mixture: object) -> Training:
    from idealmix.training.order import plan_steps

    training = settings.training
    plan = plan_steps(
        mixture,  # type: ignore[arg-type]
        inputs.domains,
        seed=settings.seed,
        epochs=training.epochs,
        micro_batch_rows=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
    )
    pools = [inputs.domains[name] for name in plan.domains]
    batches = []
    for slots in plan.share_of(0):
        lengths = [int(pools[slot.domain].tokens[slot.row]) for slot in slots]
        labels = sum(int(pools[slot.domain].supervised[slot.row]) for slot in slots)
        # packed rows lie behind one another; others are padded to the longest
        batches.append(
            Batch(1, sum(lengths), labels) if training.packing else Batch(len(slots), max(lengths), labels)
        )
    return Training(
        steps=len(plan.steps),
        rows=plan.rows,
        tokens=plan.tokens,
        padded=sum(batch.tokens for batch in batches),
        batch=max(batches, key=lambda batch: batch.tokens),
    )


def _rows(pools: Sequence[Pool]) -> Rows:
    return Rows.of([(pool.tokens.tolist(), pool.supervised.tolist(), [0] * len(pool)) for pool in pools])


def _sampled(samples: Sequence[Sample]) -> Rows:
    parts: list[tuple[list[int], list[int], list[int]]] = []
    for sample in samples:
        lengths: list[int] = []
        labels: list[int] = []
        first: list[int] = []
        for batch in sample.batches:
            labelled = (batch.labels[:, 1:] >= 0).int()
            lengths += batch.attention_mask.sum(1).tolist()
            labels += labelled.sum(1).tolist()
            first += labelled.argmax(1).tolist()
        parts.append((lengths, labels, first))
    return Rows.of(parts)
