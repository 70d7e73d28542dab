"""Measures the influence matrix of a trained model.

Flows in: a model, the mixture that it was trained on, the pools, the references' gradient halves, settings. Flows out:
an `InfluenceMatrix`. The passes over the data:

    1. curvature    a sample of the mixture's rows, for R
    2. references   gbar_q of each set, then U_q = R gbar_q
    3. domains      drawn rows, then unused rows: every row's dots with all U_q, and gbar_i; then W_i = R gbar_i
    4. references   again: every row's dots with all W_i, for the reference rows' share of the error

No row's gradient is kept. R and (references + 2 domains) matrices of each measured layer's size lie on `Shelves`: in
memory, or in a scratch folder, where one layer's are read at a time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import load_file
from torch import nn

from idealmix import config
from idealmix.curvature import (
    Collector,
    Coupled,
    Curvature,
    Layer,
    Metric,
    RowDots,
    Shelf,
    Shelves,
    SumGradient,
    adam_metric,
    fit_curvature,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.errors import Doubt, IdealmixError, InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_sample import Sample, Sampler, small_samples
from idealmix.moments import Array, Moments, Rows

if TYPE_CHECKING:
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool
    from idealmix.training.record import TrainingRecord

Progress = Callable[[int, int, str], None]
"""Called with parts done, parts in all, and what is being done."""

# What the curvature rests on where there are more: tokens for each dimension of the widest layer, and rows
# (docs/decisions.md, 24).
TOKENS_PER_DIMENSION = 32
CURVATURE_ROWS = 256
# Matrices that take less than this, in bytes, always lie in memory.
SMALL = 2**30


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
    progress: Progress | None = None,
) -> InfluenceMatrix:
    """Measure how each domain's volume moves the loss on each reference set.

    Args:
        model: a causal language model as it is after the training, on its device.
        mixture: what it was trained on; only ``row_ids`` is used.
        domains: training pools by name.
        references: gradient halves by name; all their rows are measured.
        settings: ``sample_fraction`` is taken by row, of each domain's distinct drawn rows and of its unused rows (of
            the latter no more than were drawn); at least 16 rows, or all. ``centred: auto`` counts as true.
        record: of the training. None: a checkpoint that any trainer made; v_i is then T_i / T.
        folder: where the record lies. ``second_moments.safetensors`` in it is AdamW's metric for ``finite``, each
            layer's inverse square root taken as a rank-one matrix (`curvature.adam_metric`). tau is the sum of the
            step sizes; momentum, clipping and weight decay are not modelled.
        scratch: an existing folder for matrices that are kept on disk; default the system's for temporary files.
        seed: of the samples of rows and of the sampled labels.

    Raises:
        InputError: ``finite`` without a record, a layer pattern that matches nothing, an empty mixture.
        IdealmixError: something is not finite, or a factor does not decompose (the layer is named).
    """
    rows = _checked_rows(mixture, domains, references)
    with _doubts_of_measuring() as left_out:
        layers = select_layers(model, settings.layers)
    tau, metrics = _training_response(settings, record, folder, layers)
    sampler = Sampler(settings.sample_fraction, settings.batch_tokens, seed)
    drawn = [sampler.drawn(name, pool, rows[name]) for name, pool in domains.items()]
    unused = [sampler.unused(name, pool, rows[name]) for name, pool in domains.items()]
    held_out = [sampler.whole(name, pool) for name, pool in references.items()]
    part = _curvature_part(settings, layers, drawn)
    fitted = (
        [sampler.drawn(name, pool, rows[name], part) for name, pool in domains.items()] if part < 1 else drawn
    )
    passes = {
        "covariances": fitted if settings.curvature != "identity" else [],  # woodbury: the rows' gradients
        "eigenvalues": fitted if settings.curvature in ("ekfac", "exact") else [],
        "references": held_out,
        "domains": [*drawn, *unused],
        "reference rows": held_out,
    }
    parts = sum(len(sample.batches) for samples in passes.values() for sample in samples)
    collector = Collector(model, layers, progress=_counted(progress, parts))
    with (
        _doubts_of_measuring() as told,
        Shelves(_scratch(settings, model, layers, len(references) + 2 * len(domains), scratch)) as shelves,
    ):
        curvature = fit_curvature(
            settings.curvature,
            collector,
            # the largest batch first: what does not fit in memory fails at once
            sorted((batch for each in fitted for batch in each.batches), key=lambda b: -b.input_ids.numel()),
            rho=settings.damping,
            label_seed=seed if settings.fisher == "sampled" else None,
            tau=tau,
            metrics=metrics,
            shelves=shelves,
        )
        damping = dict(curvature.damping)
        moments, by_layer, losses = _moments(collector, curvature, [*drawn, *unused], held_out, shelves)

    shares = _token_shares(domains, rows)
    plain = settings.curvature == "identity"
    return InfluenceMatrix(
        domains=tuple(domains),
        references=tuple(references),
        step_weights={name: float(record.step_weights.get(name, 0.0)) for name in domains} if record else shares,
        centred=settings.centred is not False,
        moments=moments,
        layers=by_layer,
        losses=dict(zip(references, losses)),
        facts={
            "curvature": settings.curvature,
            "response": None if plain else settings.response,
            "fisher": None if plain else settings.fisher,
            "damping": None if plain or tau is not None else settings.damping,
            "damping_absolute": {} if tau is not None else damping,
            "tau": tau,
            "metric": None if metrics is None else "adamw",
            "sample_fraction": settings.sample_fraction,
            "curvature_fraction": part,
            "pass_tokens": {name: sum(each.tokens for each in samples) for name, samples in passes.items()},
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
            *left_out,
            *told,
            *_doubts(settings, record, metrics, layers, drawn),
        ),
    )  # fmt: skip


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


def _training_response(
    settings: config.Influence, record: TrainingRecord | None, folder: Path | None, layers: Sequence[Layer]
) -> tuple[float | None, dict[str, Metric] | None]:
    """tau and the optimiser's metric for the finite response; None, None for the converged one."""
    if settings.response != "finite":
        return None, None
    if settings.curvature == "identity":
        raise InputError(
            "the finite response needs a curvature, and curvature is 'identity'",
            where="influence.response",
            mend="use curvature: ekfac, or response: converged",
        )
    if record is None or not record.step_sizes:
        raise InputError(
            "the finite response needs the training's step sizes, and this checkpoint has no record of them",
            where="influence.response",
            mend="use response: converged, or a checkpoint that `idealmix run` trained",
        )
    tau = float(sum(record.step_sizes))
    path = folder / "second_moments.safetensors" if folder else None
    if path is None or not path.is_file():
        return tau, None
    moments = load_file(path)
    eps = float((record.optimiser or {}).get("eps") or 1e-8)
    try:
        return tau, {layer.name: adam_metric(layer, moments, eps) for layer in layers}
    except KeyError as error:
        raise IdealmixError(
            f"parameter {error} has no second moment: it was not trained",
            where=str(path),
            mend="select only trained layers with influence.layers, or use response: converged",
        ) from error


def _moments(
    collector: Collector,
    curvature: Curvature | Coupled,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    shelves: Shelves,
) -> tuple[Moments, dict[str, Array], list[float]]:
    """Passes 2 to 4: the moments of gbar_q' R gbar_i with their errors, their parts by layer, the references' losses."""
    responses, losses = shelves.shelf(), []
    for sample in held_out:
        gradient = sum_gradient(collector, sample.batches)
        losses.append(float(gradient.rows.sums.sum()) / gradient.supervised)
        _respond(curvature, gradient, responses)

    answers = shelves.shelf()
    rows: list[Rows | None] = []
    by_layer = {layer.name: np.zeros((len(held_out), len(training))) for layer in collector.layers}
    for number, sample in enumerate(training):
        if not sample.rows:
            rows.append(None)
            continue
        dots = row_dots(collector, sample.batches, responses, total=True)
        if dots.gradient is None:
            raise RuntimeError("row_dots gives the gradient that total=True asks for")
        for name, part in by_layer.items():
            part[:, number] = dots.by_layer[name].numpy() / dots.gradient.supervised
        rows.append(_rows(dots, dots.dots.numpy(), sample.fraction))
        _respond(curvature, dots.gradient, answers)
        del dots
    responses.clear()

    has_rows = np.array([found is not None for found in rows])
    on_references = []
    for sample in held_out:
        dots = row_dots(collector, sample.batches, answers)
        products = np.zeros((sample.rows, len(has_rows)))
        products[:, has_rows] = dots.dots.numpy()
        on_references.append(_rows(dots, products, sample.fraction))
    return Moments.of(rows, on_references), by_layer, losses


def _respond(curvature: Curvature | Coupled, gradient: SumGradient, onto: Shelf) -> None:
    """R times a set's mean gradient, behind the others; the gradient is emptied on the way."""
    if isinstance(curvature, Coupled):
        for name, matrix in curvature.respond_all(gradient.mean()).items():
            onto.append(name, matrix.to(gradient.matrices[name]))
        return
    for layer in curvature.layers:
        mean = gradient.matrices.pop(layer.name) / gradient.supervised
        onto.append(layer.name, curvature.respond(layer.name, mean))


def _curvature_part(settings: config.Influence, layers: Sequence[Layer], drawn: Sequence[Sample]) -> float:
    """The share of the drawn sample that R rests on: all, or the rows and tokens that it asks for."""
    if settings.curvature_fraction != "auto":
        return settings.curvature_fraction
    wanted = TOKENS_PER_DIMENSION * max(max(layer.d_in, layer.d_out) for layer in layers)
    tokens, rows = sum(sample.tokens for sample in drawn), sum(sample.rows for sample in drawn)
    return min(1.0, max(wanted / max(1, tokens), CURVATURE_ROWS / max(1, rows)))


def _scratch(
    settings: config.Influence, model: nn.Module, layers: Sequence[Layer], matrices: int, scratch: Path | None
) -> Path | None:
    """Where the matrices lie: None is memory, as long as they take no more of it than AdamW's state did."""
    if settings.store == "memory":
        return None
    wide = 4 * (
        sum(layer.d_in * layer.d_out * (matrices + 1) + layer.d_in**2 + layer.d_out**2 for layer in layers)
    )
    state = 12 * sum(
        parameter.numel() for parameter in model.parameters()
    )  # gradient and two moments, float32
    if settings.store == "auto" and wide <= max(state, SMALL):
        return None
    return scratch or Path(tempfile.gettempdir())


def _rows(found: RowDots, products: Array, fraction: float) -> Rows:
    return Rows(products, found.rows.supervised.double().numpy(), found.rows.weights.numpy(), fraction)


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
    drawn: Sequence[Sample],
) -> Iterator[str]:
    """Warnings about how it was measured."""
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
    if settings.response == "finite" and metrics is None:
        yield "the optimiser left no second moments: the finite response treats it as plain gradient descent"
    tokens, widest = sum(sample.tokens for sample in drawn), max(layers, key=lambda layer: layer.d_in)
    if tokens < widest.d_in:
        yield (
            f"the curvature rests on {tokens:,} tokens, fewer than the {widest.d_in:,} inputs of {widest.name}: "
            "damping decides much of it; raise influence.sample_fraction"
        )
