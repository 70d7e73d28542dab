"""A search on a part of the budget, carried over to one training at the full size: tiny models, real trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rounds_helpers import project, save_model

from idealmix import configfile
from idealmix.comparison.single import run_any
from idealmix.comparison.smaller import carried, smaller
from idealmix.config import Lora
from idealmix.errors import InputError
from idealmix.rounds.watch import Silent

SEARCH = {"fraction": 0.5, "lora": True, "learning_rate": 0.02}


def test_carried_keeps_the_proportions_of_rows() -> None:
    # 30 and 10 rows of 2 and 6 tokens: 60 and 60 tokens
    np.testing.assert_allclose(carried({"a": 30, "b": 10}, {"a": 2.0, "b": 6.0}), [0.5, 0.5])
    np.testing.assert_allclose(
        carried({"b": 10, "a": 30}, {"a": 1.0, "b": 6.0}), [30 / 90, 60 / 90]
    )  # by name
    np.testing.assert_allclose(carried({"a": 0, "b": 7}, {"a": 2.0, "b": 6.0}), [0.0, 1.0])


def test_the_search_differs_where_it_is_asked_to(tmp_path: Path) -> None:
    path = project(tmp_path, search={**SEARCH, "model": "./small"})
    save_model(tmp_path / "small")
    config = configfile.load(path, ["training.warmup_steps=9", "allocation.start={count: 11, swap: 60}"])
    small = smaller(config, 1400.0)
    assert small.model == str(tmp_path / "small")  # relative to the file, as every path
    assert small.allocation.start == {"count": round(5.5), "swap": 30}
    assert small.allocation.budget.size is None  # follows from the rows, as it did in the full run
    assert smaller(configfile.load(path), 1400.0).allocation.budget.size == 700
    assert (small.training.warmup_steps, small.training.learning_rate) == (4, 0.02)
    assert small.training.lora == Lora()
    assert small.search is None
    assert not small.tests
    assert not small.scores
    assert Path(small.output) == Path(config.output) / "search"
    assert small.training.epochs == config.training.epochs


def test_a_search_that_starts_from_given_rows(tmp_path: Path) -> None:
    """Without a budget of its own; each training has half of these rows, the last one all of them."""
    path = project(tmp_path, search={"fraction": 0.5}, tests={}, scores={})
    config = configfile.load(
        path, ["allocation.start={count: 30, swap: 90}", "allocation.budget.size=null", "allocation.rounds=1"]
    )
    found = run_any(config, Silent())
    assert found["rounds"][0]["counts"] == {"count": 15, "swap": 45}
    assert found["full"]["counts"] == {"count": 30, "swap": 90}


def test_questions_about_a_search_take_the_settings_that_are_asked(tmp_path: Path) -> None:
    from idealmix.diagnose.checkpoint import _of_search

    path = project(tmp_path, search={"fraction": 0.5}, tests={}, scores={})
    run_any(configfile.load(path, ["allocation.rounds=1"]), Silent())
    asked = _of_search(configfile.load(path, ["influence.damping=0.01", "objective=relative"]))
    assert (asked.influence.damping, asked.objective) == (0.01, "relative")
    assert asked.allocation.budget.size == pytest.approx(700, abs=5)
    assert asked.allocation.rounds == 1


def test_one_training_in_full_with_the_searchs_proportions(tmp_path: Path) -> None:
    path = project(tmp_path, search={"fraction": 0.5})
    found = run_any(configfile.load(path), Silent())
    small, full = found["rounds"][found["best"]], found["full"]
    assert small["tokens"] == pytest.approx(2 * 700, rel=0.03)  # two epochs
    assert full["tokens"] == pytest.approx(2 * 1400, rel=0.02)
    for name, count in small["counts"].items():
        assert full["counts"][name] == pytest.approx(2 * count, abs=2)
    assert set(full["tests"]) == set(full["scores"]) == {"base", "mixture"}
    assert full["tests"]["mixture"]["count"]["mean"] < full["tests"]["base"]["count"]["mean"]
    run = tmp_path / "run"
    assert (run / "search" / "report.html").is_file()
    manifest = json.loads((run / "mixture" / "manifest.json").read_text(encoding="utf-8"))
    assert {name: part["rows"] for name, part in manifest["domains"].items()} == full["counts"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "full size" in page
    assert f"{full['rows']:,}" in page

    class Counting(Silent):
        fresh = 0

        def end(self, seconds: float, *, reused: bool) -> None:
            Counting.fresh += not reused

    again = run_any(
        configfile.load(path), Counting()
    )  # resumes, and has nothing to do but read the data twice
    assert Counting.fresh == 2
    assert again["full"] == full


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"allocation": {"budget": {"hold": False}}}, "needs a held budget"),
        (
            {"training": {"backend": "command", "command": "true {model} {train_file} {output_dir}"}},
            "adapters need backend: trl",
        ),
        ({"search": {"fraction": 0}}, "search.fraction"),
        ({"search": {"fractoin": 0.5}}, "did you mean 'fraction'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    path = project(tmp_path, **{"search": SEARCH, **changes})
    with pytest.raises(InputError, match=text):
        configfile.load(path)
