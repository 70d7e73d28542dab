"""Batches made one by one against all at once, for any rows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idealmix.curvature import LazyBatches, make_batches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 40),
    processes=st.integers(1, 3),
)
def test_lazy_batches_are_the_same(lengths: list[int], batch_tokens: int, processes: int) -> None:
    rows = [
        (f"r{i * 7 % 13}-{i}", list(range(i, i + n)), [-100, *range(i + 1, i + n)][:n], 0.5 + i)
        for i, n in enumerate(lengths)
    ]
    read: list[int] = []

    def reader(at: int) -> tuple[list[int], list[int]]:
        read.append(at)
        return rows[at][1], rows[at][2]

    wanted = make_batches(rows, batch_tokens)
    lazy = LazyBatches([r[0] for r in rows], lengths, [r[3] for r in rows], reader, batch_tokens)
    assert (len(lazy), read) == (len(wanted), [])
    for rank in range(processes):
        for one, other in zip(lazy[rank::processes], wanted[rank::processes], strict=True):
            assert (one.row_ids, one.index) == (other.row_ids, other.index)
            for name in ("input_ids", "attention_mask", "labels", "weights"):
                assert torch.equal(getattr(one, name), getattr(other, name))
    assert sorted(read) == list(range(len(rows)))  # each row once
    assert lazy[-1].row_ids == wanted[-1].row_ids
    assert [batch.index for batch in reversed(lazy)] == [batch.index for batch in reversed(wanted)]
