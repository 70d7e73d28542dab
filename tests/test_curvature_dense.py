"""Factors, eigenvalues, gradients and responses against full matrices in float64, 1e-8."""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import VOCABULARY, Direct, rows, tiny

from idealmix.curvature import (
    Collector,
    adam_metric,
    fit_curvature,
    make_batches,
    row_dots,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.basis import eigenbases
from idealmix.curvature.factors import fit_eigenvalues, fit_factors

RHO = 0.05


def close(one, other, tolerance=1e-8):
    scale = max(float(other.abs().max()), 1e-30)
    assert float((one - other).abs().max()) <= tolerance * scale


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).double()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=6, n_inner=7, n_layer=1, n_head=2, vocab_size=VOCABULARY, n_positions=32, initializer_range=0.5
    )
    return GPT2LMHeadModel(config).double().eval()


MODELS = {"tiny": tiny, "llama": llama, "gpt2": gpt2}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    model, data = MODELS[request.param](), rows()
    collector = Collector(model, select_layers(model))
    batches = make_batches(data, 30)
    assert len(batches) > 1
    assert any(not batch.real.all() for batch in batches)
    return model, data, collector, batches


@pytest.mark.parametrize("label_seed", [None, 3])
def test_factors_and_eigenvalues(case, label_seed):
    model, data, collector, batches = case
    direct = Direct(model, data, label_seed)
    factors = fit_factors(collector, batches, label_seed)
    assert (factors.positions, factors.supervised) == (direct.P, direct.T)
    bases, _ = eigenbases(dict(factors.A), dict(factors.S))
    eigenvalues = fit_eigenvalues(collector, batches, label_seed, bases)
    for name in direct.layers:
        close(factors.A[name], direct.A[name])
        close(factors.S[name], direct.S[name])
        turn = torch.kron(bases[name].QS, bases[name].QA)
        expected = (turn.T @ direct.fisher(name) @ turn).diagonal().view_as(eigenvalues[name])
        close(eigenvalues[name], expected)
        # an orthogonal turn keeps the trace: the block's is the dense Fisher's, at unequal lengths
        close(eigenvalues[name].sum(), direct.fisher(name).trace())


def test_gradients_and_row_dots(case):
    model, data, collector, batches = case
    direct = Direct(model, data)
    torch.manual_seed(1)
    queries = {n: torch.randn(3, layer.d_out, layer.d_in).double() for n, layer in direct.layers.items()}
    summed, dots = sum_gradient(collector, batches), row_dots(collector, batches, queries, total=True)
    for name in direct.layers:
        close(summed.matrices[name], direct.total(name))
        close(dots.gradient.matrices[name], direct.total(name))
        expected = sum(w * (G[name] * queries[name]).sum((1, 2)) for w, G in zip(direct.weights, direct.rows))
        close(dots.by_layer[name], expected)
    assert summed.supervised == direct.T
    order = [int(row_id.split("-")[1]) for row_id in dots.rows.row_ids]
    assert dots.rows.supervised.tolist() == [direct.supervised[i] for i in order]
    close(dots.rows.sums, torch.tensor([direct.losses[i] for i in order], dtype=torch.float64))
    expected = torch.stack(
        [sum((direct.rows[i][n] * queries[n]).sum((1, 2)) for n in direct.layers) for i in order]
    )
    close(dots.dots, expected)
    # one query goes by tokens, several by the row's gradient
    alone = row_dots(collector, batches, {n: q[:1] for n, q in queries.items()})
    close(alone.dots, expected[:, :1])
    assert alone.gradient is None


def damped(mean, means, rho):
    from statistics import median

    return rho * max(mean, 0.01 * median(means))


def test_ekfac_inverts_the_dense_matrix(case):
    model, data, collector, batches = case
    direct = Direct(model, data, 3)
    curvature = fit_curvature("ekfac", collector, batches, rho=RHO, label_seed=3)
    dense = {name: direct.ekfac(name) for name in direct.layers}
    means = {name: float(block.diagonal().mean()) for name, block in dense.items()}
    for name, block in dense.items():
        damping = damped(means[name], means.values(), RHO)
        assert curvature.damping[name] == pytest.approx(damping, rel=1e-9)
        G = direct.total(name)
        expected = torch.linalg.solve(block + damping * eye(len(block)), G.flatten()).view_as(G)
        close(curvature.respond(name, G), expected)
        close(curvature.respond(name, torch.stack([G, 2 * G]))[1], 2 * expected)
        # a sweep of damping fits nothing again
        weaker = curvature.with_damping(10 * RHO).respond(name, G)
        close(weaker, torch.linalg.solve(block + 10 * damping * eye(len(block)), G.flatten()).view_as(G))
        both = curvature.rotate(name, G) * curvature.response(name) * curvature.rotate(name, G)
        close(both.sum(), (G * expected).sum())


def test_kfac_inverts_the_damped_product(case):
    model, data, collector, batches = case
    direct = Direct(model, data, 3)
    curvature = fit_curvature("kfac", collector, batches, rho=RHO, label_seed=3)
    for name in direct.layers:
        A, S, G = direct.A[name], direct.S[name], direct.total(name)
        delta = curvature.damping[name]
        pi = torch.sqrt((A.trace() / len(A)) / (S.trace() / len(S)))
        block = torch.kron(S + delta**0.5 / pi * eye(len(S)), A + pi * delta**0.5 * eye(len(A)))
        expected = torch.linalg.solve(block, G.flatten()).view_as(G)
        close(curvature.respond(name, G), expected)
        close(curvature.respond(name, torch.stack([G, -G]))[1], -expected)
    means = {n: float(direct.A[n].diagonal().mean() * direct.S[n].diagonal().mean()) for n in direct.layers}
    for name, mean in means.items():
        assert curvature.damping[name] == pytest.approx(damped(mean, means.values(), RHO), rel=1e-9)


def integral(block, tau):
    """The integral of exp(-t H) from 0 to tau, by the exponential of a block matrix (Van Loan 1978)."""
    n = len(block)
    joined = torch.zeros(2 * n, 2 * n, dtype=block.dtype)
    joined[:n, :n], joined[:n, n:] = -tau * block, tau * eye(n)
    return torch.linalg.matrix_exp(joined)[:n, n:]


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
@pytest.mark.parametrize("tau", [1e-6, 0.3, 40.0])
def test_finite_response_is_the_flow(case, kind, tau):
    model, data, collector, batches = case
    direct = Direct(model, data, 3)
    curvature = fit_curvature(kind, collector, batches, label_seed=3, tau=tau)
    for name in direct.layers:
        dense = direct.ekfac(name) if kind == "ekfac" else torch.kron(direct.S[name], direct.A[name])
        G = direct.total(name)
        close(curvature.respond(name, G), (integral(dense, tau) @ G.flatten()).view_as(G), 1e-7)


def test_finite_response_between_its_limits(case):
    model, data, collector, batches = case
    direct = Direct(model, data, 3)
    short = fit_curvature("ekfac", collector, batches, label_seed=3, tau=1e-9)
    long = fit_curvature("ekfac", collector, batches, label_seed=3, tau=1e9)
    for name in direct.layers:
        G = direct.total(name)
        close(short.respond(name, G), 1e-9 * G, 1e-6)
        alive = long.eigenvalues[name] > 1e-6
        close(long.response(name)[alive], 1 / long.eigenvalues[name][alive])


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
@pytest.mark.parametrize("tau", [None, 0.5])
def test_adam_metric_is_a_change_of_coordinates(case, kind, tau):
    """Where P^(1/2) has rank one: R = P^(1/2) R(P^(1/2) H P^(1/2)) P^(1/2) with H of scaled tokens."""
    model, data, collector, batches = case
    torch.manual_seed(2)
    layers = collector.layers
    roots = {
        layer.name: torch.outer(
            torch.rand(layer.d_out, dtype=torch.float64) + 0.5,
            torch.rand(layer.d_in, dtype=torch.float64) + 0.5,
        )
        for layer in layers
    }
    eps = 1e-3
    moments = {}
    for layer in layers:
        v = (roots[layer.name] ** -2 - eps) ** 2
        assert bool((roots[layer.name] ** -2 > eps).all())
        weight = v[:, :-1] if layer.bias else v
        moments[f"{layer.name}.weight"] = weight.T if layer.transposed else weight
        if layer.bias:
            moments[f"{layer.name}.bias"] = v[:, -1]
    metrics = {layer.name: adam_metric(layer, moments, eps) for layer in layers}
    curvature = fit_curvature(kind, collector, batches, rho=RHO, label_seed=3, tau=tau, metrics=metrics)
    direct = Direct(model, data, 3)
    for name in direct.layers:
        close(torch.outer(metrics[name].r, metrics[name].c), roots[name])
        G, root = direct.total(name), roots[name].flatten()
        r, c = metrics[name].r, metrics[name].c
        direct.A[name] = direct.A[name] * torch.outer(c, c)
        direct.S[name] = direct.S[name] * torch.outer(r, r)
        for row in direct.rows:
            row[name] = row[name] * roots[name]
        delta = curvature.damping[name]
        A, S = direct.A[name], direct.S[name]
        if tau is not None:
            inverse = integral(direct.ekfac(name) if kind == "ekfac" else torch.kron(S, A), tau)
        elif kind == "ekfac":
            block = direct.ekfac(name)
            inverse = torch.linalg.inv(block + delta * eye(len(block)))
        else:
            pi = torch.sqrt((A.trace() / len(A)) / (S.trace() / len(S)))
            inverse = torch.linalg.inv(
                torch.kron(S + delta**0.5 / pi * eye(len(S)), A + pi * delta**0.5 * eye(len(A)))
            )
        expected = root * (inverse @ (root * G.flatten()))
        close(curvature.respond(name, G), expected.view_as(G), 1e-7)


def test_identity_is_the_dot_product(case):
    _, _, collector, batches = case
    curvature = fit_curvature("identity", collector, batches)
    G = torch.randn(2, 3)
    assert curvature.respond(collector.layers[0].name, G) is G
