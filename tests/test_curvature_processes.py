"""Two processes measure what one does, also inside DDP and FSDP2: sums over all, shards that do not overlap."""

from __future__ import annotations

import warnings

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
from idealmix.errors import Doubt, IdealmixError, InputError


def spd(size):
    """A positive definite matrix, the same for the same size."""
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return root @ root.T


def measured(processes=None, model=None):
    """Everything that several processes share, from 6 rows in batches of unequal number."""
    model = model or tiny()
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
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    return found, dots.rows.row_ids


def _narrow(rank, path):
    from test_curvature_memory import narrow

    model = _sharded(narrow(1))
    collector = Collector(model, select_layers(model), processes=Processes.all())
    try:
        sum_gradient(collector, make_batches(rows(), 1000) * 2)
    except IdealmixError as error:
        (path / f"{rank}.txt").write_text(str(error))


def _dealt(rank, path):
    """Which factors this process decomposed itself, and what it says when the other one cannot decompose one."""
    import idealmix.curvature.basis as basis

    real, own, failing = basis.eigenbasis, [], []

    def seen(matrix, name):
        own.append((name, len(matrix)))
        if name in failing:
            raise IdealmixError("it fails", where=name)
        warnings.warn(f"{name}: a doubt", Doubt, stacklevel=1)
        return real(matrix, name)

    basis.eigenbasis = seen
    for fails in ([], ["layer b, factor S"]):
        failing += fails
        same, sizes = spd(5), {"a": 3, "b": 4, "c": 2}
        A, S = dict.fromkeys(sizes, same), {name: spd(size) for name, size in sizes.items()}
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                bases, spectra = basis.eigenbases(A, S, processes=Processes.all())
        except IdealmixError as error:
            (path / f"failed-{rank}.txt").write_text(str(error))
            continue
        assert not A
        assert not S
        found = {name: (bases[name].QA, bases[name].QS, *spectra[name]) for name in sizes}
        torch.save((own.copy(), found, sorted(str(one.message) for one in told)), path / f"dealt-{rank}.pt")
    basis.eigenbasis = real


def _work(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    for kind in WRAPPINGS:
        torch.save(measured(Processes.all(), WRAPPINGS[kind](tiny())), f"{path}/{kind}-{rank}.pt")
    dist.barrier()
    _dealt(rank, path)
    _narrow(rank, path)
    dist.destroy_process_group()


def _sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def _trained_and_sharded(model):
    """A step before: FSDP keeps what its first passes set up."""
    model = _sharded(model)
    batch = make_batches(rows(), 20)[0]
    model(batch.input_ids, batch.attention_mask).logits.sum().backward()
    model.zero_grad()
    return model


WRAPPINGS = {
    "plain": lambda model: model,
    "ddp": torch.nn.parallel.DistributedDataParallel,
    "fsdp2": _sharded,
    "fsdp2 after a step": _trained_and_sharded,
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes found, in files."""
    path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(_work, (path,), nprocs=2)
    return path


def test_two_processes_agree_with_one(two_processes):
    expected, ids = measured()
    for kind in WRAPPINGS:
        for rank in range(2):
            found, other_ids = torch.load(two_processes / f"{kind}-{rank}.pt")
            assert other_ids == ids
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-10, msg=f"{kind}: {key}")


def test_decompositions_are_dealt_by_cost_and_shared(two_processes):
    (first, found, told), (second, other, told_too) = (
        torch.load(two_processes / f"dealt-{rank}.pt") for rank in range(2)
    )
    # 125 alone against 64 + 27 + 8, and the shared A once
    assert first == [("layer a, factor A", 5)]
    assert sorted(second) == [("layer a, factor S", 3), ("layer b, factor S", 4), ("layer c, factor S", 2)]
    assert told == told_too
    assert len(told) == 4
    for name, size in {"a": 3, "b": 4, "c": 2}.items():
        QA, QS, of_s, of_a = found[name]
        for mine, theirs in zip(found[name], other[name]):
            assert torch.equal(mine, theirs)
        torch.testing.assert_close(QA @ torch.diag(of_a) @ QA.T, spd(5), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(QS @ torch.diag(of_s) @ QS.T, spd(size), rtol=1e-9, atol=1e-9)


def test_a_decomposition_that_fails_on_one_process_ends_all(two_processes):
    for rank in range(2):
        assert (two_processes / f"failed-{rank}.txt").read_text() == "layer b, factor S: it fails"


@given(st.integers(1, 5), st.lists(st.floats(0.1, 100), max_size=30))
def test_nobody_is_dealt_much_more_than_the_others(size, costs):
    owners = Processes(0, size).deal(costs)
    load = [sum(cost for cost, owner in zip(costs, owners) if owner == rank) for rank in range(size)]
    assert len(owners) == len(costs)
    assert max(load) - min(load) <= max(costs, default=0.0) + 1e-9


def test_sharded_models_cannot_cut_batches(two_processes):
    """An error on every process, where one that cut its batch alone would wait for the others for ever."""
    for rank in range(2):
        assert "influence.batch_tokens: batch 0 has to be cut" in (two_processes / f"{rank}.txt").read_text()


def test_the_first_fsdp_is_refused_by_name():
    class FullyShardedDataParallel(torch.nn.Module):
        """By name alone, as the engine knows it: the real one wants an accelerator."""

    model = tiny()
    model.wrapped = FullyShardedDataParallel()
    with pytest.raises(InputError, match="fully_shard"):
        select_layers(model)


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
