"""The comparison of curvatures: exact influence against a dense inverse, and the measure itself by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from curvature_helpers import rows, tiny
from test_curvature_exact import Dense

from idealmix.curvature import make_batches
from idealmix.curvature.dense import Written
from idealmix.diagnostics.fidelity import Sets, alpha_cosines, measure_fidelity
from idealmix.errors import IdealmixError

SEEDS = {"first": 0, "second": 1, "third": 2}
WEIGHTS = {"first": 0.5, "second": 0.2, "third": 0.3}


def made(names, offset):
    return {
        name: [(f"{name}-{row[0]}", *row[1:]) for row in rows(6, seed=offset + SEEDS[name])] for name in names
    }


def compared(written: bool):
    model, drawn, acting = tiny(), made(SEEDS, 0), made(SEEDS, 10)
    references = made(["first", "third"], 20)

    def batched(sets):
        return {name: make_batches(data, 40) for name, data in sets.items()}

    sets = Sets(batched(drawn), batched(acting), batched(references), WEIGHTS)
    fidelity = measure_fidelity(
        model,
        sets,
        rho=1.0,
        dampings=(1.0, 10.0),
        label_draws=2,
        all_parameters=True,
        tolerance=1e-7,
        written=written,
    )
    return model, drawn, acting, references, fidelity


@pytest.fixture(scope="module")
def found():
    return compared(written=False)


def test_every_curvature_is_compared_at_every_damping(found):
    fidelity = found[-1]
    kinds = [one.curvature for one in fidelity.approximation]
    assert len(kinds) == 16
    assert kinds[:8] == kinds[8:]
    assert {"identity", "kfac", "ekfac", "ekfac, 2 labels", "ekfac, empirical"} <= set(kinds)
    assert len(fidelity.solved) == 2 * 2 + 2
    assert max(one.residual for one in fidelity.solved) <= 1e-7
    for one in fidelity.approximation:
        assert list(one.cosines) == ["first", "third"]
        assert all(-1 <= value <= 1 + 1e-12 for value in one.cosines.values())
    assert fidelity.to_json()["parameters"]["median"] == fidelity.parameters.median


@pytest.mark.slow
def test_the_written_matrix_gives_what_conjugate_gradients_give(found):
    """Of layers and of all parameters, at every damping; and one system was compared on the way, to 1e-6."""
    written = compared(written=True)[-1]
    blocks = [one for one in written.approximation if one.curvature == "block"]
    assert [one.damping for one in blocks] == [1.0, 10.0]
    assert all(0.9 < cosine < 1 for one in blocks for cosine in one.cosines.values())
    assert len(written.solved) == 1
    assert written.solved[0].residual <= 1e-8
    pairs = zip(
        [*(one for one in written.approximation if one.curvature != "block"), written.parameters],
        [*found[-1].approximation, found[-1].parameters],
        strict=True,
    )
    for one, other in pairs:
        assert one.curvature == other.curvature
        assert list(one.cosines.values()) == pytest.approx(list(other.cosines.values()), abs=1e-6)
        assert list(one.sizes.values()) == pytest.approx(list(other.sizes.values()), rel=1e-5)


@pytest.mark.slow
def test_a_solution_that_differs_from_the_written_one_is_refused(found, monkeypatch):
    monkeypatch.setattr(
        Written, "solve", lambda self, damping, gradients: [{n: 2 * g for n, g in gradients[0].items()}]
    )
    with pytest.raises(IdealmixError, match="away from the written matrix"):
        compared(written=True)


def test_the_identity_is_compared_with_the_dense_inverse(found):
    """Everything of the identity's line computed directly, damping included: of layers one by one, in float64."""
    from idealmix.curvature import Collector, fit_curvature, select_layers
    from idealmix.curvature.exact import parameter_names

    model, drawn, acting, references, fidelity = found
    layers = select_layers(model)
    mixture = Dense(model, [row for data in drawn.values() for row in data])
    names = [name for layer in layers for name in parameter_names(layer)]
    H, _ = mixture.of(names)
    every = [b for data in drawn.values() for b in make_batches(data, 40)]
    guide = fit_curvature("ekfac", Collector(model, layers), every, rho=1.0, label_seed=0)
    damping = torch.cat(
        [
            torch.full((dict(model.named_parameters())[name].numel(),), guide.damping[layer.name]).double()
            for layer in layers
            for name in parameter_names(layer)
        ]
    )

    def gradients(sets):
        return [Dense(model, data).of(names)[1] for data in sets.values()]

    v = list(WEIGHTS.values())
    mixed = sum(w * g for w, g in zip(v, gradients(drawn)))
    changes = torch.stack([w * (g - mixed) for w, g in zip(v, gradients(acting))])
    q = torch.stack(gradients(references))
    exact = -torch.linalg.solve(H + torch.diag(damping), q.T).T @ changes.T
    plain = -q @ changes.T
    one, other = (x - x.mean(1, keepdim=True) for x in (plain, exact))
    expected = (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1)
    line = fidelity.approximation[0]
    assert line.curvature == "identity"
    assert list(line.cosines.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert list(line.sizes.values()) == pytest.approx(
        (one.norm(dim=1) / other.norm(dim=1)).tolist(), rel=1e-5
    )


def test_rows_are_centred_before_they_are_compared():
    one = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    assert alpha_cosines(one, one + 100) == pytest.approx([1.0, 1.0])
    assert alpha_cosines(one, -2 * one) == pytest.approx([-1.0, -1.0])
    assert alpha_cosines(one, np.array([[1.0, -2.0, 1.0], [3.0, 1.0, 5.0]])) == pytest.approx(
        [0.0, 3 / 12**0.5]
    )
    assert np.isnan(alpha_cosines(one, np.ones((2, 3)))).all()


def test_a_case_that_the_dot_of_gradients_solves_is_called_uninformative(found):
    plain = [one.median for one in found[-1].approximation if one.curvature == "identity"]
    assert found[-1].informative == (max(plain) < 0.8)
    assert replace(found[-1], informative=False).to_json()["informative"] is False
