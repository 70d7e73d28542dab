"""The benchmark's second-order model: its figures against finite differences row by row, its step against a solved system."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_helpers import tiny
from influence_helpers import pools_of

from benchmarks.step_models import Model, along

SETS = pools_of({"sums": 4, "talk": 5}, seed=1)
EPSILON = 1e-5


def supervised_logits(model, pool):
    """(P, V) of every supervised position, and the (P,) labels; each row alone and unpadded."""
    logits, labels = [], []
    for name in pool.ids:
        row = pool.row(pool.index[name])
        ids, wanted = torch.as_tensor(np.array(row.input_ids)), torch.as_tensor(np.array(row.labels))[1:]
        found = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0, :-1]
        logits.append(found[wanted != -100])
        labels.append(wanted[wanted != -100])
    return torch.cat(logits), torch.cat(labels)


def moved(model, move, by, pool):
    """`supervised_logits` with the parameters moved."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in move.items():
            named[name] += by * change
        found = supervised_logits(model, pool)
        for name, change in move.items():
            named[name] -= by * change
    return found


def test_slope_and_bend_along_three_directions():
    model = tiny()
    names = ["blocks.0.q.weight", "blocks.0.q.bias", "blocks.1.down.weight", "lm_head.weight"]
    generator = torch.Generator().manual_seed(3)
    named = dict(model.named_parameters())
    moves = [
        {n: torch.randn(named[n].shape, generator=generator, dtype=torch.float64) for n in names}
        for _ in range(3)
    ]
    slope, bend = along(model, SETS, moves)

    expected_slope, expected_bend = np.zeros(3), np.zeros((3, 3))
    for pool in SETS.values():
        z, labels = moved(model, moves[0], 0.0, pool)
        p = z.softmax(-1)
        along_each = []
        for i, move in enumerate(moves):
            (up, _), (down, _) = (moved(model, move, by, pool) for by in (EPSILON, -EPSILON))
            loss_up, loss_down = (torch.nn.functional.cross_entropy(x, labels) for x in (up, down))
            expected_slope[i] += float(loss_up - loss_down) / (2 * EPSILON) / len(SETS)
            along_each.append((up - down) / (2 * EPSILON))
        for i, one in enumerate(along_each):
            for j, other in enumerate(along_each):
                by_position = (p * one * other).sum(-1) - (p * one).sum(-1) * (p * other).sum(-1)
                expected_bend[i, j] += float(by_position.mean()) / len(SETS)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bend, expected_bend, rtol=1e-6, atol=1e-8)


def test_the_step_is_the_least_of_the_quadratic_within_reach():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    weight, share = np.array([0.5, 0.2, 0.3]), np.array([0.45, 0.25, 0.3])
    model = Model(weight, share, rng.normal(size=3), 40 * root @ root.T + np.eye(3))
    # Lagrange: W B W b + W a + y share = 0, share'b = 0
    W = np.diag(weight)
    system = np.block([[W @ model.bend @ W, share[:, None]], [share[None], np.zeros((1, 1))]])
    free = np.linalg.solve(system, np.r_[-W @ model.slope, 0.0])[:3]
    assert np.abs(free).max() < 0.75  # nothing binds
    np.testing.assert_allclose(model.step(3.0), free, atol=1e-5)
    # a steep one goes to its bounds, at an equal budget
    steep = Model(weight, share, np.array([0.0, -100.0, 100.0]), model.bend / 1e4)
    b = steep.step(1.0)
    assert share @ b == pytest.approx(0.0, abs=1e-9)
    assert b[2] == pytest.approx(-0.5)
    assert b[1] > 0.4
    assert steep.change(b) < steep.change(0 * b)
