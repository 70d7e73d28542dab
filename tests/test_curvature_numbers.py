"""Sampled labels, decompositions that fail, damping, metrics: the small parts, one by one."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idealmix.curvature import Metric, adam_metric, linalg
from idealmix.curvature.basis import eigenbases
from idealmix.curvature.damping import absolute_damping
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.kfac import Kfac
from idealmix.curvature.labels import sample, uniforms
from idealmix.curvature.layers import Layer
from idealmix.curvature.precision import gram
from idealmix.errors import IdealmixError


def layer(d_out, d_in):
    return Layer("x", (nn.Linear(d_in, d_out, bias=False),), d_in, d_out, False)


# --- labels ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**70), st.text(), st.integers(0, 10**6))
def test_uniforms_are_a_function_of_the_key(seed, row, position):
    alone = uniforms(seed, [row], np.array([0]), np.array([position]))
    among = uniforms(seed, ["other", row], np.array([0, 1, 1]), np.array([position, 3, position]))
    assert alone[0] == among[2]
    assert 0 < alone[0] < 1
    assert uniforms(seed + 1, [row], np.array([0]), np.array([position]))[0] != alone[0]
    assert uniforms(seed, [row], np.array([0]), np.array([position + 1]))[0] != alone[0]


def test_uniforms_are_uniform_and_unrelated():
    ids = [f"row-{i}" for i in range(200)]
    grid = uniforms(0, ids, np.repeat(np.arange(200), 500), np.tile(np.arange(500), 200)).reshape(200, 500)
    counts = np.histogram(grid, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 100  # chi^2 with 49 degrees of freedom: p = 2e-5
    other = uniforms(1, ids, np.repeat(np.arange(200), 500), np.tile(np.arange(500), 200)).reshape(200, 500)
    for one, two in [(grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1]), (grid, other)]:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.015


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 1000))
def test_sampling_inverts_the_distribution(count, classes, seed):
    rng = np.random.default_rng(seed)
    logits, u = rng.normal(0, 3, (count, classes)), rng.uniform(1e-12, 1, count)
    chosen = sample(torch.from_numpy(logits), torch.from_numpy(u)).numpy()
    mass = np.exp(logits - logits.max(1, keepdims=True))
    upper = np.cumsum(mass / mass.sum(1, keepdims=True), 1)
    row = np.arange(count)
    assert (upper[row, chosen] > u - 1e-12).all()
    assert (np.where(chosen > 0, upper[row, chosen - 1], 0) <= u + 1e-12).all()


def test_sampled_frequencies_are_the_models():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20000, 4)
    u = uniforms(0, ["a"], np.zeros(20000, int), np.arange(20000))
    share = torch.bincount(sample(logits, torch.from_numpy(u)), minlength=4) / 20000
    torch.testing.assert_close(share, torch.softmax(logits[0], 0), atol=0.015, rtol=0)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_sampling_never_leaves_the_classes(kind):
    logits = torch.zeros(3, 1000, dtype=kind)
    assert sample(logits, torch.tensor([1e-18, 0.5, 1 - 2**-53], dtype=torch.float64)).tolist() == [
        0,
        500,
        999,
    ]
    certain = torch.full((1, 7), -1e4, dtype=kind)
    certain[0, 3] = 0
    assert sample(certain.expand(2, 7), torch.tensor([1e-18, 1 - 2**-53], dtype=torch.float64)).tolist() == [
        3,
        3,
    ]
    assert sample(logits[:0], torch.zeros(0).double()).shape == (0,)


# --- decompositions ----------------------------------------------------------------------------------------------


def spd(size, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(size, size + 3, dtype=torch.float64)
    return x @ x.T


class Failing:
    """A decomposition that fails the first few times."""

    def __init__(self, real, times):
        self.real, self.times, self.seen = real, times, []

    def __call__(self, matrix):
        self.seen.append(matrix)
        if len(self.seen) <= self.times:
            raise torch.linalg.LinAlgError("did not converge")
        return self.real(matrix)


@pytest.mark.parametrize("function", ["eigh", "cholesky"])
def test_decompositions_are_retried(monkeypatch, function):
    ours = {"eigh": linalg.eigenbasis, "cholesky": linalg.cholesky}[function]
    matrix = spd(6).float()
    failing = Failing(getattr(torch.linalg, function), 1)
    monkeypatch.setattr(torch.linalg, function, failing)
    with pytest.warns(UserWarning, match="layer x, factor A: .* repeated in float64 on the CPU"):
        found = ours(matrix, "layer x, factor A")
    assert failing.seen[1].dtype == torch.float64
    root = found if function == "cholesky" else found[1] * found[0].sqrt()
    assert root.dtype == torch.float32
    torch.testing.assert_close(root @ root.T, matrix, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(torch.linalg, function, Failing(failing.real, 3))
    with pytest.warns(UserWarning, match="with jitter 1e-08"):
        ours(matrix, "x")
    monkeypatch.setattr(torch.linalg, function, Failing(failing.real, 99))
    with pytest.raises(IdealmixError, match=r"layer x: the .* fails"):
        ours(matrix, "layer x")
    with pytest.raises(IdealmixError, match="layer x: the factor is not finite"):
        ours(matrix * torch.nan, "layer x")


def test_a_silently_wrong_decomposition_is_retried(monkeypatch):
    real = torch.linalg.eigh
    answers = [SimpleNamespace, real]
    monkeypatch.setattr(
        torch.linalg,
        "eigh",
        lambda m: [v * torch.nan for v in real(m)] if answers.pop(0) is SimpleNamespace else real(m),
    )
    with pytest.warns(UserWarning, match="float64"):
        assert torch.isfinite(linalg.eigenbasis(spd(4), "x")[1]).all()


def test_a_singular_factor_is_no_failure():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, vectors = linalg.eigenbasis(torch.ones(5, 5), "x")
    assert (values >= 0).all()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5), rtol=0, atol=1e-6)


# --- damping -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.floats(1e-8, 10))
def test_damping_is_positive_and_relative(means, rho):
    named = dict(enumerate(means))
    if not any(means):
        with pytest.raises(IdealmixError, match="curvature is zero in every layer"):
            absolute_damping(named, rho)
        return
    found = absolute_damping(named, rho)
    middle = np.median([m for m in means if m > 0])
    for i, mean in enumerate(means):
        assert found[i] == pytest.approx(rho * max(mean, 0.01 * middle))


# --- algebra -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(1e-4, 10), st.floats(1e-3, 100), st.integers(0, 99))
def test_responses_are_symmetric_positive_and_bounded(d_out, d_in, rho, tau, seed):
    A, S = {"x": spd(d_in, seed)}, {"x": spd(d_out, seed + 1)}
    bases, spectra = eigenbases(dict(A), dict(S))
    products = {"x": torch.outer(*spectra["x"])}
    one, two = torch.randn(2, d_out, d_in, dtype=torch.float64)
    layers = [layer(d_out, d_in)]
    damped = Ekfac(layers, bases, products, rho)
    for curvature, bound in [
        (damped, 1 / damped.damping["x"]),
        (Ekfac(layers, bases, products, rho, tau), tau),
        (Kfac(layers, A, S, rho), None),
    ]:
        left, right = (one * curvature.respond("x", two)).sum(), (two * curvature.respond("x", one)).sum()
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)
        own = (one * curvature.respond("x", one)).sum()
        assert own > 0
        if bound is not None:
            assert own <= one.square().sum() * bound * (1 + 1e-9)


def test_more_damping_responds_less():
    bases, spectra = eigenbases({"x": spd(3)}, {"x": spd(2)})
    products = {"x": torch.outer(*spectra["x"])}
    G = torch.ones(2, 3, dtype=torch.float64)
    weak = Ekfac([layer(2, 3)], bases, products, 1e-3)
    norms = [float(weak.with_damping(rho).respond("x", G).norm()) for rho in (1e-3, 1e-1, 10.0)]
    assert norms[0] > norms[1] > norms[2]
    kfac = Kfac([layer(2, 3)], {"x": spd(3)}, {"x": spd(2)}, 1e-3)
    assert kfac.with_damping(10.0).respond("x", G).norm() < kfac.respond("x", G).norm()


def test_finite_response_of_a_dead_direction_is_tau():
    zero = {"x": torch.tensor([[0.0, 1e-30, 2.0]])}
    bases, _ = eigenbases({"x": torch.eye(3)}, {"x": torch.eye(1)})
    found = Ekfac([layer(1, 3)], bases, zero, 1e-3, tau=5.0).response("x")
    torch.testing.assert_close(found, torch.tensor([[5.0, 5.0, (1 - np.exp(-10.0)) / 2]], dtype=found.dtype))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_the_metric_is_exact_where_its_root_has_rank_one(d_out, d_in, seed):
    rng = np.random.default_rng(seed)
    root = torch.from_numpy(np.outer(rng.uniform(0.1, 3, d_out), rng.uniform(0.1, 3, d_in)))
    found = adam_metric(layer(d_out, d_in), {"x.weight": root**-4}, 0.0)
    torch.testing.assert_close(torch.outer(found.r, found.c), root)
    torch.testing.assert_close(found.scale(torch.ones(2, d_out, d_in).double()), root.expand(2, -1, -1))


def test_the_metric_survives_moments_of_zero():
    v = torch.ones(4, 6)
    v[2, 3] = 0  # an element that never had a gradient
    found = adam_metric(layer(4, 6), {"x.weight": v}, 1e-8)
    away = torch.outer(found.r, found.c)[[0, 1, 3]][:, [0, 1, 2, 4, 5]]
    assert (away - 1).abs().max() < 0.5
    assert isinstance(found, Metric)


# --- sums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [1, 128, 129, 300, 1100]
)  # one panel, panels that do not divide it, wider panels
def test_the_sum_by_panels_is_the_whole_sum(size):
    torch.manual_seed(0)
    x, weights = torch.randn(3, 5, size, dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5])
    expected = torch.einsum("bmp,bmq,b->pq", x, x, weights.double())
    torch.testing.assert_close(gram(x, weights), expected, rtol=1e-12, atol=1e-12)
