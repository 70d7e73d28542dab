"""The whole stage and the losses on two processes: the figures of one, half of the work each, and no failure alone."""

from __future__ import annotations

import warnings

import evaluation_helpers
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from influence_helpers import mixture_of, pools_of, settings, tiny
from rounds_helpers import project

import idealmix
from idealmix.curvature import Collector, Processes, make_batches, select_layers
from idealmix.curvature.gauss_newton import GaussNewton
from idealmix.errors import Doubt, IdealmixError
from idealmix.evaluation.generation import generate
from idealmix.evaluation.loss import reference_loss
from idealmix.influence_stage import measure
from idealmix.rounds import models, phases

DOMAINS = pools_of({"math": 9, "code": 6, "chat": 7})
REFERENCES = pools_of({"sums": 5, "talk": 6}, seed=1)
MIXTURE = mixture_of(
    {"math": [f"r{k}" for k in (0, 3, 5, 3, 6, 0, 0)], "code": [f"r{k}" for k in range(6)], "chat": ["r1", "r2", "r4"]}
)  # fmt: skip
ROWS = [
    (f"{name}/{row.id}", row.input_ids, row.labels, 1.0)
    for name, pool in DOMAINS.items()
    for row in map(pool.row, range(6))
]
KINDS = ("ekfac", "kfac", "identity", "woodbury")


def influenced(processes=None):
    """alpha, both errors and losses by every curvature, and how often the model was run."""
    found, model = {}, tiny()
    runs = 0

    def count(*_):
        nonlocal runs
        runs += 1

    model.register_forward_hook(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Doubt)
        for kind in KINDS:
            matrix = measure(
                model, MIXTURE, DOMAINS, REFERENCES, settings(curvature=kind, sample_fraction=0.9), processes=processes
            )  # fmt: skip
            found[kind] = [
                matrix.alpha,
                matrix.se_subsample,
                matrix.se_population,
                list(matrix.losses.values()),
            ]
            if kind == "ekfac":
                found["runs"], found["warnings"] = runs, matrix.warnings
    return found


def gauss_newton(processes=None):
    """H v and a gradient: what the exact response is made of."""
    batches = make_batches(ROWS, 40)
    matrix = GaussNewton(tiny(), batches, processes=processes)
    v = torch.linspace(-1, 1, matrix.size, dtype=torch.float64)
    return [matrix.product(v), matrix.gradient(batches[:3]), torch.tensor(matrix.supervised)]


def losses(processes=None):
    """A set's loss by rows, and what progress was told last."""
    model, pool, told = (
        evaluation_helpers.tiny_model(dtype=torch.float64),
        evaluation_helpers.token_pool(11),
        [],
    )
    found = reference_loss(model, pool, 60, lambda *done: told.append(done), processes)
    return found.row_ids, found.loss_sums, found.counts, told


def answers(processes=None):
    """What a model writes, and how many batches this process let it write."""
    model, tokenizer = evaluation_helpers.tiny_model(seed=3), evaluation_helpers.tiny_tokenizer()
    rows = [
        evaluation_helpers.chat(f"row-{k}", " ".join(f"w{8 + k + j}" for j in range(1 + k % 5)), "w9")
        for k in range(9)
    ]
    told = []
    texts = generate(model, tokenizer, rows, 6, 40, lambda *done: told.append(done), processes)
    return texts, told


def failing(rank):
    """One process's rows fail in its visitor: what each of them says."""
    model = tiny()
    collector = Collector(model, select_layers(model), processes=Processes.all())

    def visit(signal):
        if rank == 1:
            raise IdealmixError("the gradient is not finite", where=f"layer {signal.layer.name}")

    try:
        list(collector.sweep(make_batches(ROWS, 40), visit))
    except IdealmixError as error:
        return str(error)
    return "nothing"


def _work(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    everyone = Processes.all()
    found = influenced(everyone), gauss_newton(everyone), losses(everyone), answers(everyone), failing(rank)
    torch.save(found, path / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found."""
    path = tmp_path_factory.mktemp("both")
    multiprocessing.spawn(_work, (path,), nprocs=2)
    return [torch.load(path / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_matrix_is_that_of_one_process_by_every_curvature(both):
    alone = influenced()
    for found, *_ in both:
        for kind in KINDS:
            for one, other in zip(alone[kind], found[kind], strict=True):
                np.testing.assert_allclose(other, one, rtol=1e-8, err_msg=kind)
        assert found["warnings"] == alone["warnings"]
        # batches are dealt one by one; the layers' check is made by both
        assert found["runs"] <= 0.65 * alone["runs"]


def test_products_of_the_exact_response_are_those_of_one_process(both):
    for _, found, *_ in both:
        for one, other in zip(gauss_newton(), found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


def test_the_losses_are_those_of_one_process(both):
    ids, sums, counts, told = losses()
    total = told[-1][1]
    for _, _, (other_ids, other_sums, other_counts, other_told), *_ in both:
        assert other_ids == ids
        np.testing.assert_allclose(other_sums, sums, rtol=1e-12)
        assert other_counts.tolist() == counts.tolist()
        assert len(other_told) <= len(told) // 2 + 1
        assert all(done <= total == of for done, of in other_told)


def test_the_answers_are_those_of_one_process(both):
    texts, told = answers()
    assert len(set(texts)) > 4
    for *_, (other, other_told), _ in both:
        assert other == texts
        assert len(other_told) <= len(told) // 2 + 1
        assert all(done <= len(texts) for done, _ in other_told)


def test_what_fails_on_one_process_is_told_by_both(both):
    first, second = (failed for *_, failed in both)
    assert first == second
    assert "the gradient is not finite" in first


def test_a_run_asks_all_its_processes(monkeypatch, tmp_path):
    """Not rank 0 alone, as the phases that share nothing: by what influence, losses and answers are given in a run."""
    everyone, asked = Processes(0, 1), []

    def seen(name, real):
        def call(*given, **named):
            asked.append((name, any(each is everyone for each in (*given, *named.values()))))
            return real(*given, **named)

        return call

    monkeypatch.setattr(Processes, "all", lambda: everyone)
    for name, room in {"measure": phases, "reference_loss": models, "written": models}.items():
        monkeypatch.setattr(room, name, seen(name, getattr(room, name)))
    idealmix.run(
        project(
            tmp_path,
            allocation={"rounds": 2, "replicates": 0, "budget": {"unit": "tokens", "size": 700}},
        )
    )
    assert {name for name, _ in asked} == {"measure", "reference_loss", "written"}
    assert all(given for _, given in asked)
