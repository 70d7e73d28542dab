"""The plan of consumption: every drawn row, the planned number of times, whoever consumes it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import TinyPool, TinyRow, tiny_mixture, tiny_pools

from idealmix.errors import InputError
from idealmix.training.order import plan_steps


def consumed(plan) -> Counter:
    return Counter((int(domain), int(row)) for step in plan.steps for domain, row in step)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    epochs=st.integers(1, 3),
    repeats=st.integers(1, 2),
    rows=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    processes=st.integers(1, 3),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_every_drawn_row_is_consumed_as_often_as_drawn_times_epochs(
    sizes, epochs, repeats, rows, accumulation, processes, seed, data
):
    pools = tiny_pools({f"d{number}": size for number, size in enumerate(sizes)})
    mixture = tiny_mixture(pools, repeats)
    total = sum(sizes) * repeats * epochs
    steps = data.draw(st.one_of(st.none(), st.integers(1, total)))
    shape = {"micro_batch_rows": rows, "accumulation": accumulation, "processes": processes}
    plan = plan_steps(mixture, pools, seed=seed, epochs=epochs, steps=steps, **shape)
    assert set(consumed(plan).values()) == {repeats * epochs}
    assert sum(consumed(plan).values()) == plan.rows == total
    assert plan.tokens == sum(int(pool.tokens.sum()) for pool in pools.values()) * repeats * epochs
    lengths = [len(step) for step in plan.steps]
    assert max(lengths) - min(lengths) <= 1
    if steps is not None:
        assert len(plan.steps) == steps
    else:
        assert max(lengths) <= rows * accumulation * processes
    # what the processes get is what the steps hold
    shares = [plan.share_of(process) for process in range(processes)]
    for share in shares:
        assert len(share) == len(plan.steps) * plan.micro_batches
        assert all(1 <= len(batch) <= rows for batch in share)
    for number, step in enumerate(plan.steps):
        window = slice(number * plan.micro_batches, (number + 1) * plan.micro_batches)
        got = [slot[:2] for share in shares for batch in share[window] for slot in batch if not slot.filler]
        assert sorted(got) == sorted(map(tuple, step.tolist()))


def test_step_weights_by_hand():
    def row(name, supervised):
        return TinyRow(name, [5] * (supervised + 1), [-100] + [5] * supervised)

    pools = {
        "a": TinyPool("a", [row("a0", 1), row("a1", 1)]),
        "b": TinyPool("b", [row("b0", 9), row("b1", 3)]),
    }
    plan = plan_steps(tiny_mixture(pools), pools, seed=3, epochs=1, micro_batch_rows=2)
    by_step = []
    for step in plan.steps:
        counts = [
            sum(int(pools[name].supervised[r]) for d, r in step if d == i) for i, name in enumerate("ab")
        ]
        by_step.append(counts[0] / sum(counts))
    assert plan.step_weights["a"] == pytest.approx(np.mean(by_step))
    assert plan.token_shares == pytest.approx({"a": 2 / 14, "b": 12 / 14})
    assert sum(plan.step_weights.values()) == pytest.approx(1)
    assert plan.supervised_tokens == 14


def test_steps_do_not_depend_on_who_computes_them():
    pools = tiny_pools({"a": 20, "b": 9})
    one = plan_steps(tiny_mixture(pools), pools, seed=1, epochs=2, micro_batch_rows=8)
    two = plan_steps(tiny_mixture(pools), pools, seed=1, epochs=2, micro_batch_rows=4, processes=2)
    four = plan_steps(tiny_mixture(pools), pools, seed=1, epochs=2, micro_batch_rows=2, accumulation=4)
    assert one.digest(pools) == two.digest(pools) == four.digest(pools)
    other = plan_steps(tiny_mixture(pools), pools, seed=2, epochs=2, micro_batch_rows=8)
    assert other.digest(pools) != one.digest(pools)


def test_mixtures_consume_shared_rows_in_the_same_relative_order():
    pools = tiny_pools({"a": 20, "b": 20})
    small = SimpleNamespace(row_ids={"a": pools["a"].ids, "b": pools["b"].ids[:7]})
    orders = []
    for mixture in (tiny_mixture(pools), small):
        plan = plan_steps(mixture, pools, seed=1, epochs=1, micro_batch_rows=1)
        orders.append([int(step[0, 1]) for step in plan.steps if step[0, 0] == 0])
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


def test_epochs_differ_in_order_and_a_part_of_an_epoch_is_allowed():
    pools = tiny_pools({"a": 10})
    plan = plan_steps(tiny_mixture(pools), pools, seed=0, epochs=2.5, micro_batch_rows=1)
    order = [int(step[0, 1]) for step in plan.steps]
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]


def test_impossible_plans_say_why():
    pools = tiny_pools({"a": 3})
    with pytest.raises(InputError, match="7 optimiser steps"):
        plan_steps(tiny_mixture(pools), pools, seed=0, epochs=1, micro_batch_rows=1, steps=7)
    with pytest.raises(InputError, match="nothing to train on"):
        plan_steps(SimpleNamespace(row_ids={"a": []}), pools, seed=0, epochs=1, micro_batch_rows=1)
    with pytest.raises(InputError, match="'x' of the mixture is not in the pool"):
        plan_steps(SimpleNamespace(row_ids={"a": ["x"]}), pools, seed=0, epochs=1, micro_batch_rows=1)
