"""The same numbers as two independent packages, where they compute the same thing: kronfluence and curvlinops."""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import rows, tiny
from torch import nn

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
from idealmix.curvature.task import LabelTask


def close(one, other, tolerance=1e-4):
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def test_kronfluence(tmp_path):
    """Padded rows with prompts, empirical Fisher: factors, eigenvalues, and every pair's influence.

    It divides both factors by non-pad positions and eigenvalues by sequences; we divide by supervised tokens.
    """
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    names = ["blocks.0.q", "blocks.0.down", "blocks.1.o"]
    data = rows(repeats=False)
    (batch,) = make_batches(data, 10**6)

    class Padded(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

        def get_attention_mask(self, batch):
            return batch["attention_mask"]

    padded = [
        {"input_ids": i, "attention_mask": m, "labels": label}
        for i, m, label in zip(batch.input_ids, batch.attention_mask, batch.labels)
    ]
    task = Padded()
    analyzer = Analyzer(
        "yardstick",
        prepare_model(tiny(), task),
        task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(tmp_path),
        log_level=50,
    )
    double = torch.float64
    arguments = FactorArguments(
        use_empirical_fisher=True,
        activation_covariance_dtype=double,
        gradient_covariance_dtype=double,
        per_sample_gradient_dtype=double,
        lambda_dtype=double,
    )
    analyzer.fit_all_factors("f", padded, per_device_batch_size=4, factor_args=arguments)
    theirs = analyzer.load_covariance_matrices("f") | analyzer.load_lambda_matrices("f")

    model = tiny()
    collector, batches = Collector(model, select_layers(model, names)), make_batches(data, 40)
    ours = fit_factors(collector, batches, None)
    curvature = fit_curvature("ekfac", collector, batches, label_seed=None, rho=0.1)
    for name in names:
        close(theirs["activation_covariance"][name] / ours.positions, ours.A[name])
        close(theirs["gradient_covariance"][name] / ours.supervised, ours.S[name])
        if name != "blocks.1.o":  # its S has a null space, in which bases may differ; the trace may not
            close(
                theirs["lambda_matrix"][name].sort().values / ours.supervised,
                curvature.eigenvalues[name].sort().values,
            )
        close(theirs["lambda_matrix"][name].sum() / ours.supervised, curvature.eigenvalues[name].sum())
    for name in names:
        # their curvature is ours times T / N; so is the damping that matches
        scale = ours.supervised / len(data)
        score = ScoreArguments(
            damping_factor=curvature.damping[name] * scale,
            score_dtype=double,
            precondition_dtype=double,
            per_sample_gradient_dtype=double,
            compute_per_module_scores=True,
        )
        analyzer.compute_pairwise_scores(
            f"s-{name}", "f", padded, padded, 4, per_device_train_batch_size=4, score_args=score
        )
        expected = row_dots(
            collector,
            [batch],
            {
                name: torch.stack(
                    [curvature.respond(name, _gradient(collector, data, i)[name]) for i in batch.row_ids]
                )
            },
        )
        close(analyzer.load_pairwise_scores(f"s-{name}")[name] * scale, expected.dots.T)


def _gradient(collector, data, row_id):
    return sum_gradient(collector, make_batches([row for row in data if row[0] == row_id], 1)).matrices


class Sequences(nn.Module):
    """Reads vectors, mixes positions, and scores every position."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).cumsum(1))


class ClassesFirst(nn.Module):
    """As torch's cross entropy wants more than two dimensions."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).mT


class LastOnly(ClassesFirst):
    """Their EK-FAC takes one prediction a row."""

    def forward(self, x):
        return self.model(x)[:, -1]


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_curvlinops(kind):
    """The mean loss: the whole matrix, not only its products."""
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = Sequences().double()
    x, y = torch.randn(9, 6, 3, dtype=torch.float64), torch.randint(0, 4, (9, 6))
    make, theirs, targets = {
        "kfac": (curvlinops.KFACLinearOperator, ClassesFirst(model), y),
        "ekfac": (curvlinops.EKFACLinearOperator, LastOnly(model), y[:, -1]),
    }[kind]
    operator = make(
        theirs,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x[:5], targets[:5]), (x[5:], targets[5:])],
        fisher_type="empirical",
        separate_weight_and_bias=False,
    )
    dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)

    if kind == "ekfac":
        y[:, :-1] = -100
    ones = torch.ones(9, 6, dtype=torch.long)
    batch = Batch(x, ones, y, tuple(map(str, range(9))), torch.ones(9, dtype=torch.float64))
    collector = Collector(model, select_layers(model), LabelTask())
    factors = fit_factors(collector, [batch], None)
    curvature = fit_curvature("ekfac", collector, [batch], label_seed=None)

    def ours(name):
        if kind == "kfac":
            return torch.kron(factors.S[name], factors.A[name])
        turn = torch.kron(curvature.bases[name].QS, curvature.bases[name].QA)
        return turn @ torch.diag(curvature.eigenvalues[name].flatten()) @ turn.T

    # they order a layer's parameters as the weight, then the bias; we put the bias in the last column
    place = torch.cat([torch.arange(15).view(5, 3), 15 + torch.arange(5)[:, None]], 1).flatten()
    close(dense[:20, :20][place][:, place], ours("first"))
    close(dense[20:, 20:], ours("second"))
