"""Faults found in the paper's released code, and in others': none is ours, and each check can tell.

Every fault has a check. The check passes on the package as it is; with the fault put in by a patch that lasts for the
test, the same check must fail. A check that stays green under its fault is itself at fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from curvature_helpers import Direct, rows, tiny

from idealmix.curvature import (
    Collector,
    Processes,
    ekfac,
    factors,
    fit_curvature,
    make_batches,
    processes,
    select_layers,
    sum_gradient,
)
from idealmix.curvature.basis import Basis, eigenbases
from idealmix.curvature.factors import EigenvalueSums, FactorSums, fit_eigenvalues, fit_factors
from idealmix.errors import IdealmixError

SEED = 3
RHO = 0.05


@dataclass(frozen=True)
class Fault:
    """A number in the list of faults (docs/method.md), what it is, the check, and the patch that puts it in."""

    number: str
    what: str
    check: Callable[[], None]
    inject: Callable[[pytest.MonkeyPatch], None]


def close(one, other, tolerance=1e-8):
    assert torch.isfinite(one).all()
    assert float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1e-30)


def collector():
    model = tiny()
    return Collector(model, select_layers(model))


def batches():
    made = make_batches(rows(), 40)
    assert any(not batch.real.all() for batch in made)
    return made


def solved(curvature, direct, name, G):
    block = direct.ekfac(name)
    damped = block + curvature.damping[name] * torch.eye(len(block), dtype=block.dtype)
    return torch.linalg.solve(damped, G.flatten()).view_as(G)


# --- 1: divides by the inverse eigenvalues -----------------------------------------------------------------------


def check_it_inverts():
    curvature, direct = fit_curvature("ekfac", collector(), batches(), rho=RHO, label_seed=SEED), _direct()
    for name in direct.layers:
        G = direct.total(name)
        close(curvature.respond(name, G), solved(curvature, direct, name, G))


def multiplies(patch):
    patch.setattr(ekfac.Ekfac, "response", lambda self, name: self.eigenvalues[name] + self.damping[name])


# --- 2: rotates with Q_S W Q_A' ----------------------------------------------------------------------------------


def check_rotation_finds_the_eigenvalues():
    """In the right basis, the squares of the sequences' own gradients add up to lambda."""
    curvature, direct = fit_curvature("ekfac", collector(), batches(), rho=RHO, label_seed=SEED), _direct()
    for name in direct.layers:
        turned = [curvature.rotate(name, G[name]).square() * w for w, G in zip(direct.weights, direct.rows)]
        close(sum(turned) / direct.T, curvature.eigenvalues[name])


def rotates_backwards(patch):
    patch.setattr(Basis, "rotate", lambda self, G: self.QS @ G @ self.QA.T)


# --- 3: squares of batch means -----------------------------------------------------------------------------------


def check_eigenvalues_are_of_sequences():
    found, direct = _eigenvalues(batches()), _direct()
    for name in direct.layers:
        close(found[name].sum(), direct.fisher(name).trace())


def squares_the_batch(patch):
    def squares(self, signal):
        parts = torch.cat([gradients for _, gradients in self._rotated(signal)])
        return parts.mean(0).square() * len(parts)

    patch.setattr(EigenvalueSums, "squares", squares)


def squares_the_tokens(patch):
    def squares(self, signal):
        QA, QS = self.bases[signal.layer.name].into()
        a, s = (signal.a @ QA).square(), (signal.s @ QS).square()
        return torch.einsum("n,nti,ntj->ij", signal.weights, s, a)

    patch.setattr(EigenvalueSums, "squares", squares)


# --- 4: damping is 0 ---------------------------------------------------------------------------------------------


def check_directions_without_data_are_damped():
    """One row leaves most eigenvalues at zero: there the response is 1 / damping, and stays finite."""
    c = collector()
    one = make_batches(rows(1), 40)
    curvature = fit_curvature("ekfac", c, one, rho=RHO, label_seed=SEED)
    direct = Direct(tiny(), rows(1), SEED)
    for name in direct.layers:
        mean = float(direct.fisher(name).diagonal().mean())
        assert curvature.damping[name] >= 0.999 * RHO * mean > 0
        G = torch.ones(direct.layers[name].d_out, direct.layers[name].d_in, dtype=torch.float64)
        response = curvature.respond(name, G)
        assert torch.isfinite(response).all()
        assert float(response.norm()) <= float(G.norm()) / curvature.damping[name] * (1 + 1e-9)


def damps_by_zero(patch):
    patch.setattr(ekfac, "absolute_damping", lambda means, rho, among=None: dict.fromkeys(means, 0.0))


# --- 5: pads counted, and sums divided by batches ----------------------------------------------------------------


def check_factors_are_per_token():
    found, direct = fit_factors(collector(), batches(), SEED), _direct()
    for name in direct.layers:
        close(found.A[name], direct.A[name])
        close(found.S[name], direct.S[name])


def counts_pads(patch):
    patch.setattr(Collector, "real", lambda self, batch: torch.ones_like(batch.real))


def divides_by_batches(patch):
    patch.setattr(factors, "counts", lambda losses, processes: (len(losses), len(losses)))


def divides_by_sequences(patch):
    def counts(losses, processes):
        positions = sum(float(each.weights @ each.positions.double()) for each in losses)
        return positions, sum(float(each.weights.sum()) for each in losses)

    patch.setattr(factors, "counts", counts)


# --- 8: ranks see different shards, nothing is all-reduced -------------------------------------------------------


class Ranks:
    """Stands in for torch.distributed: two threads, each a rank."""

    def __init__(self):
        self._barrier, self._rank = threading.Barrier(2, timeout=60), threading.local()
        self._values = [None, None]

    def exchange(self, value):
        self._values[self._rank.value] = value
        self._barrier.wait()
        every = list(self._values)
        self._barrier.wait()
        return every

    def all_reduce(self, tensor):
        tensor.copy_(sum(self.exchange(tensor.clone())))

    def all_gather_object(self, values, value):
        values[:] = self.exchange(value)

    def run(self, work):
        results = [None, None]

        def one(rank):
            self._rank.value = rank
            try:
                results[rank] = work(Processes(rank, 2))
            except BaseException as error:
                self._barrier.abort()
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


def check_shards_add_up_to_the_whole():
    """Each of two ranks holds the whole mixture's factors, eigenvalues and gradients."""

    models = [tiny(), tiny()]  # here, not in the threads: they share torch's random state

    def work(processes):
        model = models[processes.rank]
        c = Collector(model, select_layers(model), processes=processes)
        made = make_batches(rows(), 20)
        found = fit_factors(c, made, SEED)
        eigenvalues = fit_eigenvalues(c, made, SEED, eigenbases(dict(found.A), dict(found.S))[0])
        return found, eigenvalues, sum_gradient(c, made)

    ranks = Ranks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.dist, "all_reduce", ranks.all_reduce)
        patch.setattr(processes.dist, "all_gather_object", ranks.all_gather_object)
        every = ranks.run(work)
    direct, own = _direct(), Direct(tiny(), rows())
    for found, eigenvalues, gradient in every:
        for name in direct.layers:
            close(found.A[name], direct.A[name])
            close(found.S[name], direct.S[name])
            close(eigenvalues[name].sum(), direct.fisher(name).trace())
            close(gradient.matrices[name], own.total(name))
        assert gradient.supervised == own.T


def keeps_its_shard(patch):
    patch.setattr(Processes, "all_sum", lambda self, tensor: tensor)


def shards_overlap(patch):
    patch.setattr(
        Processes, "share", lambda self, items: list(items[self.rank : self.rank + len(items) // 2])
    )


# --- 9: bf16 sums ------------------------------------------------------------------------------------------------


def check_sums_are_wide():
    """150 bf16 rows, one a batch: the bias column's own covariance is exactly 1."""
    model = tiny().bfloat16()
    c = Collector(model, select_layers(model, ["blocks.0.q", "blocks.0.up"]))
    data = [(f"r{i}", [1 + i % 9, 2, 3], [-100, 2, 3], 1.0) for i in range(150)]
    sums, kept = FactorSums(c.layers), {layer.name: [] for layer in c.layers}

    def keep(signal):
        kept[signal.layer.name].append((signal.a[0], signal.s[0]))

    losses = list(c.sweep(make_batches(data, 3), sums, keep, label_seed=SEED))
    found = sums.total(losses, c.processes)
    for name, parts in kept.items():
        a, s = (torch.cat([part[side] for part in parts]).double() for side in (0, 1))
        assert float(found.A[name][-1, -1]) == pytest.approx(1, abs=1e-6)
        close(found.A[name].double(), a.T @ a / len(a), 1e-5)
        close(found.S[name].double(), s.T @ s / found.supervised, 1e-5)


def sums_in_bf16(patch):
    patch.setattr(FactorSums, "zeros", lambda self, size, like: torch.zeros(size, size, dtype=torch.bfloat16))


# --- of other packages -------------------------------------------------------------------------------------------


def check_prompts_have_no_sampled_loss():
    found, direct = fit_factors(collector(), batches(), SEED), _direct()
    assert found.supervised == direct.T
    for name in direct.layers:
        close(found.S[name], direct.S[name])


def samples_everywhere(patch):
    patch.setattr(Collector, "supervised", lambda self, batch, targets: batch.real)


def check_prompt_positions_are_in_the_factors():
    check_factors_are_per_token()


def masks_prompts(patch):
    patch.setattr(Collector, "real", lambda self, batch: batch.labels != -100)


@cache
def _direct():
    return Direct(tiny(), rows(), SEED)


def _eigenvalues(made):
    c = collector()
    found = fit_factors(c, made, SEED)
    return fit_eigenvalues(c, made, SEED, eigenbases(dict(found.A), dict(found.S))[0])


FAULTS = [
    Fault("1", "multiplies by the eigenvalues", check_it_inverts, multiplies),
    Fault("2", "rotates with Q_S W Q_A'", check_rotation_finds_the_eigenvalues, rotates_backwards),
    Fault("3", "squares batch means", check_eigenvalues_are_of_sequences, squares_the_batch),
    Fault("3b", "squares tokens", check_eigenvalues_are_of_sequences, squares_the_tokens),
    Fault("4", "damping is 0", check_directions_without_data_are_damped, damps_by_zero),
    Fault("5", "pads are summed", check_factors_are_per_token, counts_pads),
    Fault("5b", "divides by batches", check_factors_are_per_token, divides_by_batches),
    Fault("5c", "divides by sequences", check_eigenvalues_are_of_sequences, divides_by_sequences),
    Fault("8", "nothing is all-reduced", check_shards_add_up_to_the_whole, keeps_its_shard),
    Fault("8b", "shards overlap", check_shards_add_up_to_the_whole, shards_overlap),
    Fault("9", "sums in bf16", check_sums_are_wide, sums_in_bf16),
    Fault("other", "samples labels at prompts", check_prompts_have_no_sampled_loss, samples_everywhere),
    Fault("other", "drops prompts from S", check_prompt_positions_are_in_the_factors, masks_prompts),
]

# Faults 6, 7, 10, 11 and 12 concern other rooms: test_faults_rooms.


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}: {fault.what}")
def test_fault(fault, monkeypatch):
    fault.check()
    with monkeypatch.context() as patch:
        fault.inject(patch)
        with pytest.raises((AssertionError, IdealmixError)) as red:
            fault.check()
        # some are found before, where the engine compares its sums with autograd's own
        assert isinstance(red.value, AssertionError) or "their weights' gradient" in str(red.value)
