"""The matrix's algebra by hand, and its errors by Monte Carlo: do the intervals hold what they promise?"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import t as student

from idealmix.errors import InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Moments, Rows

V = {"a": 0.5, "b": 0.2, "c": 0.3}
ROWS = {"drawn": (40, 30, 50), "unused": (35, 0, 25)}  # domain b is exhausted
FRESH = np.array([35 / 40, 0.0, 25 / 50])  # of what doubling would draw
DIMENSIONS = 5


class World:
    """Populations of rows with known mean gradients, and samples of them.

    A row's gradient is its tokens times (its set's mean + the row's own deviation), so rows of many tokens count more
    and the ratio of the expectations is the set's mean.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.R = np.diag(rng.uniform(0.3, 3.0, DIMENSIONS))
        self.sets = rng.normal(size=(2, 3, DIMENSIONS)) + 1.0  # drawn, unused
        self.references = rng.normal(size=(2, DIMENSIONS)) + 1.0

    def rows(self, rng, mean, count):
        tokens = rng.integers(1, 12, count).astype(float)
        return (
            tokens[:, None] * (mean + 0.7 * rng.normal(size=(count, DIMENSIONS))),
            tokens,
            rng.integers(1, 3, count).astype(float),
        )

    def sample(self, rng):
        training = [
            self.rows(rng, self.sets[k, i], n) if n else None
            for k, kind in enumerate(("drawn", "unused"))
            for i, n in enumerate(ROWS[kind])
        ]
        return training, [(*self.rows(rng, mean, 30)[:2], np.ones(30)) for mean in self.references]

    def moments(self, training, references, fractions=None) -> Moments:
        """What `measure` does, with gradients at hand."""
        mean = lambda part: (part[2] @ part[0]) / (part[2] @ part[1])  # noqa: E731
        U = np.array([mean(part) for part in references]) @ self.R
        W = np.array([mean(part) if part else np.zeros(DIMENSIONS) for part in training]) @ self.R
        fractions = fractions or [1.0] * len(training)
        return Moments.of(
            [
                Rows(g @ U.T, t, w, f) if part else None
                for part, f in zip(training, fractions)
                for g, t, w in [part or (0, 0, 0)]
            ],
            [Rows(g @ W.T, t, w) for g, t, w in references],
        )

    def matrix(self, moments: Moments, centred: bool) -> InfluenceMatrix:
        return InfluenceMatrix(
            tuple(V),
            ("p", "q"),
            V,
            centred,
            moments,
            {"only": moments.mean},
            {"p": 1.0, "q": 2.0},
            {"curvature": "ekfac"},
        )

    def truth(self, centred: bool, kind: str) -> np.ndarray:
        v, g = np.array(list(V.values())), self.sets
        mix = v @ g[0]
        fresh = {"drawn": np.zeros(3), "unused": np.ones(3)}.get(kind, FRESH)[:, None]
        own = fresh * g[1] + (1 - fresh) * g[0]
        return -(self.references @ self.R) @ (v[:, None] * (own - centred * mix)).T


WORLD = World()


def draws(count=400, seed=1):
    rng = np.random.default_rng(seed)
    return [WORLD.moments(*WORLD.sample(rng)) for _ in range(count)]


@pytest.fixture(scope="module")
def sampled():
    return draws()


def covered(estimates, truth, level=0.95):
    """Shares of intervals that hold the truth, and mean variance over the variance of the values."""
    value, se, dof = (np.array(part) for part in zip(*estimates))
    half = student.ppf(0.5 + level / 2, dof) * se
    return (np.abs(value - truth) <= half).mean(0), (se**2).mean(0) / value.var(0, ddof=1)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["acting", "drawn"])
def test_population_intervals_hold_what_they_promise(sampled, centred, kind):
    shares, ratio = covered(
        [WORLD.matrix(m, centred).entries(kind) for m in sampled], WORLD.truth(centred, kind)
    )
    # 400 draws: two standard errors of a share of 0.95 are 0.022, of a variance 14%
    assert (shares > 0.92).all()
    assert (shares < 0.99).all()
    assert shares.mean() > 0.935
    assert (np.abs(np.log(ratio)) < 0.25).all()


def test_the_errors_are_centred_too(sampled):
    """Leaving the centring out of the errors would be visibly wrong here."""
    plain = np.mean([WORLD.matrix(m, False).entries("drawn").se for m in sampled], 0)
    centred = np.mean([WORLD.matrix(m, True).entries("drawn").se for m in sampled], 0)
    assert (np.abs(np.log(plain / centred))[:, [0, 2]] > 0.1).all()
    assert (np.abs(np.log(plain / centred))[:, 0] > 0.4).all()


@pytest.mark.parametrize("centred", [True, False])
def test_weighted_rows_know_that_references_share_training_rows(sampled, centred):
    weights = {"p": 0.7, "q": -0.3}
    w = np.array(list(weights.values()))
    found = [WORLD.matrix(m, centred).weighted(weights) for m in sampled]
    shares, ratio = covered(found, w @ WORLD.truth(centred, "acting"))
    assert (shares > 0.92).all()
    assert (np.abs(np.log(ratio)) < 0.25).all()
    naive = np.array([np.sqrt(w**2 @ WORLD.matrix(m, centred).se_population ** 2) for m in sampled])
    assert (np.abs(np.log((naive**2).mean(0) / np.var([f.value for f in found], axis=0))) > 0.1).any()
    for m, estimate in zip(sampled[:5], found):
        covariance = WORLD.matrix(m, centred).covariance()
        np.testing.assert_allclose(np.sqrt(np.einsum("q,iqp,p->i", w, covariance, w)), estimate.se)


def test_memorisation_and_changes_have_their_own_errors(sampled):
    gap = covered([tuple(part[:, [0, 2]] for part in WORLD.matrix(m, True).entries("memorisation")) for m in sampled],
                  (WORLD.truth(True, "unused") - WORLD.truth(True, "drawn"))[:, [0, 2]])  # fmt: skip
    assert (gap[0] > 0.92).all()
    assert (np.abs(np.log(gap[1])) < 0.25).all()
    beta, weights = {"a": 0.3, "b": 0.2, "c": -0.4}, {"p": 1.0, "q": 0.5}
    acting, drawn, w = WORLD.truth(True, "acting"), WORLD.truth(True, "drawn"), np.array([1.0, 0.5])
    truth = w @ (
        acting[:, :2] @ [0.3, 0.2] - 0.4 * drawn[:, 2]
    )  # growth of a mostly on unused rows, of b on repeated ones
    shares, ratio = covered([WORLD.matrix(m, True).change(beta, weights) for m in sampled], truth)
    assert shares > 0.92
    assert abs(np.log(ratio)) < 0.25


def test_subsample_intervals_hold_the_full_measurement():
    rng = np.random.default_rng(5)
    training, references = WORLD.sample(rng)
    whole = WORLD.matrix(WORLD.moments(training, references), True)
    assert np.array_equal(whole.se_subsample, np.zeros((2, 3)))
    found = []
    for _ in range(400):
        chosen, fractions = [], []
        for part in training:
            n = len(part[1]) if part else 0
            keep = rng.permutation(n)[: round(0.6 * n)]
            chosen.append(tuple(each[keep] for each in part) if part else None)
            fractions.append(len(keep) / n if n else 1.0)
        found.append(WORLD.matrix(WORLD.moments(chosen, references, fractions), True).entries(subsample=True))
    shares, ratio = covered(found, whole.alpha)
    # one finite population of 25 to 50 rows, so not exactly 95%; without the factor 1 - f it would be above 0.99
    assert (shares > 0.89).all()
    assert 0.92 < shares.mean() < 0.97
    assert (np.abs(np.log(ratio)) < 0.25).all()


def test_a_single_row_has_no_known_error():
    rng = np.random.default_rng(0)
    training, references = WORLD.sample(rng)
    training[0] = tuple(each[:1] for each in training[0])
    found = WORLD.matrix(WORLD.moments(training, references), True)
    assert np.isinf(found.entries("drawn").se[:, 0]).all()
    assert np.isinf(found.change({"a": 0.1, "b": -0.1}, {"p": 1.0}).se)
    assert found.to_json()["se_population"][0][0] is None
    assert found.to_json()["covariance"][0][0][0] is None
    assert np.isfinite(WORLD.matrix(found.moments, False).entries("acting").se).all()
    training, references = WORLD.sample(rng)
    references[1] = tuple(each[:1] for each in references[1])
    found = WORLD.matrix(WORLD.moments(training, references), True)
    assert np.isfinite(found.se_population[0]).all()
    assert np.isinf(found.se_population[1]).all()
    assert np.isfinite(found.weighted({"p": 1.0}).se).all()
    assert {word for word in found.signs()[1]} == {"cannot be told from zero"}


def test_a_single_row_leaves_the_other_domains_errors_known():
    """Centred, it takes part in all of them: with the scatter of the most scattered set's rows, and it is said."""
    rng = np.random.default_rng(0)
    training, references = WORLD.sample(rng)
    training[0] = tuple(each[:1] for each in training[0])
    found = WORLD.matrix(WORLD.moments(training, references), True)
    for kind in ("drawn", "acting"):
        assert np.isinf(found.entries(kind).se[:, 0]).all()
        assert np.isfinite(found.entries(kind).se[:, 1:]).all()
    assert [word for word, *_ in found.signs()] == ["cannot be told from zero"] * 2
    assert np.isfinite(found.change({"b": 0.1, "c": -0.1}, {"p": 1.0}).se)
    scatter = max(
        (found.moments.rows[s] * found.moments.training[s] for s in range(6)), key=lambda each: each.trace()
    )
    rows = np.where(found.moments.rows == 1, 9.0, found.moments.rows)
    known = InfluenceMatrix.covariance(replace(found, moments=replace(found.moments, rows=rows)))
    lent = (V["a"] * V["c"]) ** 2 * scatter
    np.testing.assert_allclose(found.covariance()[2], known[2] + lent)
    np.testing.assert_allclose(found.entries().se[:, 2] ** 2, np.diag(found.covariance()[2]))
    (text,) = found.warnings
    assert text.startswith(
        "a: a single drawn row was measured, so the errors of its own influence are unknown"
    )
    assert InfluenceMatrix.from_json(json.loads(json.dumps(found.to_json()))).warnings == found.warnings
    # without any set of two rows nothing is known
    alone = [tuple(each[:1] for each in part) if part else None for part in training]
    assert np.isinf(WORLD.matrix(WORLD.moments(alone, references), True).entries("drawn").se).all()


def test_degrees_of_freedom_are_those_of_the_weakest_part(sampled):
    found = WORLD.matrix(sampled[0], False)
    assert (sampled[0].dof[sampled[0].rows.argmax()] < 49).all()  # rows are of unequal length
    assert (found.dof >= sampled[0].dof[sampled[0].dof > 0].min()).all()
    assert (found.dof <= sampled[0].dof.sum()).all()


def test_rows_of_equal_length_give_the_delta_methods_error_and_rows_less_one():
    x = np.random.default_rng(0).normal(size=(12, 2))
    moments = Moments.of(
        [Rows(x, np.full(12, 3.0), np.ones(12))], [Rows(x[:, :1], np.full(12, 3.0), np.ones(12))] * 2
    )
    np.testing.assert_allclose(moments.training[0], np.cov(x.T) / 12 / 9)
    np.testing.assert_allclose(moments.dof, 11)


def test_rows_of_very_unequal_length_keep_the_promise():
    """Twelve rows of which a few hold most tokens: the delta method's intervals would hold 87% here."""
    rng, held = np.random.default_rng(4), 0
    one = [Rows(np.ones((12, 1)), np.ones(12), np.ones(12))]
    for _ in range(1500):
        tokens = np.exp(rng.normal(size=12))
        rows = Rows((tokens * rng.normal(size=12))[:, None], tokens, np.ones(12))
        found = Moments.of([rows], one).combine(np.ones(1), np.ones((1, 1)))
        held += abs(found.value[0]) <= student.ppf(0.975, found.dof[0]) * found.se[0]
    assert 0.935 < held / 1500 < 0.975


# --- by hand -------------------------------------------------------------------------------------------------


def hand(centred=True, **changed) -> InfluenceMatrix:
    """Two domains, one reference; only the means matter."""
    mean = np.array([[2.0, -1.0, 4.0, 0.0]])  # drawn x, drawn y, unused x, unused y (none)
    zero = np.zeros
    moments = Moments(
        mean,
        zero((4, 1, 1)),
        zero((1, 4, 4)),
        np.array([9.0, 9.0, 9.0, 0.0]),
        np.ones(4),
        np.array([9.0]),
        np.full(5, 8.0),
    )
    facts = {"curvature": "ekfac", "tokens": {"drawn": {"x": 5}}} | changed
    return InfluenceMatrix(
        ("x", "y"), ("r",), {"x": 0.75, "y": 0.25}, centred, moments, {"l": mean}, {"r": 1.5}, facts, ("so",)
    )


def test_alpha_by_hand():
    # gbar_mix . U = 0.75 * 2 - 0.25 * 1 = 1.25
    np.testing.assert_allclose(hand().alpha_drawn, [[-0.75 * (2 - 1.25), -0.25 * (-1 - 1.25)]])
    np.testing.assert_allclose(hand().alpha, [[-0.75 * (4 - 1.25), -0.25 * (-1 - 1.25)]])
    np.testing.assert_allclose(hand(False).alpha, [[-0.75 * 4, 0.25]])
    np.testing.assert_allclose(hand().memorisation, [[-0.75 * 2, np.nan]])
    # the same mixture at another total changes nothing: beta equal for all is no change of a normalised objective
    np.testing.assert_allclose(hand().alpha_drawn.sum(), 0, atol=1e-15)
    assert hand().change({"x": 0.1, "y": -0.1}, {"r": 2.0}).value == pytest.approx(
        2 * (0.1 * -0.75 * 2.75 - 0.1 * 0.5625)
    )
    assert hand().change({"x": -0.1}, {"r": 1.0}).value == pytest.approx(0.1 * 0.75 * 0.75)


def test_signs_in_words():
    found = hand()
    assert found.signs() == [["helps", "hurts"]]  # negative: more of it lowers the loss
    text = str(found)
    assert "x" in text
    assert "-2.06 ± 0 helps" in text
    assert "+0.562 ± 0 hurts" in text
    assert "negative = more of the domain lowers the loss" in text


def test_signs_hold_the_family_wise_level():
    """Noise only: a sign is claimed in at most about 5% of matrices."""
    rng, claimed = np.random.default_rng(2), 0
    world = World(3)
    world.sets, world.references = np.zeros_like(world.sets), np.ones_like(world.references)
    for _ in range(200):
        words = world.matrix(world.moments(*world.sample(rng)), True).signs()
        claimed += any(word in ("helps", "hurts") for row in words for word in row)
    assert claimed / 200 < 0.09


def test_interval_is_students(sampled):
    found = WORLD.matrix(sampled[0], True)
    low, high = found.interval("q", "c", 0.9)
    assert (low + high) / 2 == pytest.approx(found.alpha[1, 2])
    assert high - low == pytest.approx(2 * student.ppf(0.95, found.dof[1, 2]) * found.se_population[1, 2])
    assert found.interval(1, 2, 0.9) == (low, high)


def test_unknown_weights_are_refused():
    with pytest.raises(InputError, match="'s'"):
        hand().weighted({"s": 1.0})


def test_json_round_trip_is_exact(sampled, tmp_path):
    for found in (hand(), WORLD.matrix(sampled[0], True)):
        found.write(tmp_path / "influence.json")
        again = InfluenceMatrix.read(tmp_path / "influence.json")
        assert again.to_json() == found.to_json()
        assert again.facts == found.facts
        for one, other in zip(again.entries(), found.entries()):
            np.testing.assert_array_equal(one, other)
    written = json.loads((tmp_path / "influence.json").read_text())
    assert written["alpha_unused"][0][1] is None
    assert np.array(written["covariance"]).shape == (3, 2, 2)
    assert [part["name"] for part in written["layers"]] == ["only"]
    assert np.array(written["layers"][0]["alpha"]).shape == (2, 3)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"domains": 3}', '{"domains": []}'])
def test_something_else_is_refused(tmp_path, content):
    (tmp_path / "influence.json").write_text(content)
    with pytest.raises(InputError, match="not an influence matrix"):
        InfluenceMatrix.read(tmp_path / "influence.json")
    with pytest.raises(InputError, match="not an influence matrix"):
        InfluenceMatrix.read(tmp_path / "absent.json")


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.booleans())
def test_weighted_is_linear_and_its_error_a_seminorm(x, y, centred):
    found = WORLD.matrix(_FIRST, centred)
    one, other = found.weighted({"p": 1.0}), found.weighted({"q": 1.0})
    both = found.weighted({"p": x, "q": y})
    np.testing.assert_allclose(both.value, x * one.value + y * other.value, atol=1e-12)
    assert (both.se <= abs(x) * one.se + abs(y) * other.se + 1e-12).all()


_FIRST = draws(1)[0]
