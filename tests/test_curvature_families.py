"""transformers' families: the summed gradient is autograd's own, A and S are those of plain hooks.

Grouped-query attention, tied heads, biases, Conv1D, sliding windows; eager and SDPA attention; checkpointing; every
precision. Rows of unequal length, padded.
"""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import rows
from family_helpers import FAMILIES, autograd, build, hooked

from idealmix.curvature import Collector, make_batches, row_dots, select_layers, sum_gradient
from idealmix.curvature.factors import fit_factors

BATCHES = make_batches(rows(), 40)
# transformers has no SDPA attention for Gemma 2
CASES = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if (family, attention) != ("gemma2", "sdpa")
]


def apart(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_sums_are_those_of_autograd_and_plain_hooks(family, attention):
    assert any(not batch.real.all() for batch in BATCHES)
    model = build(family, attention)
    assert model.config._attn_implementation == attention
    layers = select_layers(model)
    collector = Collector(model, layers)
    gradient = sum_gradient(collector, BATCHES)
    for name, expected in autograd(model, layers, BATCHES).items():
        assert apart(gradient.matrices[name], expected) < 1e-10, name
    factors = fit_factors(collector, BATCHES, None)
    for layer in (layers[0], layers[-1]):
        A, S = hooked(model, layer, BATCHES)
        assert apart(factors.A[layer.name], A) < 1e-10
        assert apart(factors.S[layer.name], S) < 1e-10


@pytest.mark.parametrize("family", list(FAMILIES))
def test_checkpointing_and_padding_change_nothing(family):
    attention = "eager" if family == "gemma2" else "sdpa"
    model = build(family, attention)
    collector = Collector(model, select_layers(model))
    plain = sum_gradient(collector, BATCHES)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = sum_gradient(collector, BATCHES)
    alone = sum_gradient(collector, make_batches(rows(), 1))  # no pads
    for name, expected in plain.matrices.items():
        assert apart(again.matrices[name], expected) < 1e-10, name
        assert apart(alone.matrices[name], expected) < 1e-5, (
            name
        )  # transformers' norms round to float32 inside
    queries = {name: matrix[None] for name, matrix in plain.matrices.items()}
    padded, unpadded = (
        row_dots(collector, batches, queries) for batches in (BATCHES, make_batches(rows(), 1))
    )
    padded, unpadded = (dict(zip(found.rows.row_ids, found.dots[:, 0])) for found in (padded, unpadded))
    for row, expected in unpadded.items():
        torch.testing.assert_close(padded[row], expected, rtol=1e-4, atol=1e-4 * max(unpadded.values()))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_precisions(family, dtype, tolerance):
    """Against float64 with the same rounded weights: the model's own rounding is all that is left."""
    attention = "eager" if family == "gemma2" else "sdpa"
    model = build(family, attention, dtype)
    exact = build(family, attention, dtype).double()
    found, expected = (sum_gradient(Collector(m, select_layers(m)), BATCHES).matrices for m in (model, exact))
    assert {matrix.dtype for matrix in found.values()} == {torch.float32}
    whole = sum(float((found[n] - expected[n]).norm() ** 2) for n in expected)
    assert whole < tolerance**2 * sum(float(g.norm() ** 2) for g in expected.values())
