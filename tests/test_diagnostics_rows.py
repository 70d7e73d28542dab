"""Conflict and noise: relations and rows' own influence against the formula computed directly, and known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from curvature_helpers import Direct
from influence_helpers import DirectInfluence, settings, tiny
from test_influence_measure import DOMAINS, MIXTURE, REFERENCES, V, record

from idealmix.certainty import holm, p_value
from idealmix.diagnostics.conflict import likeness, relations
from idealmix.diagnostics.noise import row_influence
from idealmix.influence_rows import Measured, NamedRows
from idealmix.influence_stage import measure_rows
from idealmix.moments import Rows

WEIGHTS = {"sums": 0.7, "talk": 0.3}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def found(model) -> Measured:
    (stage,) = measure_rows(model, MIXTURE, DOMAINS, REFERENCES, settings(), record=record(), all_unused=True)
    return stage


def test_a_rows_influence_is_the_formula_with_full_matrices(model, found):
    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, 0.0)
    rows = row_influence(found, WEIGHTS)["math"]
    references = {name: Direct(model, pool.named(pool.ids, name)) for name, pool in REFERENCES.items()}
    ids = MIXTURE.row_ids["math"]
    trained = sum(DOMAINS["math"].supervised[DOMAINS["math"].index[row]] for row in ids)
    for row in ("r3", "r1"):  # a drawn row, repeated, and an unused one
        alone = Direct(model, DOMAINS["math"].named([row], "math"))
        expected = [
            -V["math"]
            / trained
            * sum(
                float(alone.total(n).flatten() @ R @ (references[q].total(n).flatten() / references[q].T))
                for n, R in direct.R.items()
            )
            for q in REFERENCES
        ]
        place = rows.ids.index(row)
        np.testing.assert_allclose(rows.by_reference[place], expected, rtol=1e-7)
        assert rows.influence[place] == pytest.approx(0.7 * expected[0] + 0.3 * expected[1], rel=1e-7)
    assert {row for row, drawn in zip(rows.ids, rows.drawn) if drawn} == {"r0", "r3", "r5", "r6"}


def test_drawn_rows_with_their_repetitions_add_up_to_alpha(found):
    free = replace(found.matrix, centred=False)
    for i, (name, each) in enumerate(row_influence(found, WEIGHTS).items()):
        times = found.drawn[name].rows.weights
        total = times @ each.by_reference[each.drawn]
        np.testing.assert_allclose(total, free.alpha_drawn[:, i], rtol=1e-10)


def test_the_most_harmful_row_comes_first(found):
    each = row_influence(found, WEIGHTS)["chat"]
    assert (np.diff(each.influence[each.harmful]) <= 0).all()


def test_relations_are_of_free_volume_and_judged_at_both_levels(found):
    pairs = {(r.domain, r.reference): r for r in relations(found.matrix)}
    free = replace(found.matrix, centred=False)
    value, se, dof = free.entries()
    p = np.vectorize(p_value)(value, se, dof)
    family = holm(p)
    for q, reference in enumerate(free.references):
        for i, domain in enumerate(free.domains):
            r = pairs[domain, reference]
            assert (r.value, r.p) == (value[q, i], pytest.approx(p[q, i]))
            told = "helps" if value[q, i] < 0 else "hurts"
            assert r.alone == (told if p[q, i] <= 0.05 else "cannot be told from zero")
            assert r.says == (told if family[q, i] else "cannot be told from zero")
    assert [r.p for r in relations(found.matrix)] == sorted(r.p for r in pairs.values())


def test_a_duplicate_acts_alike_and_the_opposite_acts_opposite(found):
    rng = np.random.default_rng(0)
    effect, other = rng.normal(size=(2, 30))
    tokens = rng.integers(1, 9, 30).astype(float)
    # drawn and unused columns of math, code, chat; code has no unused rows and repeats math's, chat's are the opposite
    columns = tokens[:, None] * np.stack([other, effect, other, effect, 0 * effect, -effect], 1)
    reference = NamedRows(tuple(map(str, range(30))), tokens, Rows(columns, tokens, np.ones(30)))
    alike = likeness(replace(found, references={"sums": reference}))
    np.testing.assert_allclose(alike[[0, 0, 1], [1, 2, 2]], [1, -1, -1], atol=1e-12)
