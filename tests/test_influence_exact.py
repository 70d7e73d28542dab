"""``curvature: exact`` through the whole measurement, against the formula with a dense float64 inverse."""

from __future__ import annotations

import numpy as np
import torch
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
