"""Measures the influence matrix of a trained model.

Flows in: a model, the mixture that it was trained on, the pools, the references' gradient halves, settings. Flows out:
an `InfluenceMatrix`. The passes over the data:

    1. curvature   the mixture's rows (a sample), for R
    2. references  gbar_q of every reference set, then U_q = R gbar_q
    3. domains     drawn rows, then unused rows: gbar_i, and for every row its dots with all U_q; W_i = R gbar_i
    4. references  again: for every row its dots with all W_i, for the reference rows' part of the error
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from idealmix import config
from idealmix.curvature import (
    Collector,
    Curvature,
    Layer,
    Metric,
    RowDots,
    RowLosses,
    adam_metric,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.batch import Batch
from idealmix.curvature.collect import Progress
from idealmix.errors import InputError
from idealmix.influence_matrix import Array, Dots, InfluenceMatrix

if TYPE_CHECKING:
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool
    from idealmix.training.record import TrainingRecord

# A domain's sample is never smaller than this many rows (or all that it has): below, its error means little.
LEAST_ROWS = 16

# Reference rows below which the errors themselves are uncertain; the user is told.
FEW_REFERENCE_ROWS = 10


@dataclass(frozen=True)
class Sampled:
    """Rows of one domain that are measured: their batches, how many, and their share of all such rows."""

    batches: list[Batch]
    rows: int
    fraction: float


def measure(
    model: nn.Module,
    mixture: Mixture,
    domains: Mapping[str, Pool],
    references: Mapping[str, Pool],
    settings: config.Influence,
    *,
    record: TrainingRecord | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> InfluenceMatrix:
    """Measure how each domain's volume moves the loss on each reference set.

    Args:
        model: causal language model trained on `mixture`, on its device.
        mixture: what it was trained on; repetitions count.
        domains, references: training pools and gradient halves, by name.
        settings: the configuration's ``influence`` block.
        record: the training's record: weights of the domains by optimiser step, step sizes. None (a checkpoint from
            elsewhere): shares of supervised tokens, and no ``finite`` response.
        folder: where the record lies; holds ``second_moments.safetensors`` for ``finite``.
        seed: of the sample of rows and of sampled labels.

    Raises:
        InputError: ``finite`` without a record; a layer pattern that matches nothing; an empty mixture.
        IdealmixError: something is not finite (layer, batch and rows are named).
    """
    layers = select_layers(model, settings.layers)
    collector = Collector(model, layers, progress=progress)
    drawn = {name: _drawn(name, mixture, pool, settings, seed) for name, pool in domains.items()}
    unused = {name: _unused(name, mixture, pool, settings, seed) for name, pool in domains.items()}
    held_out = {
        name: _batches(name, [(i, 1.0) for i in range(len(pool))], pool, settings)
        for name, pool in references.items()
    }
    present = [name for name, sample in drawn.items() if sample.rows]
    if not present:
        raise InputError("the mixture is empty: there is nothing to measure", where="mixture")
    curvature = _curvature(
        collector,
        [b for name in present for b in drawn[name].batches],
        settings,
        record,
        folder,
        seed,
        layers,
    )
    v = _step_weights(mixture, domains, record)

    gradients, losses = [], {}
    for name, batches in held_out.items():
        total = sum_gradient(collector, batches)
        gradients.append(total.mean())
        losses[name] = float((total.rows.weights * total.rows.sums).sum() / total.supervised)
    queries = _responses(curvature, layers, gradients)

    measured, parts, responses = {}, {}, {}
    for kind, samples in (("drawn", drawn), ("unused", unused)):
        dots = {
            name: row_dots(collector, sample.batches, queries, total=True)
            for name, sample in samples.items()
            if sample.rows
        }
        measured[kind], parts[kind] = dots, {name: _by_layer(found, layers) for name, found in dots.items()}
        gradients = [found.gradient.mean() for found in dots.values() if found.gradient is not None]
        responses[kind] = _responses(curvature, layers, gradients) if gradients else {}
    del queries, gradients

    keys = [(kind, name) for kind in ("drawn", "unused") for name in measured[kind]]
    both = {
        layer.name: torch.cat([responses[kind][layer.name] for kind in responses if responses[kind]])
        for layer in layers
    }
    backward = {name: row_dots(collector, batches, both) for name, batches in held_out.items()}
    centred = settings.centred is not False
    return _assemble(
        list(domains), list(references), v, centred, measured, {"drawn": drawn, "unused": unused},
        backward, keys, parts, losses, curvature, settings, mixture, record,
    )  # fmt: skip


# --- which rows ----------------------------------------------------------------------------------------------


def _drawn(name: str, mixture: Mixture, pool: Pool, settings: config.Influence, seed: int) -> Sampled:
    """A sample of the mixture's distinct rows; weights are their repetitions over the sample's share."""
    repeats = Counter(mixture.row_ids.get(name, ()))
    return _sample(
        name, pool, {pool.index[row]: times for row, times in repeats.items()}, len(repeats), settings, seed
    )


def _unused(name: str, mixture: Mixture, pool: Pool, settings: config.Influence, seed: int) -> Sampled:
    """A sample of pool rows outside the mixture, no larger than that of the drawn ones: it serves as well."""
    used = set(mixture.row_ids.get(name, ()))
    rest = {i: 1 for i, row in enumerate(pool.ids) if row not in used}
    return _sample(name, pool, rest, min(len(rest), max(len(used), LEAST_ROWS)), settings, seed)


def _sample(
    name: str, pool: Pool, rows: Mapping[int, int], base: int, settings: config.Influence, seed: int
) -> Sampled:
    size = min(len(rows), max(math.ceil(settings.sample_fraction * base), LEAST_ROWS))
    if not size:
        return Sampled([], 0, 1.0)

    def key(i: int) -> bytes:  # the row alone decides: neither order nor other rows change the sample
        return hashlib.blake2b(f"{seed}\0{name}\0{pool.ids[i]}".encode(), digest_size=16).digest()

    chosen = sorted(sorted(rows, key=key)[:size])
    fraction = size / len(rows)
    weighted = [(i, rows[i] / fraction) for i in chosen]
    return Sampled(_batches(name, weighted, pool, settings), size, fraction)


def _batches(
    name: str, rows: Sequence[tuple[int, float]], pool: Pool, settings: config.Influence
) -> list[Batch]:
    listed = []
    for i, weight in rows:
        row = pool.row(i)
        # two domains may use one id: sampled labels are keyed by both
        listed.append((f"{name}/{row.id}", row.input_ids, row.labels, weight))
    return make_batches(listed, settings.batch_tokens)


def _step_weights(mixture: Mixture, domains: Mapping[str, Pool], record: TrainingRecord | None) -> Array:
    """v_i: as trained where that is known, else shares of supervised tokens (the large-batch limit)."""
    if record is not None:
        return np.array([record.step_weights.get(name, 0.0) for name in domains])
    tokens = np.array([float(mixture.supervised_tokens.get(name, 0)) for name in domains])
    return tokens / tokens.sum()


# --- the response --------------------------------------------------------------------------------------------


def _curvature(
    collector: Collector,
    batches: list[Batch],
    settings: config.Influence,
    record: TrainingRecord | None,
    folder: Path | None,
    seed: int,
    layers: Sequence[Layer],
) -> Curvature:
    tau, metrics = None, None
    if settings.response == "finite":
        if record is None or not record.step_sizes:
            raise InputError(
                "the finite response needs the training's step sizes, and this checkpoint comes without a record",
                where="influence.response",
                mend="use response: converged, or a checkpoint that `idealmix run` trained",
            )
        tau, metrics = float(sum(record.step_sizes)), _metrics(record, folder, layers)
    return fit_curvature(
        settings.curvature,
        collector,
        _reindexed(batches),
        rho=settings.damping,
        label_seed=seed if settings.fisher == "sampled" else None,
        tau=tau,
        metrics=metrics,
    )


def _metrics(
    record: TrainingRecord, folder: Path | None, layers: Sequence[Layer]
) -> dict[str, Metric] | None:
    path = folder / "second_moments.safetensors" if folder else None
    if path is None or not path.exists():
        return None
    moments = load_file(path)
    epsilon = float((record.optimiser or {}).get("eps") or 1e-8)
    return {layer.name: adam_metric(layer, moments, epsilon) for layer in layers}


def _reindexed(batches: list[Batch]) -> list[Batch]:
    """Longest first over all domains, so that what does not fit in memory fails at once."""
    return sorted(batches, key=lambda batch: -batch.input_ids.numel())


def _responses(
    curvature: Curvature, layers: Sequence[Layer], gradients: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """(N, d_out, d_in) by layer: R times each gradient."""
    return {
        layer.name: torch.stack([curvature.respond(layer.name, each[layer.name]) for each in gradients])
        for layer in layers
    }


# --- from dots to the matrix ---------------------------------------------------------------------------------


def _by_layer(found: RowDots, layers: Sequence[Layer]) -> dict[str, Array]:
    """(Q,) by layer: the layer's part of z."""
    supervised = _tokens(found.rows)
    return {layer.name: found.by_layer[layer.name].cpu().numpy() / supervised for layer in layers}


def _tokens(rows: RowLosses) -> float:
    return float((rows.weights * rows.supervised).sum())


def _ratio(found: RowDots) -> tuple[Array, Array]:
    """Mean dots per supervised token (K,), and each row's part of their error (N, K).

    r = sum w x / sum w t; a row's part is w (x - r t) / sum w t (linearised ratio estimator).
    """
    w = found.rows.weights.double().cpu().numpy()
    t = found.rows.supervised.double().cpu().numpy()
    x = found.dots.double().cpu().numpy()
    total = float(w @ t)
    mean = (w @ x) / total
    return mean, w[:, None] * (x - t[:, None] * mean) / total


def _covariance(parts: Array) -> Array:
    """(K, K): n/(n-1) times the sum of the rows' outer products; infinite for a single row."""
    n = len(parts)
    if n < 2:
        return np.full((parts.shape[1],) * 2, np.inf)
    return n / (n - 1) * parts.T @ parts


def _assemble(
    domains: list[str],
    references: list[str],
    v: Array,
    centred: bool,
    measured: Mapping[str, Mapping[str, RowDots]],
    samples: Mapping[str, Mapping[str, Sampled]],
    backward: Mapping[str, RowDots],
    keys: list[tuple[str, str]],
    parts: Mapping[str, Mapping[str, Mapping[str, Array]]],
    losses: Mapping[str, float],
    curvature: Curvature,
    settings: config.Influence,
    mixture: Mixture,
    record: TrainingRecord | None,
) -> InfluenceMatrix:
    Q, D, c = len(references), len(domains), float(centred)
    dots = {}
    for kind in ("drawn", "unused"):
        z, covariance = np.full((Q, D), np.nan), np.zeros((D, Q, Q))
        variance = np.zeros((Q, D))
        for i, name in enumerate(domains):
            if name not in measured[kind]:
                continue
            z[:, i], rows = _ratio(measured[kind][name])
            covariance[i] = _covariance(rows)
            for q, reference in enumerate(references):
                # this reference row's part of the error of alpha[q, i]: the centring runs over drawn rows
                _, mine = _ratio(backward[reference])
                own = mine[:, keys.index((kind, name))]
                mix = sum(
                    v[domains.index(other)] * mine[:, keys.index(("drawn", other))]
                    for other in measured["drawn"]
                )
                variance[q, i] = v[i] ** 2 * float(_covariance((own - c * mix)[:, None])[0, 0])
        dots[kind] = Dots(
            z=z,
            covariance=covariance,
            reference_variance=variance,
            rows=np.array([float(samples[kind][name].rows) for name in domains]),
            fraction=np.array([samples[kind][name].fraction for name in domains]),
        )
    rows = np.array([float(len(backward[name].rows.row_ids)) for name in references])
    facts: dict[str, Any] = {
        "curvature": settings.curvature,
        "response": settings.response,
        "fisher": settings.fisher,
        "damping": settings.damping,
        "damping_absolute": dict(curvature.damping),
        "sample_fraction": settings.sample_fraction,
        "token_shares": _shares(mixture, domains),
        "step_weights_from": "the training's optimiser steps" if record else "shares of supervised tokens",
        "tokens": {
            kind: {name: int(found.rows.supervised.sum()) for name, found in measured[kind].items()}
            for kind in measured
        }
        | {"references": {name: int(found.rows.supervised.sum()) for name, found in backward.items()}},
    }
    return InfluenceMatrix(
        domains=tuple(domains),
        references=tuple(references),
        v=v,
        centred=centred,
        drawn=dots["drawn"],
        unused=dots["unused"],
        reference_rows=rows,
        layers=_layer_parts(domains, references, v, c, parts, dots["unused"]),
        losses=dict(losses),
        facts=facts,
        warnings=tuple(_warnings(references, rows, domains, dots["drawn"])),
    )


def _layer_parts(
    domains: list[str],
    references: list[str],
    v: Array,
    c: float,
    parts: Mapping[str, Mapping[str, Mapping[str, Array]]],
    unused: Dots,
) -> dict[str, Array]:
    """(Q, D) by layer: parts of `alpha`, which they sum to."""
    names = list(next(iter(parts["drawn"].values())))
    found = {}
    for layer in names:
        mix = sum(v[domains.index(name)] * part[layer] for name, part in parts["drawn"].items())
        alpha = np.full((len(references), len(domains)), np.nan)
        for i, name in enumerate(domains):
            kind = "unused" if np.isfinite(unused.z[:, i]).all() else "drawn"
            if name in parts[kind]:
                alpha[:, i] = -v[i] * (parts[kind][name][layer] - c * mix)
        found[layer] = alpha
    return found


def _shares(mixture: Mixture, domains: list[str]) -> dict[str, float]:
    tokens = {name: float(mixture.supervised_tokens.get(name, 0)) for name in domains}
    total = sum(tokens.values())
    return {name: count / total for name, count in tokens.items()}


def _warnings(references: list[str], rows: Array, domains: list[str], drawn: Dots) -> list[str]:
    found = [
        f"reference set {name} has {int(n)} rows in its gradient half: its errors are themselves uncertain"
        for name, n in zip(references, rows)
        if n < FEW_REFERENCE_ROWS
    ]
    found += [
        f"domain {name} has no rows in the mixture: its influence cannot be measured"
        for name, n in zip(domains, drawn.rows)
        if n == 0
    ]
    return found
