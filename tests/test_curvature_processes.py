"""Two processes measure what one does: sums over all, shards that do not overlap."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from curvature_helpers import rows, tiny
from hypothesis import given
from hypothesis import strategies as st

from idealmix.curvature import (
    Collector,
    Processes,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.factors import fit_factors


def measured(processes=None):
    """Everything that several processes share, from 6 rows in batches of unequal number."""
    model = tiny()
    collector = Collector(model, select_layers(model), processes=processes)
    batches = make_batches(rows(), 20)
    assert len(batches) % 2  # one process has a batch more
    factors = fit_factors(collector, batches, 3)
    curvature = fit_curvature("ekfac", collector, batches, label_seed=3)
    G = sum_gradient(collector, batches)
    dots = row_dots(collector, batches, {n: m[None] for n, m in G.matrices.items()}, total=True)
    found = {f"A {n}": m for n, m in factors.A.items()} | {f"S {n}": m for n, m in factors.S.items()}
    found |= {f"lambda {n}": m.sum() for n, m in curvature.eigenvalues.items()}
    found |= {f"R {n}": curvature.respond(n, m) for n, m in G.matrices.items()}
    found |= {f"G {n}": m for n, m in dots.gradient.matrices.items()} | {
        f"by {n}": m for n, m in dots.by_layer.items()
    }
    found |= {"dots": dots.dots, "sums": dots.rows.sums, "counts": torch.tensor([G.supervised, G.positions])}
    return found, dots.rows.row_ids


def _work(rank, path, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(measured(Processes.all()), f"{path}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    multiprocessing.spawn(_work, (str(tmp_path), str(tmp_path / "store")), nprocs=2)
    expected, ids = measured()
    for rank in range(2):
        found, other_ids = torch.load(tmp_path / f"{rank}.pt")
        assert other_ids == ids
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-10, msg=key)


@given(st.integers(1, 7), st.integers(0, 40))
def test_shares_are_disjoint_and_whole(size, count):
    items = list(range(count))
    shares = [Processes(rank, size).share(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_put_back_in_order(monkeypatch):
    items = list("abcdefg")
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    monkeypatch.setattr(Processes, "gather", lambda self, value: shares)
    assert Processes(0, 3).whole(shares[0]) == items


def test_one_process_asks_nobody():
    assert Processes.all() == Processes(0, 1)
    assert Processes().gather(5) == [5]
    with pytest.raises(ValueError, match="process group"):
        Processes(0, 2).all_sum(torch.ones(1))
