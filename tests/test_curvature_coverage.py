"""What is no plain `nn.Linear` called once on (B, L, d): covered with the right numbers, or refused by name."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from curvature_helpers import VOCABULARY, Direct, rows, tiny
from family_helpers import SIZES, autograd, make
from torch import nn
from torch.nn import functional

from idealmix.curvature import (
    Batch,
    Collector,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.factors import fit_factors
from idealmix.errors import IdealmixError, InputError

BATCHES = make_batches(rows(), 40)
MOE = {
    **SIZES,
    "moe_intermediate_size": 12,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
}


def apart(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm())


def same_as_direct(model, batches=BATCHES, spec="linear"):
    """Gradients, factors, traces of lambda and each row's dots, against rows that go through the model alone."""
    collector = Collector(model, select_layers(model, spec))
    gradient = sum_gradient(collector, batches)
    dots = row_dots(collector, batches, {n: m[None] for n, m in gradient.matrices.items()}, total=True)
    direct = Direct(model, rows(), spec=spec)
    factors = fit_factors(collector, batches, None)
    curvature = fit_curvature("ekfac", collector, batches, label_seed=None)
    for name in direct.layers:
        assert apart(gradient.matrices[name], direct.total(name)) < 1e-9, name
        assert apart(dots.gradient.matrices[name], direct.total(name)) < 1e-9, name
        assert apart(factors.A[name], direct.A[name]) < 1e-9, name
        assert apart(factors.S[name], direct.S[name]) < 1e-9, name
        assert apart(curvature.eigenvalues[name].sum(), direct.fisher(name).trace()) < 1e-9, name
    expected = [sum(float((G[n] * gradient.matrices[n]).sum()) for n in direct.layers) for G in direct.rows]
    found = dict(zip(dots.rows.row_ids, dots.dots[:, 0].tolist()))
    assert found == pytest.approx({f"row-{i}": value for i, value in enumerate(expected)}, rel=1e-8)


class Whole(nn.Module):
    """Embeds, mixes positions causally, hands on to `inside`, and predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 6)
        self.first = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, VOCABULARY, bias=False)
        self.build()

    def build(self) -> None:
        pass

    def forward(self, input_ids, attention_mask, use_cache=False):
        x = torch.tanh(self.first(self.tokens(input_ids).cumsum(1)))
        return SimpleNamespace(logits=self.lm_head(x + self.inside(x)))


def whole(kind):
    torch.manual_seed(0)
    model = kind().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


class LinearExperts(Whole):
    """Two of three experts for each token, each a small feed-forward part of nn.Linear, as routed tokens (N, d)."""

    def build(self) -> None:
        self.router = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 7), nn.SiLU(), nn.Linear(7, 6, bias=False)) for _ in range(3)
        )

    def inside(self, x):
        flat = x.reshape(-1, 6)
        shares, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            # slot by slot: the tokens of an expert are not in their order
            slot, token = torch.where((chosen == number).T)
            if len(token):
                out = out.index_add(0, token, expert(flat[token]) * shares[token, slot, None])
        return out.view_as(x)


def test_linear_experts_are_measured_row_by_row():
    with pytest.warns(
        UserWarning, match=r"layer experts\.\d\.0: its input has shape .* every row is measured alone"
    ):
        same_as_direct(whole(LinearExperts))


def test_all_tokens_in_another_order_are_not_taken_for_rows():
    class Shuffled(Whole):
        def build(self) -> None:
            self.moved = nn.Linear(6, 6)

        def inside(self, x):
            flat = x.reshape(-1, 6)
            order = torch.arange(len(flat)).flip(0)
            return self.moved(flat[order])[order].view_as(x)

    with pytest.warns(UserWarning, match="layer moved"):
        same_as_direct(whole(Shuffled))


def test_flattened_positions_in_their_order_are_measured_together():
    class Flat(Whole):
        def build(self) -> None:
            self.up, self.gate, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6, bias=False)

        def inside(self, x):
            flat = x.view(-1, 6)
            return self.down(functional.silu(self.gate(flat)) * self.up(flat)).view_as(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same_as_direct(whole(Flat))


def test_sequence_first_modules_in_square_batches():
    class SequenceFirst(Whole):
        def build(self) -> None:
            self.turned = nn.Linear(6, 6)

        def inside(self, x):
            return self.turned(x.transpose(0, 1)).transpose(0, 1)

    data = rows()
    length = len(data)
    assert length == 6
    ids = torch.zeros(length, length, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    short = []
    for i, (name, tokens, targets, weight) in enumerate(data):
        kept = min(len(tokens), length)
        ids[i, :kept], labels[i, :kept], mask[i, :kept] = (
            torch.tensor(tokens[:kept]),
            torch.tensor(targets[:kept]),
            1,
        )
        short.append((name, tokens[:kept], targets[:kept], weight))
    square = Batch(ids, mask, labels, tuple(r[0] for r in data), torch.tensor([r[3] for r in data]).double())
    model = whole(SequenceFirst)
    with pytest.warns(UserWarning, match="layer turned"):
        dots = row_dots(
            Collector(model, select_layers(model)), [square], {"turned": torch.ones(1, 6, 7).double()}
        )
    direct = Direct(model, short)
    for row, value in zip(dots.rows.row_ids, dots.dots[:, 0].tolist()):
        assert value == pytest.approx(float(direct.rows[int(row[-1])]["turned"].sum()), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_fused_experts_are_left_out_with_a_warning_and_refused_by_name(name):
    model = make(name, **MOE)
    with pytest.warns(
        UserWarning, match=r"mlp\.experts and 1 more is not measured: .*Experts holds all experts in one"
    ):
        layers = select_layers(model)
    assert not any("experts." in layer.name for layer in layers)
    gradient = sum_gradient(Collector(model, layers), BATCHES)
    for layer, expected in autograd(model, layers, BATCHES).items():
        assert apart(gradient.matrices[layer], expected) < 1e-10
    with pytest.raises(
        InputError, match=r"'experts' matches no linear layer; model.layers.0.mlp.experts is not measured"
    ):
        select_layers(model, "experts")
    if name == "Mixtral":
        with pytest.raises(InputError, match=r"'mlp' matches no layer; .*holds all experts"):
            select_layers(model, "mlp")


def test_multihead_attention_uses_a_weight_without_its_module():
    class Attending(Whole):
        def build(self) -> None:
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def inside(self, x):
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.attention(x, x, x, attn_mask=hidden, need_weights=False)[0]

    model = whole(Attending)
    with pytest.warns(UserWarning, match="is not measured") as told:
        assert [layer.name for layer in select_layers(model)] == ["first"]
    assert "attention.out_proj is not measured: nn.MultiheadAttention uses its weight" in str(told[0].message)
    assert "attention is not measured: MultiheadAttention is not nn.Linear" in str(told[1].message)
    with pytest.raises(InputError, match=r"attention\.out_proj is not measured"):
        select_layers(model, "out_proj")


class Beside(Whole):
    """A weight that is used beside its module's call."""

    def build(self) -> None:
        self.used = nn.Linear(6, 6)

    def inside(self, x):
        return self.used(x) + functional.linear(x, self.used.weight.T)


class Instead(Beside):
    """A weight that is used and whose module is never called."""

    def inside(self, x):
        return functional.linear(x, self.used.weight)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 3


class OtherForward(Beside):
    def build(self) -> None:
        self.used = Scaled(6, 6)

    def inside(self, x):
        return self.used(x)


@pytest.mark.parametrize("kind", [Beside, Instead, OtherForward])
def test_other_uses_of_a_weight_are_refused_by_name(kind):
    model = whole(kind)
    with pytest.raises(IdealmixError, match=r"1 selected layers does not make .*: used\n"):
        sum_gradient(Collector(model, select_layers(model)), BATCHES)
    same_as_direct(model, spec="first")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_gradients_that_stood_there_stay():
    model = tiny()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    sum_gradient(Collector(model, select_layers(model)), BATCHES)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


def test_a_layer_under_no_grad_is_refused_by_name():
    class NoGrad(Beside):
        def inside(self, x):
            with torch.no_grad():
                return self.used(x)

    model = whole(NoGrad)
    with pytest.raises(
        IdealmixError, match=r"layer used: it runs without autograd(.|\n)*under torch\.no_grad"
    ):
        sum_gradient(Collector(model, select_layers(model)), BATCHES)


def test_an_idle_layer_has_no_gradient_and_no_curvature():
    class Idle(Beside):
        def inside(self, x):
            return 0 * x

    model = whole(Idle)
    collector = Collector(model, select_layers(model))
    assert not sum_gradient(collector, BATCHES).matrices["used"].any()
    with pytest.raises(IdealmixError, match="no gradient reached 1 selected layers: used"):
        fit_factors(collector, BATCHES, None)


def test_quantised_and_computed_weights_are_left_out_by_name():
    class Packed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 6)
            self.weight = nn.Parameter(torch.zeros(18, 1, dtype=torch.uint8), requires_grad=False)

    model = tiny()
    model.packed, model.normed = Packed(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    with pytest.warns(UserWarning, match="is not measured") as told:
        assert "packed" not in [layer.name for layer in select_layers(model)]
    texts = " ".join(str(one.message) for one in told)
    assert "packed is not measured: its weight is quantised" in texts
    assert "normed is not measured: its weight is computed from other parameters" in texts
    with pytest.raises(InputError, match="packed is not measured: its weight is quantised"):
        select_layers(model, "packed")


def test_a_head_that_is_tied_to_the_embedding_is_refused():
    model = tiny()
    model.lm_head.weight = model.tokens.weight
    with pytest.raises(InputError, match="layer lm_head: it shares its weight with the embedding"):
        select_layers(model, "lm_head")


@pytest.mark.slow
def test_compiled_modules_run_as_they_were_written():
    model = tiny()
    expected = sum_gradient(Collector(model, select_layers(model)), BATCHES).matrices
    around = torch.compile(model, backend="eager")
    inside = tiny()
    inside.blocks[1].compile(backend="eager")
    around(input_ids=BATCHES[0].input_ids, attention_mask=BATCHES[0].attention_mask)
    inside(input_ids=BATCHES[0].input_ids, attention_mask=BATCHES[0].attention_mask)
    for compiled in (around, inside):
        found = sum_gradient(Collector(compiled, select_layers(compiled)), BATCHES).matrices
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], matrix) for name, matrix in expected.items())


def test_pads_that_reach_the_loss_are_refused():
    class Leaking(Whole):
        def inside(self, x):
            return x.mean(1, keepdim=True)

    model = whole(Leaking)
    last = [rows()[0], rows()[4]]
    assert len({len(row[1]) for row in last}) == 2
    with pytest.raises(IdealmixError, match="first"):
        sum_gradient(Collector(model, select_layers(model)), make_batches(last, 100))
