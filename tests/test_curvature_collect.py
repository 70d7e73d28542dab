"""What the sums must not depend on, what is covered (reuse, ties, checkpointing, bf16), and what errors say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from curvature_helpers import VOCABULARY, Direct, rows, tiny
from family_helpers import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idealmix.curvature import (
    Batch,
    Collector,
    factors,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.factors import fit_factors
from idealmix.curvature.task import CausalTask
from idealmix.errors import IdealmixError, InputError


def close(one, other, tolerance=1e-8):
    assert float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1e-30)


def everything(model, batches, seed=3):
    """A, S, lambda, gradients and dots of each row, by name."""
    collector = Collector(model, select_layers(model))
    measured = fit_factors(collector, batches, seed)
    curvature = fit_curvature("ekfac", collector, batches, label_seed=seed)
    G = sum_gradient(collector, batches)
    dots = row_dots(collector, batches, {n: torch.stack([m, m.sin()]) for n, m in G.matrices.items()})
    found = {f"A {n}": m for n, m in measured.A.items()} | {f"S {n}": m for n, m in measured.S.items()}
    found |= {f"R {n}": curvature.respond(n, m) for n, m in G.matrices.items()}
    found |= {f"G {n}": m for n, m in G.matrices.items()}
    found |= {f"trace {n}": m.sum() for n, m in curvature.eigenvalues.items()}
    found |= {f"dots {row}": value for row, value in zip(dots.rows.row_ids, dots.dots)}
    return found


def same(one, other, tolerance=1e-8):
    assert one.keys() == other.keys()
    for key in one:
        close(one[key], other[key], tolerance)


@settings(max_examples=8, deadline=None)
@given(
    batch_tokens=st.integers(1, 200),
    order=st.permutations(range(6)),
    left=st.booleans(),
    extra=st.integers(0, 5),
)
def test_batching_padding_and_order_change_nothing(batch_tokens, order, left, extra):
    model, data = tiny(), rows()
    expected = everything(model, make_batches(data, 1))
    same(everything(model, make_batches([data[i] for i in order], batch_tokens)), expected)
    # by hand: rows in any order, padded further, on either side, with labels and tokens at the pads
    length = max(len(row[1]) for row in data) + extra
    padded = []
    for i in order:
        name, ids, labels, weight = data[i]
        pads = length - len(ids)
        real = [1] * len(ids)
        ids, labels = list(ids), list(labels)
        if left:
            padded.append(
                (name, [5] * pads + ids, [-100] * pads + [-100] + labels[1:], weight, [0] * pads + real)
            )
        else:
            padded.append((name, ids + [5] * pads, labels + [-100] * pads, weight, real + [0] * pads))
    batch = Batch(
        torch.tensor([row[1] for row in padded]),
        torch.tensor([row[4] for row in padded]),
        torch.tensor([row[2] for row in padded]),
        tuple(row[0] for row in padded),
        torch.tensor([row[3] for row in padded], dtype=torch.float64),
    )
    same(everything(model, [batch]), expected)


def test_weights_are_repetitions():
    model, data = tiny(), rows()
    collector = Collector(model, select_layers(model))
    copies = [(f"{name}", ids, labels, 1.0) for name, ids, labels, weight in data for _ in range(int(weight))]
    one, other = (fit_factors(collector, make_batches(part, 40), 3) for part in (data, copies))
    assert (one.positions, one.supervised) == (other.positions, other.supervised)
    for name in one.A:
        close(one.A[name], other.A[name])
        close(one.S[name], other.S[name])
    first = fit_curvature("ekfac", collector, make_batches(data, 40)).eigenvalues
    second = fit_curvature("ekfac", collector, make_batches(copies, 40)).eigenvalues
    for name in first:
        close(first[name].sum(), second[name].sum())


def test_small_memory_changes_nothing(monkeypatch):
    model, batches = tiny(), make_batches(rows(), 60)
    expected = everything(model, batches)
    monkeypatch.setattr(factors, "HELD", 1)
    monkeypatch.setattr("idealmix.curvature.gradients.HELD", 1)
    same(everything(model, batches), expected)


def test_layers_that_read_one_input_share_a_factor():
    model = tiny()
    collector = Collector(model, select_layers(model))
    found = fit_factors(collector, make_batches(rows(), 40), 3)
    assert found.A["blocks.0.k"] is found.A["blocks.0.v"]
    assert found.A["blocks.0.q"] is not found.A["blocks.0.k"]  # it has a bias, so a column more
    assert found.A["blocks.0.k"] is not found.A["blocks.1.k"]


class Reused(nn.Module):
    """One module called twice, and two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 5)
        self.twice = nn.Linear(5, 5)
        self.left, self.right = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(5, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids, attention_mask, use_cache=False):
        x = self.tokens(input_ids).cumsum(1)
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = x + self.right(torch.tanh(self.left(x)))
        return SimpleNamespace(logits=self.head(x))


def test_reused_modules_and_tied_weights():
    torch.manual_seed(0)
    model, data = Reused().double(), rows()
    layers = select_layers(model)
    assert [layer.name for layer in layers] == ["twice", "left"]  # the tied head is the output head
    collector, batches = Collector(model, layers), make_batches(data, 30)
    direct = Direct(model, data, 3)
    found = fit_factors(collector, batches, 3)
    curvature = fit_curvature("ekfac", collector, batches, label_seed=3)
    gradient = sum_gradient(collector, batches)
    data_direct = Direct(model, data)
    for name in direct.layers:
        close(found.A[name], direct.A[name])
        close(found.S[name], direct.S[name])
        close(curvature.eigenvalues[name].sum(), direct.fisher(name).trace())
        close(gradient.matrices[name], data_direct.total(name))


def checkpointed(reentrant):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        initializer_range=0.5,
        attention_dropout=0.5,
    )
    model = LlamaForCausalLM(config).double().train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def test_gradient_checkpointing(monkeypatch):
    batches = make_batches(rows(), 40)
    expected = everything(checkpointed(None), batches)
    model = checkpointed(False)
    calls = []
    original = model.model.layers[0]._gradient_checkpointing_func
    for layer in model.model.layers:
        layer._gradient_checkpointing_func = lambda *a, **k: (calls.append(1), original(*a, **k))[1]
    same(everything(model, batches), expected)
    assert calls  # it was really on
    assert model.training
    assert model.model.layers[0].self_attn.training
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(IdealmixError, match="does not depend"):
        sum_gradient(Collector(checkpointed(None), select_layers(model)), batches)  # another model's layers
    model = checkpointed(True)
    with pytest.raises(IdealmixError, match="use_reentrant=False"):
        sum_gradient(Collector(model, select_layers(model)), batches)


def test_bf16_models_are_summed_in_float32():
    model = tiny().bfloat16()
    collector = Collector(model, select_layers(model))
    batches = make_batches([(f"r{i}", [1 + i % 9, 2, 3, 4], [-100, 2, 3, 4], 1.0) for i in range(700)], 400)
    found = fit_factors(collector, batches, 0)
    gradient = sum_gradient(collector, batches)
    kept = {layer.name: [] for layer in collector.layers}
    list(
        collector.sweep(
            batches, lambda signal: kept[signal.layer.name].append((signal.a, signal.s)), label_seed=0
        )
    )
    for name, parts in kept.items():
        assert parts[0][0].dtype == torch.bfloat16
        assert found.A[name].dtype == found.S[name].dtype == gradient.matrices[name].dtype == torch.float32
        a = torch.cat([part[0].flatten(0, 1) for part in parts]).double()
        s = torch.cat([part[1].flatten(0, 1) for part in parts]).double()
        close(found.A[name], a.T @ a / found.positions, 1e-5)
        close(found.S[name], s.T @ s / found.supervised, 1e-5)
        # a covariance of float32 sums has no negative eigenvalue beyond its rounding
        values = torch.linalg.eigvalsh(found.A[name].double())
        assert values[0] > -1e-5 * values[-1]
    curvature = fit_curvature("ekfac", collector, batches)
    assert all(bool((v >= 0).all()) for v in curvature.eigenvalues.values())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda m: m.places.weight.data[11].fill_(math.nan),
            r"layer blocks\.0\.q: its input .* batch 0, rows row-\d",
        ),
        (lambda m: m.blocks[1].up.weight.data[0, 0].fill_(math.nan), r"layer blocks\.1\.down: its input"),
        (
            lambda m: m.lm_head.weight.data[0, 0].fill_(math.nan),
            r"loss: the loss is not finite in batch 0, rows ",
        ),
        (
            lambda m: m.blocks[1].down.register_full_backward_pre_hook(lambda _, g: (g[0] * math.inf,)),
            r"layer blocks\.1\.down: the gradient at its output",
        ),
    ],
)
def test_what_is_not_finite_is_named(spoil, says):
    model = tiny()
    spoil(model)
    with pytest.raises(IdealmixError, match=says):
        sum_gradient(Collector(model, select_layers(model)), make_batches(rows(), 1000))


def test_only_the_bad_rows_are_named():
    model, data = tiny(), rows()
    model.tokens.weight.data[VOCABULARY - 1] = math.nan
    data = [(n, [t % (VOCABULARY - 1) for t in ids], labels, w) for n, ids, labels, w in data]
    data[2][1][0] = VOCABULARY - 1
    with pytest.raises(IdealmixError, match=r"rows row-2\b(?!,)"):
        sum_gradient(Collector(model, select_layers(model)), make_batches(data, 1000))


def test_layers_that_never_run_are_named():
    model = tiny()
    model.idle = nn.Linear(3, 3)
    collector = Collector(model.double(), select_layers(model))
    with pytest.raises(IdealmixError, match="no gradient reached 1 selected layers: idle"):
        fit_factors(collector, make_batches(rows(), 40), 0)
    with pytest.raises(IdealmixError, match="does not depend on any selected layer"):
        sum_gradient(Collector(model, select_layers(model, "idle")), make_batches(rows(), 40))


def test_inputs_overwritten_in_place_are_refused_by_name():
    class Overwritten(Reused):
        def forward(self, input_ids, attention_mask, use_cache=False):
            x = self.tokens(input_ids)
            y = self.left(self.twice(x))
            x.mul_(0.5)
            return SimpleNamespace(logits=self.head(y))

    model = Overwritten().double()
    with pytest.raises(IdealmixError, match="layer twice: its input is overwritten"):
        sum_gradient(Collector(model, select_layers(model)), make_batches(rows(), 40))


def test_no_supervised_token_is_an_error():
    model = tiny()
    with pytest.raises(IdealmixError, match="no row has a supervised token"):
        sum_gradient(Collector(model, select_layers(model)), make_batches([("a", [1, 2], [1, -100], 1.0)], 8))


def test_selection():
    model = tiny()
    names = [layer.name for layer in select_layers(model)]
    assert "lm_head" not in names
    assert len(names) == 12
    assert [layer.name for layer in select_layers(model, "down")] == ["blocks.0.down", "blocks.1.down"]
    assert select_layers(model, ["blocks.1.*", "blocks.0.q"])[0].name == "blocks.0.q"
    assert [layer.name for layer in select_layers(model, "lm_head")] == ["lm_head"]
    assert "lm_head" not in [layer.name for layer in select_layers(model, "*")]
    with pytest.raises(InputError, match=r"'dwon' matches no linear layer\n.*down"):
        select_layers(model, ["up", "dwon"])
    with pytest.raises(InputError, match="has no linear layer"):
        select_layers(nn.Embedding(2, 2))
    with pytest.raises(InputError, match="'mlp' matches no layer"):
        select_layers(model, "mlp")
    llama = checkpointed(None)
    assert {layer.name.split(".")[-1] for layer in select_layers(llama, "mlp")} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_lora_adapters_are_the_layers():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(checkpointed(None), LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    layers = select_layers(model.double())
    assert len(layers) == 2 * 14
    assert all("lora_" in layer.name for layer in layers)
    data = rows()
    direct = Direct(model.eval(), data)
    gradient = sum_gradient(Collector(model, layers), make_batches(data, 30))
    for name in direct.layers:
        close(gradient.matrices[name], direct.total(name))
    assert len(select_layers(model, "mlp")) == 2 * 6


def test_batches():
    data = rows(20)
    batches = make_batches(data, 30)
    assert sorted(name for batch in batches for name in batch.row_ids) == sorted(row[0] for row in data)
    assert all(batch.input_ids.numel() <= 30 or len(batch.row_ids) == 1 for batch in batches)
    again = make_batches(reversed(data), 30)
    assert [batch.row_ids for batch in again] == [batch.row_ids for batch in batches]
    assert [batch.index for batch in batches] == list(range(len(batches)))
    for bad, says in [
        (("a", [], [], 1.0), "row a: 0 tokens"),
        (("a", [1], [1, 2], 1.0), "row a"),
        (("a", [1], [1], 0.0), "weight"),
        (("a", [1], [1], math.nan), "weight"),
    ]:
        with pytest.raises(InputError, match=says):
            make_batches([bad], 10)


def test_progress_is_told():
    model, told = tiny(), []
    batches = make_batches(rows(), 30)
    collector = Collector(model, select_layers(model), progress=lambda *what: told.append(what))
    fit_curvature("ekfac", collector, batches)
    assert told == [
        (i + 1, len(batches), d) for d in ("covariances", "eigenvalues") for i in range(len(batches))
    ]


@pytest.mark.parametrize("measured", ["linear", ["q_proj", "lm_head"]])
def test_the_head_is_asked_for_labelled_columns_only_and_nothing_changes(measured, monkeypatch):
    model = build("llama")
    batches = make_batches(rows(), 40)
    asked = []
    model.lm_head.register_forward_pre_hook(lambda module, args: asked.append(args[0].shape[1]))
    found = sum_gradient(Collector(model, select_layers(model, measured)), batches)
    labelled = [int((batch.labels[:, 1:] != -100).any(0).sum()) for batch in batches]
    whole = [batch.input_ids.shape[1] for batch in batches]
    assert labelled != whole
    # the last ones: before them the collector checks itself
    assert asked[-len(batches) :] == (labelled if measured == "linear" else whole)
    monkeypatch.setattr(
        CausalTask, "scores", lambda self, model, batch, where: self.logits(model, batch)[where]
    )
    plain = sum_gradient(Collector(model, select_layers(model, measured)), batches)
    for name, matrix in plain.matrices.items():
        torch.testing.assert_close(found.matrices[name], matrix, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.rows.sums, plain.rows.sums)
