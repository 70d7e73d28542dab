"""A tiny model with pools, and the influence formula computed directly: row by row, with full matrices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from curvature_helpers import Direct, rows, tiny

from idealmix.config import Influence

__all__ = ["DirectInfluence", "RowPool", "mixture_of", "pools_of", "settings", "tiny"]


class RowPool:
    """The part of ``data.pools.Pool`` that measuring uses."""

    def __init__(self, name: str, data) -> None:
        self.name = name
        self._rows = [SimpleNamespace(id=row[0], input_ids=row[1], labels=row[2]) for row in data]
        self.ids = [row.id for row in self._rows]
        self.index = {row_id: i for i, row_id in enumerate(self.ids)}
        self.supervised = np.array([sum(label != -100 for label in row.labels[1:]) for row in self._rows])
        self.tokens = np.array([len(row.input_ids) for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int):
        return self._rows[number]

    def named(self, row_ids, prefix: str, weights=None):
        """Rows as `Direct` takes them."""
        every = [self._rows[self.index[row_id]] for row_id in row_ids]
        weights = weights or [1.0] * len(every)
        return [(f"{prefix}/{row.id}", row.input_ids, row.labels, w) for row, w in zip(every, weights)]


def pools_of(sizes: dict[str, int], seed: int = 0) -> dict[str, RowPool]:
    """Pools of random rows, each domain with its own part of the vocabulary more often."""
    pools = {}
    for number, (name, size) in enumerate(sizes.items()):
        data = [
            (f"r{i}", *row[1:])
            for i, row in enumerate(rows(size, seed=100 * seed + number, vocabulary=5 + number))
        ]
        pools[name] = RowPool(name, data)
    return pools


def mixture_of(row_ids: dict[str, list[str]]) -> SimpleNamespace:
    return SimpleNamespace(row_ids=row_ids)


def settings(**changed) -> Influence:
    return Influence(**({"sample_fraction": 1.0, "batch_tokens": 40, "damping": 0.1} | changed))


class DirectInfluence:
    """alpha of a model by the formula, all rows measured.

    `drawn` and `unused` are (Q, D), `parts` (drawn) by layer.
    """

    def __init__(
        self, model, mixture, domains, references, v, c, *, damping=0.1, seed=0, dense="ekfac"
    ) -> None:
        drawn, unused = {}, {}
        for name, pool in domains.items():
            ids = mixture.row_ids.get(name, [])
            distinct = sorted(set(ids))
            drawn[name] = pool.named(distinct, name, [float(ids.count(i)) for i in distinct])
            unused[name] = pool.named([i for i in pool.ids if i not in ids], name)
        mixed = Direct(model, [row for each in drawn.values() for row in each], label_seed=seed)
        layers = list(mixed.layers)
        dense_matrices = {
            n: mixed.ekfac(n) if dense == "ekfac" else torch.eye(mixed.fisher(n).shape[0]).double()
            for n in layers
        }
        if dense == "ekfac":
            means = {n: m.diagonal().mean() for n, m in dense_matrices.items()}
            floor = 0.01 * torch.stack(list(means.values())).median()
            for n in layers:
                eye = torch.eye(len(dense_matrices[n]), dtype=torch.float64)
                dense_matrices[n] = torch.linalg.inv(dense_matrices[n] + damping * max(means[n], floor) * eye)
        self.R = dense_matrices

        def mean_gradient(data):
            found = Direct(model, data)
            return {n: found.total(n).flatten() / found.T for n in layers}

        g_q = {q: mean_gradient(pool.named(pool.ids, q)) for q, pool in references.items()}
        g_drawn = {d: mean_gradient(data) for d, data in drawn.items()}
        g_unused = {d: mean_gradient(data) if data else None for d, data in unused.items()}
        mix = {n: sum(v[d] * g_drawn[d][n] for d in domains) for n in layers}

        def entry(q, d, g, n):
            return float(-v[d] * g_q[q][n] @ self.R[n] @ (g[d][n] - c * mix[n]))

        def table(g, names):
            return np.array(
                [
                    [sum(entry(q, d, g, n) for n in names) if g[d] else np.nan for d in domains]
                    for q in references
                ]
            )

        self.drawn, self.unused = table(g_drawn, layers), table(g_unused, layers)
        self.parts = {n: table(g_drawn, [n]) for n in layers}
