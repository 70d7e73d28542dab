"""Layers in groups, where memory does not suffice for all at once: the same figures, said so, and no further than it helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from influence_helpers import settings, tiny
from test_influence_measure import DOMAINS, MIXTURE, REFERENCES, record
from test_influence_unrolled import clipped_record, keep, some_moments

from idealmix import influence_passes
from idealmix.curvature import select_layers
from idealmix.curvature.damping import FLOOR
from idealmix.curvature.factors import FactorSums
from idealmix.curvature.gradients import GradientSums
from idealmix.curvature.memory import DoesNotFitError
from idealmix.errors import Doubt, IdealmixError
from idealmix.influence_passes import Products
from idealmix.influence_rows import NamedRows
from idealmix.influence_stage import measure, measure_rows
from idealmix.moments import Rows


@pytest.fixture
def room(monkeypatch):
    """Memory for a number of layers' sums."""

    def fits(layers):
        real_add, real_sum = FactorSums._add, GradientSums.add

        def full(sums, name):
            if name not in sums and len(sums) >= layers:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        def add_factor(self, sums, name, term):
            full(sums, name)
            real_add(self, sums, name, term)

        def add_gradient(self, name, term):
            full(self._sums, name)
            real_sum(self, name, term)

        monkeypatch.setattr(FactorSums, "_add", add_factor)
        monkeypatch.setattr(GradientSums, "add", add_gradient)

    return fits


def uneven():
    """A model with a layer of next to no curvature, whose damping is a share of the other layers'."""
    model = tiny()
    with torch.no_grad():
        model.blocks[0].down.weight.mul_(1e-4)
    return model


def found(**changed):
    return measure(uneven(), MIXTURE, DOMAINS, REFERENCES, settings(**changed), record=record())


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
@pytest.mark.parametrize(("layers", "groups"), [(6, 2), (5, 4), (1, 12)])
def test_groups_give_the_same_figures(room, curvature, layers, groups):
    whole = found(curvature=curvature)
    room(layers)
    parts = found(curvature=curvature)
    np.testing.assert_allclose(parts.alpha, whole.alpha, rtol=1e-8)
    np.testing.assert_allclose(parts.se_population, whole.se_population, rtol=1e-8)
    assert parts.facts["damping_absolute"] == pytest.approx(whole.facts["damping_absolute"], rel=1e-9)
    names = [[each["name"] for each in matrix.to_json()["layers"]] for matrix in (whole, parts)]
    assert names[0] == names[1]
    assert f"the layers are measured in {groups} groups" in [t for t in parts.warnings if "groups" in t][-1]
    for name, tokens in whole.facts["pass_tokens"].items():
        assert parts.facts["pass_tokens"][name] == groups * tokens


def test_the_floor_of_the_damping_is_that_of_all_layers():
    """Else the test above would not see groups that have floors of their own."""
    damping = found().facts["damping_absolute"]
    least = min(damping, key=lambda name: damping[name])
    assert least == "blocks.0.up"
    assert damping[least] == pytest.approx(FLOOR * np.median(list(damping.values())), rel=1e-2)
    first = [each for name, each in damping.items() if name.startswith("blocks.0")]
    assert damping[least] != pytest.approx(FLOOR * np.median(first), rel=0.1)


def test_several_dampings_and_the_finite_response_in_groups(room):
    asked = {"dampings": (0.01, 1.0), "record": record()}
    whole = measure_rows(uneven(), MIXTURE, DOMAINS, REFERENCES, settings(), **asked)
    finite = found(response="finite")
    room(3)
    parts = measure_rows(uneven(), MIXTURE, DOMAINS, REFERENCES, settings(), **asked)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(other.matrix.alpha, one.matrix.alpha, rtol=1e-8)
        assert other.matrix.facts["damping_absolute"] == pytest.approx(one.matrix.facts["damping_absolute"])
    np.testing.assert_allclose(found(response="finite").alpha, finite.alpha, rtol=1e-8)


def test_the_unrolled_response_in_groups(room, tmp_path):
    for number in (1, 2, 3):
        keep(tmp_path, number, tiny(number), some_moments(tiny(), number))
    asked = settings(response="unrolled"), clipped_record(segments=[1, 3, 5])

    def unrolled():
        return measure(tiny(), MIXTURE, DOMAINS, REFERENCES, asked[0], record=asked[1], folder=tmp_path)

    whole = unrolled()
    room(5)
    np.testing.assert_allclose(unrolled().alpha, whole.alpha, rtol=1e-8)


def test_rows_that_were_measured_in_another_order_are_added_by_name(monkeypatch):
    def rows(ids, products):
        return NamedRows(ids, np.ones(2), Rows(np.array(products), np.ones(2), np.ones(2)))

    a = Products(
        [None, rows(("x", "y"), [[1.0], [2.0]])],
        [rows(("p", "q"), [[3.0], [4.0]])],
        {"first": np.ones((1, 1))},
    )
    b = Products([None, rows(("y", "x"), [[10.0], [20.0]])], [rows(("p", "q"), [[30.0], [40.0]])], {"second": np.ones((1, 1))})  # fmt: skip
    added = influence_passes._together([a, b])
    assert added.training[0] is None
    assert added.training[1].rows.products.tolist() == [[21.0], [12.0]]
    assert added.training[1].ids == ("x", "y")
    assert added.references[0].rows.products.tolist() == [[33.0], [44.0]]
    assert list(added.by_layer) == ["first", "second"]


@pytest.mark.parametrize("changed", [{"store": "memory"}, {"curvature": "exact"}, {"curvature": "woodbury"}])
def test_what_cannot_be_split_or_is_not_to_be_ends_with_the_setting(room, changed):
    room(0) if "curvature" in changed else room(6)
    with pytest.raises((IdealmixError, torch.OutOfMemoryError), match="memory"):
        found(**changed)


@pytest.mark.parametrize("alone", [True, False])
def test_of_several_processes_only_what_all_of_them_raise_is_tried_again(alone):
    """A sweep tells all of them (`Processes.agree`); memory that runs out between two sweeps is known to one alone."""
    layers = select_layers(tiny())

    def attempt(error):
        def measured(groups):
            if len(groups) == 1:
                raise error
            return len(groups)

        return measured

    with pytest.warns(Doubt, match="2 groups"):
        assert (
            influence_passes.in_groups(layers, attempt(DoesNotFitError("no")), splits=True, alone=alone) == 2
        )
    between = attempt(torch.OutOfMemoryError("no"))
    if alone:
        with pytest.warns(Doubt, match="2 groups"):
            assert influence_passes.in_groups(layers, between, splits=True, alone=True) == 2
    else:
        with pytest.raises(torch.OutOfMemoryError):
            influence_passes.in_groups(layers, between, splits=True, alone=False)


def test_one_layer_that_does_not_fit_is_an_error(room):
    room(0)
    with pytest.raises(
        IdealmixError, match=r"memory ran out while batch \d+ was added(.|\n)*influence\.layers"
    ):
        found()
