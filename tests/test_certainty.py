"""P-values against scipy's distribution, and one of each thing for the whole project."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from idealmix import certainty, decision, moments
from idealmix.certainty import p_below, p_text, p_value, satterthwaite
from idealmix.evaluation import set_loss
from idealmix.report import words

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("value", "se", "dof"), [(-0.3, 0.1, 4), (0.2, 0.1, 30), (0.0, 1.0, 3), (1.0, 0.7, INF)]
)
def test_p_values_are_students(value, se, dof):
    exact = stats.norm if dof == INF else stats.t(dof)
    assert p_below(value, se, dof) == pytest.approx(exact.cdf(value / se), rel=1e-6)
    assert p_value(value, se, dof) == pytest.approx(2 * exact.sf(abs(value) / se), rel=1e-6)


def test_p_values_without_an_error():
    assert [p_below(x, 0.0, 5) for x in (-1, 0, 1)] == [0.0, 0.5, 1.0]
    assert [p_value(x, 0.0, 5) for x in (-1, 0, 1)] == [0.0, 1.0, 0.0]
    assert {p_below(*x, 5) for x in ((1.0, INF), (-1.0, NAN), (NAN, 1.0))} == {0.5}
    assert {p_value(*x, 5) for x in ((1.0, INF), (-1.0, NAN), (NAN, 1.0))} == {1.0}


def test_degrees_of_freedom_of_sums():
    assert satterthwaite([2.0, 2.0], [7, 7]) == 14
    assert satterthwaite([1.0, 0.5], [0.4, INF]) == pytest.approx(1.5**2 / (1 / 0.4))
    assert satterthwaite([0.0, 0.0], [3, 4]) == 7
    assert satterthwaite([0.0, 2.0], [0, 4]) == 4  # an empty set has no degree of freedom, and takes none
    assert satterthwaite([INF, 2.0], [9, 4]) == 1


def test_p_in_print():
    assert [p_text(p) for p in (0.5, 0.0149, 0.0099, 3e-5, 0.0)] == ["0.50", "0.01", "0.01", "3e-05", "0"]


def test_there_is_one_of_each():
    assert decision.LEVEL is words.LEVEL is certainty.LEVEL
    assert (
        set_loss.satterthwaite is moments.satterthwaite is decision.satterthwaite is certainty.satterthwaite
    )
