"""Measures the influence matrix of a trained model.

Flows in: a model, the mixture that it was trained on, the pools, the references' gradient halves, settings. Flows out:
an `InfluenceMatrix`, or `Measured` with the rows behind it. The passes over the data:

    1. curvature    a sample of the mixture's rows, for R
    2. references   gbar_q of each set, then U_q = R gbar_q
    3. domains      drawn rows, then unused rows: every row's dots with all U_q, and gbar_i; then W_i = R gbar_i
    4. references   again: every row's dots with all W_i, for the reference rows' share of the error

The passes themselves are in `influence_passes`. No row's gradient is kept. R and (references + 2 domains) matrices of each
measured layer's size lie on `Shelves`: in memory, or in a scratch folder, where one layer's are read at a time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from idealmix import config
from idealmix.curvature import (
    Collector,
    Coupled,
    Curvature,
    Layer,
    Metric,
    Processes,
    Shelves,
    fit_curvature,
    select_layers,
)
from idealmix.errors import Doubt, InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_passes import Products, in_groups, products, unrolled
from idealmix.influence_response import training_response
from idealmix.influence_rows import Measured
from idealmix.influence_sample import Sample, Sampler, small_samples
from idealmix.influence_unrolled import segments_of
from idealmix.moments import Moments

if TYPE_CHECKING:
    from idealmix.curvature import Batch
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool
    from idealmix.training.record import TrainingRecord

Progress = Callable[[int, int, str], None]
"""Called with parts done, parts in all, and what is being done."""

# What the curvature rests on where there are more: tokens for each dimension of the widest layer, and rows
# (docs/decisions.md, 24; python -m benchmarks.curvature_rows).
TOKENS_PER_DIMENSION = 32
CURVATURE_ROWS = 128
# Matrices that take less than this, in bytes, always lie in memory: less than what importing torch takes.
SMALL = 2**26


def measure(
    model: nn.Module,
    mixture: Mixture,
    domains: Mapping[str, Pool],
    references: Mapping[str, Pool],
    settings: config.Influence,
    *,
    record: TrainingRecord | None = None,
    folder: Path | None = None,
    scratch: Path | None = None,
    seed: int = 0,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> InfluenceMatrix:
    """Measure how each domain's volume moves the loss on each reference set.

    The arguments and errors are those of `measure_rows`.
    """
    (found,) = measure_rows(
        model,
        mixture,
        domains,
        references,
        settings,
        record=record,
        folder=folder,
        scratch=scratch,
        seed=seed,
        processes=processes,
        progress=progress,
    )
    return found.matrix


def measure_rows(
    model: nn.Module,
    mixture: Mixture,
    domains: Mapping[str, Pool],
    references: Mapping[str, Pool],
    settings: config.Influence,
    *,
    record: TrainingRecord | None = None,
    folder: Path | None = None,
    scratch: Path | None = None,
    seed: int = 0,
    processes: Processes | None = None,
    progress: Progress | None = None,
    dampings: Sequence[float] = (),
    all_unused: bool = False,
) -> list[Measured]:
    """Measure how each domain's volume moves the loss on each reference set, and keep what each row adds.

    Args:
        model: a causal language model as it is after the training, on its device.
        mixture: what it was trained on; only ``row_ids`` is used.
        domains: training pools by name.
        references: gradient halves by name; all their rows are measured.
        settings: ``sample_fraction`` is taken by row, of each domain's distinct drawn rows and of its unused rows (of
            the latter as of no more than were drawn); of both at least ``least_rows``, or all. ``centred: auto`` counts as true.
        record: of the training. None: a checkpoint that any trainer made; v_i is then T_i / T.
        folder: where the record lies. ``second_moments.safetensors`` in it is AdamW's metric for ``finite``, each
            layer's inverse square root taken as a rank-one matrix (`curvature.adam_metric`). tau is the sum of the
            step sizes, each times the share of the gradient that clipping left. ``segments`` in it is for ``unrolled``.
            Momentum and weight decay are not modelled.
        scratch: an existing folder for matrices that are kept on disk; default the system's for temporary files.
        seed: of the samples of rows and of the sampled labels.
        processes: who shares the batches, each with the same arguments and the whole model; all get the same figures. None:
            this process alone.
        dampings: measure once for each, by the same curvature and in the same passes; none: the settings' own.
        all_unused: take the sample of the unused rows from all of them, not from as many as were drawn.

    Returns:
        One for each damping.

    Raises:
        InputError: ``finite`` without a record, a layer pattern that matches nothing, an empty mixture, several dampings of
            a curvature that has none.
        IdealmixError: something is not finite, or a factor does not decompose (the layer is named).
    """
    rows = _checked_rows(mixture, domains, references)
    with _doubts_of_measuring() as left_out:
        layers = select_layers(model, settings.layers)
    tau, metrics = training_response(settings, record, folder, layers)
    segments = segments_of(record, folder, layers) if settings.response == "unrolled" else []
    times = max(1, len(segments))
    sampler = Sampler(settings.sample_fraction, settings.least_rows, settings.batch_tokens, seed, all_unused)
    drawn = [sampler.drawn(name, pool, rows[name]) for name, pool in domains.items()]
    unused = [sampler.unused(name, pool, rows[name]) for name, pool in domains.items()]
    held_out = [sampler.whole(name, pool) for name, pool in references.items()]
    part = _curvature_part(settings, layers, drawn)
    fitted = (
        [sampler.drawn(name, pool, rows[name], part) for name, pool in domains.items()] if part < 1 else drawn
    )
    passes = {
        "covariances": fitted * times
        if settings.curvature != "identity"
        else [],  # woodbury: the rows' gradients
        "eigenvalues": fitted * times if settings.curvature in ("ekfac", "exact") else [],
        "references": held_out,
        "domains": [*drawn, *unused] * times,
        "reference rows": held_out,
    }
    team = processes or Processes()
    parts = sum(len(team.share(sample.batches)) for samples in passes.values() for sample in samples)
    # every segment has queries of its own, eigenvalues and bases of about two matrices
    matrices = (len(references) + 2 * len(domains)) * max(1, len(dampings)) + len(segments) * (
        len(references) + 3
    )
    # the largest batch first: what does not fit in memory fails at once
    largest = sorted((b for each in fitted for b in each.batches), key=lambda b: -b.input_ids.numel())

    def attempt(groups: list[list[Layer]]) -> tuple[int, list[dict[str, float]], list[Products]]:
        advance = _counted(progress, parts * len(groups))
        collectors = [Collector(model, group, processes=team, progress=advance) for group in groups]
        place = _scratch(settings, model, layers, matrices, scratch, apart=len(groups) > 1)
        with Shelves(place) as shelves:
            fit, training = partial(_fit, settings, largest, seed, shelves), [*drawn, *unused]
            if segments:
                return len(groups), [{}], [unrolled(collectors, segments, fit, training, held_out, shelves)]
            whole = partial(fit, tau=tau, metrics=metrics)
            return len(groups), *products(collectors, whole, dampings, training, held_out, shelves)

    with _doubts_of_measuring() as told:
        splits = settings.curvature not in ("exact", "woodbury") and settings.store != "memory"
        groups, every, by_damping = in_groups(layers, attempt, splits=splits, alone=team.size == 1)
    if segments:
        tau, metrics = sum(segment.tau for segment in segments), segments[-1].metrics
    doubts = dict.fromkeys(text for of_one in team.gather([*left_out, *told]) for text in of_one)
    shares = _token_shares(domains, rows)
    plain = settings.curvature == "identity"

    def matrix(found: Products, rho: float, absolute: dict[str, float]) -> InfluenceMatrix:
        return InfluenceMatrix(
            domains=tuple(domains),
            references=tuple(references),
            step_weights={name: float(record.step_weights.get(name, 0.0)) for name in domains} if record else shares,
            centred=settings.centred is not False,
            moments=Moments.of([None if each is None else each.rows for each in found.training], [each.rows for each in found.references]),
            layers=found.by_layer,
            losses={name: float(each.losses.sum() / each.rows.supervised.sum()) for name, each in zip(references, found.references)},
            facts={
                "curvature": settings.curvature,
                "response": None if plain else settings.response,
                "fisher": None if plain else settings.fisher,
                "damping": None if plain or tau is not None else rho,
                "damping_absolute": {} if tau is not None else absolute,
                "tau": tau,
                "metric": None if metrics is None else "adamw",
                "sample_fraction": settings.sample_fraction,
                "least_rows": settings.least_rows,
                "curvature_fraction": part,
                "pass_tokens": {name: groups * sum(each.tokens for each in samples) for name, samples in passes.items()},
                "token_shares": shares,
                "tokens": {
                    "drawn": {name: sample.tokens for name, sample in zip(domains, drawn)},
                    "unused": {name: sample.tokens for name, sample in zip(domains, unused)},
                    "references": {name: sample.tokens for name, sample in zip(references, held_out)},
                },
            },
            warnings=(
                *small_samples([*held_out, *drawn, *unused]),
                *(f"{name} has no rows in the mixture: its influence cannot be measured" for name in domains if not rows[name]),
                *doubts,
                *_doubts(settings, record, metrics, layers, fitted),
            ),
        )  # fmt: skip

    return [
        Measured(
            matrix=matrix(found, rho, absolute),
            drawn={name: each for name, each in zip(domains, found.training) if each is not None},
            unused={
                name: each for name, each in zip(domains, found.training[len(domains) :]) if each is not None
            },
            references=dict(zip(references, found.references)),
        )
        for found, rho, absolute in zip(by_damping, dampings or [settings.damping], every)
    ]


def _fit(
    settings: config.Influence,
    batches: Sequence[Batch],
    seed: int,
    shelves: Shelves,
    collector: Collector,
    tau: float | None,
    metrics: Mapping[str, Metric] | None,
) -> Curvature | Coupled:
    """The curvature that the settings ask for, of the collector's layers."""
    return fit_curvature(
        settings.curvature,
        collector,
        batches,
        rho=settings.damping,
        label_seed=seed if settings.fisher == "sampled" else None,
        tau=tau,
        metrics=metrics,
        shelves=shelves,
    )


def _checked_rows(
    mixture: Mixture, domains: Mapping[str, Pool], references: Mapping[str, Pool]
) -> dict[str, Sequence[str]]:
    """The mixture's row ids of every domain."""
    if not references:
        raise InputError("there is no reference set to measure", where="references")
    rows = mixture.row_ids
    unknown = [name for name in rows if rows[name] and name not in domains]
    if unknown:
        raise InputError(
            f"the mixture draws from {unknown[0]!r}, which is not a domain",
            where="mixture",
            mend=f"the domains are {', '.join(domains)}",
        )
    if not any(rows.values()):
        raise InputError("the mixture has no rows: there is nothing to measure", where="mixture")
    return {name: rows.get(name, ()) for name in domains}


def _token_shares(domains: Mapping[str, Pool], rows: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """T_i / T, repetitions counted."""
    tokens = {
        name: float(sum(pool.supervised[pool.index[row]] for row in rows[name]))
        for name, pool in domains.items()
    }
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def _curvature_part(settings: config.Influence, layers: Sequence[Layer], drawn: Sequence[Sample]) -> float:
    """The share of the drawn sample that R rests on: all, or the rows and tokens that it asks for."""
    if settings.curvature_fraction != "auto":
        return settings.curvature_fraction
    wanted = TOKENS_PER_DIMENSION * max(max(layer.d_in, layer.d_out) for layer in layers)
    tokens, rows = sum(sample.tokens for sample in drawn), sum(sample.rows for sample in drawn)
    return min(1.0, max(wanted / max(1, tokens), CURVATURE_ROWS / max(1, rows)))


def _scratch(
    settings: config.Influence,
    model: nn.Module,
    layers: Sequence[Layer],
    matrices: int,
    scratch: Path | None,
    *,
    apart: bool,
) -> Path | None:
    """Where the matrices lie: None is memory, as long as they take no more of it than AdamW's state did, and all layers fit in it
    at once (not `apart`).
    """
    if settings.store == "memory":
        return None
    wide = 4 * (
        sum(layer.d_in * layer.d_out * (matrices + 1) + layer.d_in**2 + layer.d_out**2 for layer in layers)
    )
    state = 12 * sum(
        parameter.numel() for parameter in model.parameters()
    )  # gradient and two moments, float32
    if settings.store == "auto" and wide <= max(state, SMALL) and not apart:
        return None
    return scratch or Path(tempfile.gettempdir())


def _counted(progress: Progress | None, parts: int) -> Progress | None:
    """One count over all passes, whose own counts start again at 1."""
    done = 0

    def advance(_done: int, _total: int, detail: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, parts, detail)

    return advance


@contextmanager
def _doubts_of_measuring() -> Iterator[list[str]]:
    """The texts of every `Doubt` that is warned of inside, each once; other warnings go where they went."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Doubt)
        yield texts
    for warning in caught:
        if not issubclass(warning.category, Doubt):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif str(warning.message) not in texts:
            texts.append(str(warning.message))


def _doubts(
    settings: config.Influence,
    record: TrainingRecord | None,
    metrics: Mapping[str, Metric] | None,
    layers: Sequence[Layer],
    fitted: Sequence[Sample],
) -> Iterator[str]:
    """Warnings about how it was measured; `fitted`: what the curvature rests on."""
    if record is None or not record.steps:
        yield "the trainer's steps are not known: domains are weighted by their shares of supervised tokens"
    if settings.curvature == "identity":
        yield "curvature identity is the plain dot product of gradients, a baseline: its figures are not nats"
        return
    if settings.fisher == "empirical":
        yield "fisher empirical uses the data's own labels: that is not the Gauss-Newton matrix"
    if settings.response == "converged":
        yield (
            "the converged response takes the model to be at its optimum: after a few epochs its sizes are far too "
            "large (30 to 1000 times were measured); signs and order are what steps are made of"
        )
    if settings.response != "converged" and metrics is None:
        yield f"the optimiser left no second moments: the {settings.response} response treats it as plain gradient descent"
    if settings.response != "converged" and record and len(record.gradient_norms) != len(record.step_sizes):
        yield "the trainer told no gradient norms: where it clipped gradients, sizes are too large"
    tokens, widest = sum(sample.tokens for sample in fitted), max(layers, key=lambda layer: layer.d_in)
    if tokens < widest.d_in:
        yield (
            f"the curvature rests on {tokens:,} tokens, fewer than the {widest.d_in:,} inputs of {widest.name}: "
            f"damping decides much of it; raise influence.{'sample' if settings.curvature_fraction == 'auto' else 'curvature'}_fraction"
        )
