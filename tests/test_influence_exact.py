"""``curvature: exact`` through the whole measurement, against the formula with a dense float64 inverse."""

from __future__ import annotations

import numpy as np
import torch
from curvature_helpers import Direct
from influence_helpers import mixture_of, pools_of, settings, tiny
from test_curvature_exact import Dense

from idealmix.curvature import select_layers
from idealmix.curvature.exact import parameter_names
from idealmix.influence_stage import measure


def test_exact_influence_is_the_formula_with_the_dense_inverse():
    model = tiny()
    domains, references = pools_of({"first": 5, "second": 4}), pools_of({"first": 3, "second": 3}, seed=1)
    mixture = mixture_of({"first": ["r0", "r1", "r2", "r2"], "second": ["r0", "r3"]})
    chosen = settings(curvature="exact", damping=0.5)
    matrix = measure(model, mixture, domains, references, chosen)

    rows = {
        name: pool.named(sorted(set(ids)), name, [float(ids.count(i)) for i in sorted(set(ids))])
        for name, pool in domains.items()
        for ids in [mixture.row_ids[name]]
    }
    layers = select_layers(model)
    names = [name for layer in layers for name in parameter_names(layer)]
    H, _ = Dense(model, [row for each in rows.values() for row in each]).of(names)
    damping = torch.cat(
        [
            torch.full(
                (dict(model.named_parameters())[name].numel(),), matrix.facts["damping_absolute"][layer.name]
            ).double()
            for layer in layers
            for name in parameter_names(layer)
        ]
    )
    gbar = {name: Dense(model, each).of(names)[1] for name, each in rows.items()}
    v = matrix.step_weights
    mixed = sum(v[name] * g for name, g in gbar.items())
    expected = [
        [float(-v[i] * x @ (gbar[i] - mixed)) for i in domains]
        for pool in references.values()
        for g in [Dense(model, pool.named(pool.ids, pool.name)).of(names)[1]]
        for x in [torch.linalg.solve(H + torch.diag(damping), g)]
    ]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(matrix.alpha_drawn, expected, atol=2e-3 * scale)
    assert matrix.facts["curvature"] == "exact"
    assert np.isfinite(matrix.se_population).all()


def test_woodbury_through_the_whole_measurement():
    model = tiny()
    domains, references = pools_of({"first": 5, "second": 4}), pools_of({"first": 3, "second": 3}, seed=1)
    mixture = mixture_of({name: pool.ids for name, pool in domains.items()})
    matrix = measure(
        model, mixture, domains, references, settings(curvature="woodbury", fisher="empirical", damping=0.5)
    )

    def gradients(pools):
        return [
            [torch.cat([G[name].flatten() for name in direct.layers]) for G in direct.rows]
            for name, pool in pools.items()
            for direct in [Direct(model, pool.named(pool.ids, name), None)]
        ]

    training = gradients(domains)
    supervised = [float(pool.supervised.sum()) for pool in (*domains.values(), *references.values())]
    each = torch.stack([g for rows in training for g in rows])
    damping = torch.cat(
        [
            torch.full((layer.d_in * layer.d_out,), matrix.facts["damping_absolute"][layer.name])
            for layer in select_layers(model)
        ]
    ).double()
    H = each.T @ each / sum(supervised[:2])
    means = [sum(rows) / count for rows, count in zip([*training, *gradients(references)], supervised)]
    expected = [
        [float(g @ torch.linalg.solve(H + torch.diag(damping), d)) for d in means[:2]] for g in means[2:]
    ]
    np.testing.assert_allclose(matrix.moments.mean[:, :2], expected, rtol=1e-5)


def test_what_measuring_doubts_is_told_in_the_matrix(monkeypatch):
    import warnings

    from idealmix import influence_stage
    from idealmix.errors import Doubt

    original = influence_stage.fit_curvature

    def doubtful(*given, **named):
        warnings.warn("a factor was repeated", Doubt, stacklevel=2)
        warnings.warn("a factor was repeated", Doubt, stacklevel=2)
        return original(*given, **named)

    monkeypatch.setattr(influence_stage, "fit_curvature", doubtful)
    domains = pools_of({"first": 5})
    matrix = measure(
        tiny(), mixture_of({"first": domains["first"].ids}), domains, pools_of({"a": 4}), settings()
    )
    assert matrix.warnings.count("a factor was repeated") == 1
