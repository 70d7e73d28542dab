"""The proxy's loop: what a rule is told and what a step trains on, against direct computation row by row."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from influence_helpers import pools_of, tiny

from idealmix.config import Training
from idealmix.methods.doremi import DoReMiRule
from idealmix.methods.online import OnlineResult, Stream, _Loop, _optimiser, train_online

SIZES = {"a": 9, "b": 5, "c": 7}


class Recorded:
    """A rule with fixed weights that keeps what it is told."""

    def __init__(self, measures: Any, weights: list[float], interval: int = 1) -> None:
        self.measures, self.interval, self.weights = measures, interval, np.array(weights)
        self.told: list[tuple[np.ndarray, float]] = []

    def update(self, measured: np.ndarray, rate: float) -> None:
        self.told.append((measured, rate))

    def settings(self) -> dict[str, Any]:
        return {}


def settings(**changed: Any) -> Training:
    return Training(**({"learning_rate": 0.01, "max_grad_norm": 0.0} | changed))


def test_the_optimiser_is_the_trainers() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    given = settings(
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-3},
        adam_epsilon=1e-5,
        warmup_steps=0,
    )
    optimiser, schedule = _optimiser([parameter], given, 4)
    assert optimiser.param_groups[0]["eps"] == 1e-5
    for _ in range(4):
        optimiser.step()
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(1e-3)]


def loop(rule: Any, model: Any, rows: int = 9, **more: Any) -> _Loop:
    pools: Any = pools_of(SIZES)
    return _Loop(
        model,
        pools,
        rule,
        more.pop("settings", settings()),
        rows,
        3,
        more.get("reference"),
        more.get("targets", {}),
    )


def row_losses(model: Any, row: Any) -> torch.Tensor:
    """Nats of one row's supervised tokens, the row alone and without padding."""
    ids = torch.tensor([row.input_ids])
    logp = model(ids, torch.ones_like(ids)).logits[0].log_softmax(-1)
    wanted = [(t - 1, label) for t, label in enumerate(row.labels) if t and label != -100]
    return -torch.stack([logp[t, label] for t, label in wanted])


def mean_loss(model: Any, rows: list[Any]) -> torch.Tensor:
    return torch.cat([row_losses(model, row) for row in rows]).mean()


def gradient(model: Any, rows: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(mean_loss(model, rows), list(model.parameters()))
    return torch.cat([part.flatten() for part in found])


def first_rows(count: int, names: Any = SIZES, pools: Any = None) -> list[list[Any]]:
    """What the loop's streams give first."""
    pools = pools or pools_of(SIZES)
    return [Stream(pools[name], 3).take(count) for name in names]


def grads_of(model: Any) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_excess_loss_and_the_weighted_step() -> None:
    model, reference = tiny(0), tiny(1)
    rule = Recorded("excess_loss", [0.5, 0.2, 0.3])
    rows = first_rows(3)
    value = loop(rule, model, reference=reference).excess_step(0, 0.1)
    excess = [
        torch.cat([(row_losses(model, r) - row_losses(reference, r)).clamp_min(0) for r in each]).mean()
        for each in rows
    ]
    assert rule.told[0][0] == pytest.approx([float(e.detach()) for e in excess], rel=1e-9)
    weighted = sum(w * mean_loss(model, each) for w, each in zip(rule.weights, rows))
    assert value == pytest.approx(float(weighted.detach()), rel=1e-9)
    wanted = sum(w * gradient(model, each) for w, each in zip(rule.weights, rows))
    assert torch.allclose(grads_of(model), wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_alignment_with_reference_sets(clip: float) -> None:
    model = tiny(0)
    pools: Any = pools_of({"q": 6, "r": 6}, seed=5)
    targets = {"q": (pools["q"], 0.25), "r": (pools["r"], 0.75)}
    rule = Recorded("alignment", [0.5, 0.2, 0.3])

    def clipped(g: torch.Tensor) -> torch.Tensor:
        return g * min(1.0, clip / float(g.norm() + 1e-6)) if clip else g

    own = [clipped(gradient(model, each)) for each in first_rows(3)]
    wanted = [
        clipped(gradient(model, each)) for each in first_rows(4, ("q", "r"), pools)
    ]  # 9 rows over 2 sets
    target = 0.25 * wanted[0] + 0.75 * wanted[1]
    loop(rule, model, targets=targets, settings=settings(max_grad_norm=clip)).alignment_step(0, 0.1)
    norm = torch.stack([g.norm() for g in own]).mean() + 1e-6
    assert rule.told[0][0] == pytest.approx([float(g @ target / norm) for g in own], rel=1e-8)
    step = sum(w * g for w, g in zip(rule.weights, own))
    assert torch.allclose(grads_of(model), step, rtol=1e-8, atol=1e-12)


def test_alignment_with_the_other_domains() -> None:
    model, rule = tiny(0), Recorded("alignment", [0.5, 0.2, 0.3])
    own = [gradient(model, each) for each in first_rows(3)]
    loop(rule, model).alignment_step(0, 0.1)
    norm = torch.stack([g.norm() for g in own]).mean() + 1e-6
    others = [float(own[i] @ sum(own[j] for j in range(3) if j != i) / norm) for i in range(3)]
    assert rule.told[0][0] == pytest.approx(others, rel=1e-8)


def test_look_ahead_tries_a_step_and_takes_it_back() -> None:
    model, rule = tiny(0), Recorded("look_ahead", [1.0, 0.0, 0.0], interval=2)
    before = copy.deepcopy(model.state_dict())
    rewards = []
    for each in first_rows(3):
        tried = copy.deepcopy(model)
        losses = [row_losses(tried, row) for row in each]
        parts = torch.autograd.grad(torch.cat(losses).mean(), list(tried.parameters()))
        with torch.no_grad():
            for parameter, part in zip(tried.parameters(), parts):
                parameter -= 0.1 * part
        falls = [
            1 - float((row_losses(tried, row).mean() / old.mean()).detach()) for row, old in zip(each, losses)
        ]
        rewards.append(np.mean(falls))
    proxy = loop(rule, model)
    proxy.look_ahead_step(2, 0.1)
    assert rule.told[0][0] == pytest.approx(rewards, rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # then all nine rows come from the one domain that has weight, after the three that were tried
    rows = Stream(pools_of(SIZES)["a"], 3).take(12)[3:]
    assert torch.allclose(grads_of(model), gradient(model, rows), rtol=1e-8, atol=1e-12)
    proxy.look_ahead_step(3, 0.1)
    assert len(rule.told) == 1  # not an interval's step


def test_a_whole_training_keeps_the_weights_of_every_step_and_is_repeatable() -> None:
    def train() -> OnlineResult:
        pools: Any = pools_of(SIZES)
        rule = DoReMiRule(np.full(3, 1 / 3), eta=5.0, smoothing=0.01)
        return train_online(tiny(0), pools, rule, settings(), steps=4, rows=6, seed=1, reference=tiny(2))

    first, again = train(), train()
    assert first.weights.shape == (4, 3)
    assert np.allclose(first.weights.sum(1), 1)
    assert not np.allclose(
        first.weights[0], 1 / 3
    )  # the first step trains with weights that were measured already
    assert np.array_equal(first.weights, again.weights)
    assert first.trained_tokens == first.forward_tokens > 0  # the reference passes the same tokens forward
    back = OnlineResult.from_json(first.to_json())
    assert np.array_equal(back.weights, first.weights)


def test_a_training_lowers_its_loss() -> None:
    pools: Any = pools_of(SIZES)
    model = tiny(0)
    rows = [pool.row(i) for pool in pools.values() for i in range(len(pool))]
    before = float(mean_loss(model, rows).detach())
    rule = Recorded("look_ahead", [0.4, 0.3, 0.3], interval=1000)
    train_online(
        model, pools, rule, settings(learning_rate=0.02, max_grad_norm=1.0), steps=30, rows=12, seed=0
    )
    assert float(mean_loss(model, rows).detach()) < 0.8 * before
