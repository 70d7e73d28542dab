"""Out of memory: fewer rows at once, nothing counted twice, and a row that does not fit is named."""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import rows, tiny
from test_curvature_collect import everything, same
from torch import nn

from idealmix.curvature import Collector, make_batches, row_dots, select_layers, sum_gradient
from idealmix.curvature.memory import ran_out
from idealmix.errors import IdealmixError


class _Fails(torch.autograd.Function):
    """Passes on, and runs out of memory in the backward pass above a number of rows."""

    @staticmethod
    def forward(context, x, most):
        context.most = most
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        if len(gradient) > context.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return gradient, None


class Narrow(nn.Module):
    """A module that fails above a number of rows, in the forward or in the middle of the backward pass."""

    def __init__(self, inner, most, where, error):
        super().__init__()
        self.up, self.most, self.where, self.error, self.failures = inner, most, where, error, 0

    def forward(self, x):
        if len(x) > self.most and self.where == "forward":
            raise self.error
        return _Fails.apply(self.up(x), self.most) if self.where == "backward" else self.up(x)


ON_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")


def narrow(most, where="forward", error=None):
    model = tiny()
    # the upper block's signals are handed out before the backward pass comes here
    model.blocks[0].up = Narrow(model.blocks[0].up, most, where, error or torch.OutOfMemoryError("no"))
    return model


def renamed(found):
    return {key.replace(".up.up", ".up"): value for key, value in found.items()}


@pytest.mark.parametrize(
    ("most", "where", "error"),
    [(2, "forward", None), (1, "forward", ON_CPU), (3, "backward", None), (1, "backward", None)],
)
def test_halved_batches_give_the_same_sums(most, where, error):
    batches = make_batches(rows(), 1000)
    assert len(batches) == 1
    expected = everything(tiny(), batches)
    model = narrow(most, where, error)
    with pytest.warns(
        UserWarning, match=r"memory ran out at 6 rows of \d+ tokens \(batch 0\).*influence\.batch_tokens"
    ):
        same(renamed(everything(model, batches)), expected)


def test_what_was_learnt_is_kept_for_later_batches():
    model, batches = narrow(2), make_batches(rows(20), 60)
    collector = Collector(model, select_layers(model))
    with pytest.warns(UserWarning, match="memory ran out"):
        first = sum_gradient(collector, batches)
    found = row_dots(collector, batches, {n: m[None] for n, m in first.matrices.items()}, total=True)
    plain = tiny()
    direct = row_dots(
        Collector(plain, select_layers(plain)),
        batches,
        {n.replace(".up.up", ".up"): m[None] for n, m in first.matrices.items()},
    )
    by_row = dict(zip(direct.rows.row_ids, direct.dots[:, 0].tolist()))
    assert dict(zip(found.rows.row_ids, found.dots[:, 0].tolist())) == pytest.approx(by_row, rel=1e-8)
    for name, matrix in found.gradient.matrices.items():
        torch.testing.assert_close(matrix, first.matrices[name], rtol=1e-8, atol=1e-10)


def test_a_row_that_does_not_fit_is_named():
    with pytest.raises(IdealmixError, match=r"row row-0 of 5 tokens does not fit(.|\n)*training\.max_length"):
        model = narrow(0)
        sum_gradient(Collector(model, select_layers(model)), make_batches([_row(5)], 8))
    model = narrow(0)
    with (
        pytest.warns(UserWarning, match="memory ran out"),
        pytest.raises(IdealmixError, match=r"row row-\d of \d+ tokens does not fit"),
    ):
        sum_gradient(Collector(model, select_layers(model)), make_batches(rows(), 1000))


def test_memory_that_runs_out_inside_a_sum_is_an_error():
    model = tiny()
    collector = Collector(model, select_layers(model))

    def visit(signal):
        if signal.layer.name == "blocks.0.up":
            raise torch.OutOfMemoryError("no")

    with pytest.raises(IdealmixError, match=r"layer blocks\.0\.up: memory ran out while batch 0 was added"):
        list(collector.sweep(make_batches(rows(), 1000), visit))


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"):
        sum_gradient(
            Collector(model := narrow(2, error=RuntimeError("shapes")), select_layers(model)),
            make_batches(rows(), 1000),
        )
    assert ran_out(MemoryError())
    assert not ran_out(ValueError("not enough memory"))


def _row(length):
    return ("row-0", list(range(1, length + 1)), list(range(1, length + 1)), 1.0)
