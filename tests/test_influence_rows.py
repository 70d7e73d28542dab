"""The rows behind a stage: they add up to alpha, and several dampings in one stage are several stages."""

from __future__ import annotations

import numpy as np
import pytest
from influence_helpers import settings, tiny
from test_influence_measure import DOMAINS, MIXTURE, REFERENCES, record

from idealmix.errors import InputError
from idealmix.influence_stage import measure, measure_rows


@pytest.fixture(scope="module")
def model():
    return tiny()


def measured(model, **options):
    changed = options.pop("settings", {})
    return measure_rows(model, MIXTURE, DOMAINS, REFERENCES, settings(**changed), record=record(), **options)


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_several_dampings_in_one_stage_are_several_stages(model, kind):
    found = measured(model, dampings=(0.02, 3.0), settings={"curvature": kind})
    for one, rho in zip(found, (0.02, 3.0), strict=True):
        alone = measure(
            model, MIXTURE, DOMAINS, REFERENCES, settings(curvature=kind, damping=rho), record=record()
        )
        np.testing.assert_allclose(one.matrix.alpha, alone.alpha, rtol=1e-10)
        np.testing.assert_allclose(one.matrix.se_population, alone.se_population, rtol=1e-8)
        assert one.matrix.facts["damping"] == rho
        assert one.matrix.facts["damping_absolute"] == pytest.approx(alone.facts["damping_absolute"])
    assert not np.allclose(found[0].matrix.alpha, found[1].matrix.alpha)


def test_the_rows_of_both_sides_give_the_moments(model):
    (found,) = measured(model)
    mean, names = found.matrix.moments.mean, found.matrix.domains
    for half, sets in enumerate((found.drawn, found.unused)):
        for name, each in sets.items():
            rows = each.rows
            sums = rows.weights @ rows.products / (rows.weights @ rows.supervised)
            np.testing.assert_allclose(sums, mean[:, half * len(names) + names.index(name)], rtol=1e-10)
    assert "code" not in found.unused  # its pool is exhausted
    for q, each in enumerate(found.references.values()):
        sums = each.rows.products.sum(0) / each.rows.supervised.sum()
        np.testing.assert_allclose(sums, mean[q], rtol=1e-8, atol=1e-14)
    assert set(found.drawn["math"].ids) == {"r0", "r3", "r5", "r6"}


def test_all_unused_rows_or_as_many_as_were_drawn(model):
    ids = {f"r{i}" for i in range(7)} - {"r0", "r3", "r5", "r6"}
    (found,) = measured(model, all_unused=True)
    assert set(found.unused["math"].ids) == ids


def test_a_curvature_without_damping_cannot_be_swept(model):
    with pytest.raises(InputError, match="several dampings"):
        measured(model, dampings=(0.1, 1.0), settings={"curvature": "identity"})
