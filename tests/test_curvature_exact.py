"""Gauss-Newton products and the exact response against a dense float64 matrix, built row by row without padding."""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import rows, tiny
from test_curvature_dense import MODELS, close, llama

from idealmix.curvature import Collector, fit_curvature, make_batches, select_layers, sum_gradient
from idealmix.curvature.dense import DenseExact, Written
from idealmix.curvature.exact import Exact, Solved, conjugate_gradients, constant, parameter_names
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.errors import IdealmixError, InputError

RHO = 0.05


def error(model, tight, loose):
    """transformers' Llama computes its norms in float32, whatever the weights are."""
    return loose if type(model).__name__ == "LlamaForCausalLM" else tight


class Dense:
    """The Gauss-Newton matrix H and the mean gradient g over all parameters, from full Jacobians, and T."""

    def __init__(self, model, data) -> None:
        self.parameters = dict(model.named_parameters())
        size = sum(p.numel() for p in self.parameters.values())
        self.H, self.g, self.T = torch.zeros(size, size).double(), torch.zeros(size).double(), 0.0
        for _, ids, labels, weight in data:
            ids = torch.tensor([ids])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            for t in range(len(labels) - 1):
                if labels[t + 1] == -100:
                    continue
                J, p = self._jacobian(logits[t]), logits[t].detach().softmax(-1)
                self.H += weight * J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
                self.g += weight * J.T @ (p - torch.eye(len(p), dtype=p.dtype)[labels[t + 1]])
                self.T += weight
        self.H, self.g = self.H / self.T, self.g / self.T

    def _jacobian(self, logits):
        wanted = list(self.parameters.values())
        found = torch.autograd.grad(
            logits,
            wanted,
            torch.eye(len(logits), dtype=logits.dtype),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        parts = [p.new_zeros(len(logits), *p.shape) if x is None else x for x, p in zip(found, wanted)]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def of(self, names):
        """H and g over the named parameters, in the order of the names."""
        begin, places = 0, {}
        for name, p in self.parameters.items():
            places[name] = torch.arange(begin, begin + p.numel())
            begin += p.numel()
        chosen = torch.cat([places[name] for name in names])
        return self.H[chosen][:, chosen], self.g[chosen]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    model, data = MODELS[request.param](), rows()
    layers = select_layers(model)
    batches = make_batches(data, 30)
    assert len(batches) > 1
    assert any(not batch.real.all() for batch in batches)
    return model, data, layers, batches, Dense(model, data)


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("every", [False, True], ids=["layers", "all"])
def test_products_and_gradients_are_the_dense_ones(case, every):
    model, _, layers, batches, dense = case
    names = None if every else [name for layer in layers for name in parameter_names(layer)]
    matrix = GaussNewton(model, batches, names)
    H, g = dense.of(matrix.names)
    torch.manual_seed(0)
    v = torch.randn(matrix.size, dtype=torch.float64)
    assert matrix.supervised == dense.T
    assert relative(matrix.product(v), H @ v) < error(model, 1e-12, 1e-6)
    assert relative(matrix.gradient(batches), g) < error(model, 1e-12, 1e-6)
    diagonal, true = matrix.diagonal(40), H.diagonal()
    assert float(diagonal.sum()) == pytest.approx(float(true.sum()), rel=0.2)
    for part, expected in zip(matrix.named(diagonal).values(), matrix.named(true).values()):
        assert float(part.mean()) == pytest.approx(float(expected.mean()), rel=0.5, abs=1e-12)
    assert torch.corrcoef(torch.stack([diagonal, true]))[0, 1] > 0.9


@pytest.mark.parametrize("guide", ["ekfac", "kfac"])
def test_the_response_of_layers_is_the_dense_inverse(case, guide):
    model, data, layers, _, dense = case
    collector, batches = Collector(model, layers), make_batches(data, 1000)
    matrix = GaussNewton(model, batches, [name for layer in layers for name in parameter_names(layer)])
    exact = Exact(matrix, fit_curvature(guide, collector, batches, rho=RHO), error(model, 1e-8, 1e-5))
    H, g = dense.of(matrix.names)
    damping = torch.cat(
        [
            torch.full((p.numel(),), exact.damping[layer.name]).double()
            for layer in layers
            for p in layer.parameters(torch.zeros(layer.d_out, layer.d_in)).values()
        ]
    )
    expected = matrix.named(torch.linalg.solve(H + torch.diag(damping), g))
    found = exact.respond_all(sum_gradient(collector, batches).mean())
    for layer in layers:
        assert relative(found[layer.name], layer.matrix(expected)) < error(model, 1e-6, 1e-2)
    assert exact.solved[0].residual <= error(model, 1e-8, 1e-5)
    assert 1 < exact.solved[0].iterations < 3000


def test_the_written_matrix_answers_for_all_layers_and_for_each_alone():
    model, data = tiny(), rows(3)
    layers, batches, dense = select_layers(model)[1:3], make_batches(data, 30), Dense(model, data)
    names = [name for layer in layers for name in parameter_names(layer)]
    matrix = GaussNewton(model, batches, names)
    damping = {layer.name: 0.01 * (number + 1) for number, layer in enumerate(layers)}
    exact = DenseExact(Written(matrix), layers, damping)
    gradient = sum_gradient(Collector(model, layers), batches).mean()
    together = exact.respond_all(gradient)

    def inverse(of):
        chosen = [name for layer in of for name in parameter_names(layer)]
        H, g = dense.of(chosen)
        shift = [
            torch.full((dense.parameters[name].numel(),), damping[layer.name], dtype=torch.float64)
            for layer in of
            for name in parameter_names(layer)
        ]
        parts = torch.linalg.solve(H + torch.diag(torch.cat(shift)), g).split([len(s) for s in shift])
        named = {n: part.view_as(dense.parameters[n]) for n, part in zip(chosen, parts)}
        return {layer.name: layer.matrix(named) for layer in of}

    coupled = inverse(layers)
    for layer in layers:
        close(together[layer.name], coupled[layer.name])
        alone = exact.respond(layer.name, gradient[layer.name])
        close(alone, inverse([layer])[layer.name])
        assert relative(alone, together[layer.name]) > 0.01  # the layers are coupled


def test_the_response_of_all_parameters_is_the_dense_inverse(case):
    model, data, _, _, dense = case
    batches = make_batches(data, 1000)
    matrix = GaussNewton(model, batches)
    H, g = dense.of(matrix.names)
    floor = float(H.diagonal().mean())
    damping = constant(matrix, {name: floor * (1 + k % 3) for k, name in enumerate(matrix.names)})
    x, solved = conjugate_gradients(
        lambda v: matrix.product(v) + damping * v,
        matrix.gradient(batches),
        lambda v: v / damping,
        tolerance=error(model, 1e-9, 1e-6),
        limit=500,
    )
    assert relative(x, torch.linalg.solve(H + torch.diag(damping), g)) < error(model, 1e-6, 1e-4)
    assert solved.residual <= error(model, 1e-9, 1e-6)


def test_batches_and_padding_change_nothing():
    model, data = tiny(), rows()
    one, other = (GaussNewton(model, make_batches(data, size)) for size in (1, 1000))
    v = torch.ones(one.size, dtype=torch.float64)
    close(one.product(v), other.product(v), 1e-12)


def test_a_layers_parameters_are_its_matrix_turned_back(case):
    model, _, layers, *_ = case
    named = dict(model.named_parameters())
    for layer in layers:
        back = layer.parameters(layer.matrix(named))
        assert list(back) == parameter_names(layer)
        assert all(torch.equal(part, named[name]) for name, part in back.items())


def test_the_model_is_left_as_it_was():
    model = tiny().train()
    model.blocks[0].up.weight.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    matrix = GaussNewton(model, make_batches(rows(), 30))
    matrix.product(torch.ones(matrix.size, dtype=torch.float64))
    matrix.diagonal(1)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
    assert all(module.training for module in model.modules())


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_limit_that_is_too_small_is_an_error():
    matrix = GaussNewton(tiny(), make_batches(rows(), 30))
    g = torch.ones(matrix.size, dtype=torch.float64)
    with pytest.raises(IdealmixError, match=r"residual of .* after 5 iterations, above 1e-06"):
        conjugate_gradients(lambda v: matrix.product(v) + 1e-3 * v, g, lambda v: v, tolerance=1e-6, limit=4)


def test_rounded_products_that_stop_getting_better_are_an_error():
    d = torch.logspace(0, 2, 50, dtype=torch.float64)

    def rounded(v):
        return (d * v).float().double()

    with pytest.raises(IdealmixError, match="stays at a residual of"):
        conjugate_gradients(
            rounded, torch.linspace(1, 2, 50).double() / 3, lambda v: v, tolerance=1e-12, limit=1000
        )


def test_a_map_that_is_not_positive_is_an_error():
    with pytest.raises(IdealmixError, match="without positive curvature"):
        conjugate_gradients(lambda v: -v, torch.ones(3).double(), lambda v: v, tolerance=1e-6, limit=9)


def test_nothing_is_solved_for_a_zero_gradient():
    x, solved = conjugate_gradients(
        lambda v: v, torch.zeros(3).double(), lambda v: v, tolerance=1e-6, limit=9
    )
    assert solved == Solved(0.0, 0)
    assert not x.any()


def test_an_operation_without_tangents_is_named():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    model = tiny()
    model.blocks[1].up.register_forward_hook(lambda module, args, output: Doubled.apply(output))
    matrix = GaussNewton(model, make_batches(rows(), 30))
    with pytest.raises(IdealmixError, match=r"no forward-mode derivative[\s\S]*attn_implementation='eager'"):
        matrix.product(torch.ones(matrix.size, dtype=torch.float64))


def test_a_tied_head_is_refused_by_name():
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    with pytest.raises(InputError, match=r"'lm_head.weight': it is tied to another"):
        GaussNewton(model, make_batches(rows(), 30), ["lm_head.weight"])


def test_rows_without_labels_are_an_error():
    data = [("a", [1, 2, 3], [-100, -100, -100], 1.0)]
    with pytest.raises(IdealmixError, match="no row has a supervised token"):
        GaussNewton(tiny(), make_batches(data, 30))
