"""Parts of the reference rows against measuring them alone, and agreement by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from influence_helpers import RowPool, settings, tiny
from test_influence_measure import DOMAINS, MIXTURE, REFERENCES, record

from idealmix.diagnostics.conclusions import Agreement, Conclusions, apart, cosine
from idealmix.diagnostics.reference import halves, of_part, part_size, random_parts
from idealmix.influence_stage import measure_rows

PART = {"sums": np.array([0, 2, 3]), "talk": np.array([1, 4])}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def found(model):
    (stage,) = measure_rows(model, MIXTURE, DOMAINS, REFERENCES, settings(), record=record())
    return stage


def test_a_part_gives_what_measuring_it_alone_gives(model, found):
    part = of_part(found, PART)
    fewer = {}
    for name, pool in REFERENCES.items():
        ids = {found.references[name].ids[place] for place in PART[name]}
        rows = [pool.row(pool.index[i]) for i in pool.ids if i in ids]
        fewer[name] = RowPool(name, [(row.id, row.input_ids, row.labels) for row in rows])
    (alone,) = measure_rows(model, MIXTURE, DOMAINS, fewer, settings(), record=record())
    np.testing.assert_allclose(part.alpha, alone.matrix.alpha, rtol=1e-8)
    np.testing.assert_allclose(part.alpha_drawn, alone.matrix.alpha_drawn, rtol=1e-8)
    # the reference side's error is the part's own too
    np.testing.assert_allclose(part.moments.reference, alone.matrix.moments.reference, rtol=1e-7)
    assert np.isnan(part.alpha_unused[:, 1]).all()
    assert not np.allclose(part.alpha, found.matrix.alpha)


def test_all_rows_are_the_matrix_itself(found):
    whole = of_part(found, {name: np.arange(len(each)) for name, each in found.references.items()})
    np.testing.assert_allclose(whole.alpha, found.matrix.alpha, rtol=1e-8)
    np.testing.assert_allclose(whole.se_population, found.matrix.se_population, rtol=1e-7)


def test_parts_are_of_a_size_seeded_and_differ(found):
    parts = list(random_parts(found, 0.5, 6, seed=3))
    again = list(random_parts(found, 0.5, 6, seed=3))
    for one, other in zip(parts, again, strict=True):
        for name in REFERENCES:
            np.testing.assert_array_equal(one[name], other[name])
            assert len(one[name]) == part_size(len(found.references[name]), 0.5) == 2
    assert len({tuple(part["talk"]) for part in parts}) > 1
    assert part_size(100, 0.001) == 2
    assert part_size(1, 0.5) == 1


def test_halves_lie_on_both_sides_of_the_middle(found):
    low, high = halves(found, lambda each: each.losses)
    for name, each in found.references.items():
        assert each.losses[low[name]].max() <= each.losses[high[name]].min()
        assert sorted([*low[name], *high[name]]) == list(range(len(each)))


def conclusions(**changed) -> Conclusions:
    return Conclusions(
        **{
            "slopes": np.array([3.0, 4.0, np.nan]),
            "signs": np.array([[-1, 1, 0], [1, 0, 0]]),
            "se": np.array([[1.0, 2.0, np.nan], [1.0, 1.0, np.nan]]),
            "moves": {"a": 1, "b": -1, "c": 0},
            "shares": {"a": 0.5, "b": 0.3, "c": 0.2},
        }
        | changed
    )


def test_agreement_by_hand():
    other = conclusions(
        slopes=np.array([4.0, 3.0, 9.0]),
        signs=np.array([[-1, -1, 1], [0, 1, 0]]),
        se=np.array([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0]]),
        moves={"a": 1, "b": -1, "c": 1},
        shares={"a": 0.4, "b": 0.2, "c": 0.4},
    )
    found = Agreement.of(other, conclusions())
    assert found.cosine == pytest.approx(24 / 25)
    assert found.told == pytest.approx(
        1 / 3
    )  # of three told signs one is told too, one is turned, one is not told
    assert found.turned == pytest.approx(1 / 3)
    assert found.apart == pytest.approx(0.2)
    assert found.near == 0
    assert found.se == pytest.approx(2.5)  # of 3, 1, 2, 3
    same = Agreement.of(conclusions(), conclusions())
    assert (same.cosine, same.told, same.turned, same.apart, same.near, same.se) == (1, 1, 0, 0, 1, 1)
    mean = Agreement.mean([found, same])
    assert (mean.near, mean.apart) == (0.5, pytest.approx(0.1))
    beside = conclusions(shares={"a": 0.54, "b": 0.26, "c": 0.2}, moves={"a": 1, "b": -1, "c": -1})
    assert (
        Agreement.of(beside, conclusions()).near == 1
    )  # of the same mixture nearly, whatever the sign of a hair's breadth


def test_what_is_not_defined_is_null_and_left_out_of_means():
    silent = conclusions(signs=np.zeros((2, 3), dtype=np.int64))
    found = Agreement.of(conclusions(), silent)
    assert np.isnan(found.told)
    assert found.to_json()["told"] is None
    assert Agreement.mean([found, Agreement.of(conclusions(), conclusions())]).told == 1
    assert np.isnan(cosine(np.array([np.nan]), np.array([1.0])))
    assert apart({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}) == 1


def test_conclusions_read_a_matrix_and_its_step(found):
    step = SimpleNamespace(
        moves={
            name: SimpleNamespace(before=10, after=after)
            for name, after in (("math", 12), ("code", 10), ("chat", 8))
        }
    )
    one = Conclusions.of(found.matrix, {"sums": 1.0}, step, {"math": 1.0})
    assert one.moves == {"math": 1, "code": 0, "chat": -1}
    np.testing.assert_allclose(one.slopes, found.matrix.alpha[0])
    words = found.matrix.signs()
    assert [[{"helps": -1, "hurts": 1}.get(word, 0) for word in row] for row in words] == one.signs.tolist()
