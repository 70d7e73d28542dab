"""The unrolled response against dense matrix exponentials, and against training again with changed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idealmix.curvature.basis import Basis, Metric
from idealmix.curvature.ekfac import Ekfac
from idealmix.curvature.unrolled import Unrolled

ROWS, COLUMNS, NAME = 3, 4, "layer"
TAUS = 0.3, 1.1, 0.05


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def segment(seed: int, tau: float, plain: bool = False) -> Ekfac:
    """Bases, eigenvalues (one of them zero) and a metric of its own."""
    g = torch.Generator().manual_seed(seed)
    metric = Metric(
        torch.rand(ROWS, generator=g, dtype=torch.float64) + 0.3,
        torch.rand(COLUMNS, generator=g, dtype=torch.float64) + 0.5,
    )
    values = 3 * torch.rand(ROWS, COLUMNS, generator=g, dtype=torch.float64)
    values[0, 1] = 0
    basis = Basis(orthogonal(COLUMNS, g), orthogonal(ROWS, g), None if plain else metric)
    return Ekfac([], {NAME: basis}, {NAME: values}, 1e-3, tau)


def dense(of: Ekfac) -> tuple[Tensor, Tensor]:
    """P and H in full, over the matrix's rows one after the other."""
    basis = of.bases[NAME]
    root = torch.eye(ROWS * COLUMNS, dtype=torch.float64)
    if basis.metric is not None:
        root = torch.diag(torch.outer(basis.metric.r, basis.metric.c).flatten())
    turn = torch.kron(basis.QS, basis.QA)
    scaled = turn @ torch.diag(of.eigenvalues[NAME].flatten()) @ turn.T
    inverse = torch.linalg.inv(root)
    return root @ root, inverse @ scaled @ inverse


def stepped(segments: list[Ekfac], gradients: list[Tensor], parts: int) -> Tensor:
    """What many small preconditioned steps do: d <- d - (tau / parts) P (H d + g), segment after segment."""
    d = torch.zeros(ROWS * COLUMNS, dtype=torch.float64)
    for each, g in zip(segments, gradients):
        P, H = dense(each)
        step = torch.eye(len(P) + 1, dtype=torch.float64)  # of (d, 1)
        step[:-1, :-1] -= each.tau / parts * P @ H
        step[:-1, -1] = -each.tau / parts * P @ g.flatten()
        d = (torch.linalg.matrix_power(step, parts) @ torch.cat([d, d.new_ones(1)]))[:-1]
    return d.view(ROWS, COLUMNS)


@pytest.fixture(params=[False, True], ids=["adamw", "gradient descent"])
def segments(request) -> list[Ekfac]:
    return [segment(seed, tau, request.param) for seed, tau in enumerate(TAUS)]


@pytest.fixture
def gradients() -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    return [torch.randn(ROWS, COLUMNS, generator=g, dtype=torch.float64) for _ in TAUS]


def test_push_is_the_end_of_many_small_steps(segments, gradients):
    found = -Unrolled(segments).push(NAME, gradients)
    near, nearer = (stepped(segments, gradients, parts) for parts in (20_000, 40_000))
    torch.testing.assert_close(
        found, 2 * nearer - near, rtol=1e-6, atol=1e-8
    )  # Richardson: the steps' length leaves


def test_push_is_the_product_of_dense_exponentials(segments, gradients):
    found = Unrolled(segments).push(NAME, gradients)
    total = torch.zeros(ROWS * COLUMNS, dtype=torch.float64)
    for each, g in zip(segments, gradients):
        P, H = dense(each)
        size = len(P)
        # exp of [[-tau P H, tau P], [0, 0]] holds both the decay and the response (Van Loan 1978)
        block = torch.zeros(2 * size, 2 * size, dtype=torch.float64)
        block[:size, :size], block[:size, size:] = -each.tau * P @ H, each.tau * P
        whole = torch.linalg.matrix_exp(block)
        total = whole[:size, :size] @ total + whole[:size, size:] @ g.flatten()
    torch.testing.assert_close(found.flatten(), total, rtol=1e-10, atol=1e-12)


def test_pull_is_the_transpose_of_push(segments, gradients):
    g = torch.Generator().manual_seed(5)
    U = torch.randn(2, ROWS, COLUMNS, generator=g, dtype=torch.float64)
    unrolled = Unrolled(segments)
    pulled = unrolled.pull(NAME, U)
    left = sum((each * gradient).sum((1, 2)) for each, gradient in zip(pulled, gradients))
    torch.testing.assert_close(left, (U * unrolled.push(NAME, gradients)).sum((1, 2)))


def test_a_training_cut_in_equal_pieces_is_the_training():
    whole = segment(3, 0.9)
    pieces = [segment(3, tau) for tau in (0.2, 0.3, 0.4)]
    G = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(Unrolled(pieces).push(NAME, [G] * 3), whole.respond(NAME, G))


def test_the_converged_response_carries_nothing():
    converged = segment(0, 1.0)
    converged.tau = None
    with pytest.raises(ValueError, match="no step sizes"):
        converged.carry(NAME, torch.ones(ROWS, COLUMNS, dtype=torch.float64))
