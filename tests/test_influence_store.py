"""Matrices in memory or on disk, and a curvature from a part of the rows: the figures do not depend on where things lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from influence_helpers import mixture_of, pools_of, settings, tiny

from idealmix import influence_passes, influence_stage
from idealmix.curvature import Shelf, Shelves
from idealmix.errors import IdealmixError
from idealmix.influence_stage import measure

DOMAINS = pools_of({"math": 30, "code": 24}, seed=1)
REFERENCES = pools_of({"math": 8, "code": 6, "chat": 7}, seed=2)
MIXTURE = mixture_of({name: pool.ids[:20] for name, pool in DOMAINS.items()})


def found(tmp_path=None, **changed):
    return measure(tiny(), MIXTURE, DOMAINS, REFERENCES, settings(**changed), scratch=tmp_path)


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
def test_disk_and_memory_give_the_same_figures(tmp_path, curvature):
    memory, disk = (found(tmp_path, curvature=curvature, store=store) for store in ("memory", "disk"))
    # not to the bit: what is read back lies in another order in memory
    np.testing.assert_allclose(disk.alpha, memory.alpha, rtol=1e-9)
    np.testing.assert_allclose(disk.entries("acting").se, memory.entries("acting").se, rtol=1e-9)
    assert not list(tmp_path.iterdir())  # the scratch folder is cleared up


def test_a_failure_clears_the_scratch_folder_up(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise IdealmixError("stop")

    monkeypatch.setattr(influence_passes, "row_dots", fails)
    with pytest.raises(IdealmixError, match="stop"):
        found(tmp_path, store="disk")
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_disk_where_memory_would_exceed_training(tmp_path, monkeypatch):
    used = []
    original = influence_stage.Shelves
    monkeypatch.setattr(influence_stage, "Shelves", lambda place: used.append(place) or original(place))
    found(tmp_path)
    monkeypatch.setattr(
        influence_stage, "SMALL", 0
    )  # three references and four sets: more than gradient and moments
    found(tmp_path)
    assert used == [None, tmp_path]


def test_the_scratch_folder_is_full(tmp_path, monkeypatch):
    shelf = Shelf(tmp_path)
    monkeypatch.setattr(
        "builtins.open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(IdealmixError, match=r"cannot write a matrix .*No space left"):
        shelf.put("a", torch.ones(3, 3))


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_shelf_gives_back_what_was_put(tmp_path, on_disk):
    with Shelves(tmp_path if on_disk else None) as shelves:
        shelf, other = shelves.shelf(), shelves.shelf()
        one, two = torch.randn(2, 3, 4, dtype=torch.float64)
        shelf.put("x", one.T)
        torch.testing.assert_close(shelf["x"], one.T, rtol=0, atol=0)
        shelf.put("x", two)
        torch.testing.assert_close(shelf["x"], two, rtol=0, atol=0)
        other.append("x", one)
        torch.testing.assert_close(other["x"], one[None], rtol=0, atol=0)
        other.append("x", two)
        torch.testing.assert_close(other["x"], torch.stack([one, two]), rtol=0, atol=0)
        assert list(other) == ["x"]
        shelf.clear()
        assert len(shelf) == 0
        with pytest.raises(KeyError):
            shelf["x"]


def test_the_curvature_rests_on_a_part_of_the_rows(monkeypatch):
    whole = found(curvature_fraction=1.0)
    part = found(curvature_fraction=0.5)
    assert whole.facts["pass_tokens"]["domains"] == part.facts["pass_tokens"]["domains"]
    assert part.facts["pass_tokens"]["covariances"] == part.facts["pass_tokens"]["eigenvalues"]
    assert part.facts["pass_tokens"]["eigenvalues"] < 0.85 * whole.facts["pass_tokens"]["eigenvalues"]
    # another curvature, the same gradients: close, not equal
    cosine = (part.alpha * whole.alpha).sum() / np.linalg.norm(part.alpha) / np.linalg.norm(whole.alpha)
    assert 0.9 < cosine < 1 - 1e-9


def test_auto_asks_for_rows_and_tokens(monkeypatch):
    assert found().facts["curvature_fraction"] == 1.0  # 40 rows: fewer than it asks for
    monkeypatch.setattr(influence_stage, "CURVATURE_ROWS", 20)
    monkeypatch.setattr(influence_stage, "TOKENS_PER_DIMENSION", 1)
    assert found().facts["curvature_fraction"] == pytest.approx(0.5)
