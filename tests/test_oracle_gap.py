"""The benchmark's arithmetic against hand-computed values, and what its own methods ask for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rounds_helpers import project
from test_methods_steps import ask, problem

from benchmarks import oracle_gap, oracle_methods, retrainings
from benchmarks.oracle_figures import closed, headline, of_suite, table
from benchmarks.oracle_gap import known_rows
from benchmarks.oracle_methods import BEST, ORDER, DropWorst, WideSearch, dmo_trainings, made
from idealmix import configfile
from idealmix.errors import InputError
from idealmix.methods import regmix
from idealmix.methods.protocol import Train


def test_share_of_the_gap_and_its_error() -> None:
    # joint 1.0, 1.2; best 0.5, 0.6: gaps 0.5, 0.6, mean 0.55. The method removes 0.4, 0.5: mean 0.45, r = 9 / 11.
    # residuals a - r b: 0.4 - 4.5/11 = -0.1/11, 0.5 - 5.4/11 = 0.1/11: sd = sqrt(2) * 0.1/11
    found = closed([1.0, 1.2], [[0.6, 0.7]], [0.5, 0.6])
    assert found["gap_closed"] == pytest.approx(9 / 11)
    assert found["standard_error"] == pytest.approx((math.sqrt(2) * 0.1 / 11) / math.sqrt(2) / 0.55)
    assert found["by_search"] == pytest.approx([9 / 11])


def test_scores_rise_and_losses_fall_alike() -> None:
    losses = closed([1.0, 1.2, 1.1], [[0.6, 0.7, 0.5]], [0.5, 0.6, 0.4])
    scores = closed([-1.0, -1.2, -1.1], [[-0.6, -0.7, -0.5]], [-0.5, -0.6, -0.4])
    assert scores == losses


def test_the_error_is_that_of_simulated_seeds() -> None:
    """The delta method against a simulation: a common part of each seed, and noise of each training."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 0.05, (4000, 6, 1))
    noise = generator.normal(0, 0.02, (4000, 6, 3))
    losses = np.array([1.0, 0.7, 0.5]) + common + noise
    found = [closed(each[:, 0], [each[:, 1]], each[:, 2]) for each in losses]
    spread = np.std([one["gap_closed"] for one in found])
    told = math.sqrt(np.mean([one["standard_error"] ** 2 for one in found]))
    assert told == pytest.approx(spread, rel=0.05)


def test_searches_add_their_spread() -> None:
    # both searches at both seeds alike: no error over seeds; shares 0.5 and 0.7, sd of the mean 0.1
    found = closed([1.0, 1.0], [[0.5, 0.5], [0.3, 0.3]], [0.0, 0.0])
    assert found["gap_closed"] == pytest.approx(0.6)
    assert found["standard_error"] == pytest.approx(0.1)


def record(suite: str, method: list[float]) -> dict[str, Any]:
    def row(loss: list[float], epochs: float) -> dict[str, Any]:
        search = {"seed": 0, "shares": [{"a": 0.25, "b": 0.75}], "epochs": epochs}
        return {"searches": [search], "loss": [loss], "score": [[1 - x for x in loss]]}

    rows = {"joint": row([1.0, 1.2], 0.0), BEST: row([0.5, 0.6], 45.0), "ideal": row(method, 7.5)}
    return {"suite": suite, "generator_seed": 1, "budget": 9, "seeds": [1, 2], "rows": rows}


def test_suites_and_the_smallest_as_headline() -> None:
    good, bad = of_suite(record("good", [0.6, 0.7])), of_suite(record("bad", [1.1, 1.3]))
    assert good["loss_gap"]["gap"] == pytest.approx(0.55)
    assert good["loss_gap"]["gap_over_sd"] == pytest.approx(0.55 / (0.2 / math.sqrt(2)))
    assert good["methods"]["joint"]["gap_closed"] == 0
    assert good["methods"][BEST]["gap_closed"] == 1
    assert bad["methods"]["ideal"]["than_joint"]["loss"]["verdict"] == "worse"
    told = headline([good, bad])
    assert told["ideal"]["gap_closed"] == pytest.approx(-0.1 / 0.55)
    assert (told["ideal"]["cost_epochs"], told["ideal"]["suites"]) == (7.5, 2)
    assert "uniform" not in told
    del bad["methods"]["ideal"]  # a method that one suite has not: said by the count
    assert headline([good, bad])["ideal"]["suites"] == 1
    lines = table(good).splitlines()
    assert lines[2].startswith(f"| {BEST} | 1.00")
    assert lines[3].startswith("| ideal | 0.82")
    assert lines[3].endswith("| 7.5 | 25 / 75 |")


def test_before_the_wide_search_nothing_is_claimed() -> None:
    without = record("x", [0.6, 0.7])
    del without["rows"][BEST]
    assert of_suite(without)["methods"] == {}
    assert headline([of_suite(without)]) == {}


def test_rows_of_another_budget_are_not_taken(tmp_path: Any) -> None:
    path = tmp_path / "figures.json"
    assert known_rows(path, 9, (1, 2)) == {}
    path.write_text('{"budget": 9, "seeds": [1, 2], "rows": {"joint": 1}}', encoding="utf-8")
    assert known_rows(path, 9, (1, 2)) == {"joint": 1}
    assert known_rows(path, 8, (1, 2)) == known_rows(path, 9, (1, 2, 3)) == {}


def bowl(request: Train) -> dict[str, float]:
    """Best at 0.7, 0.3, 0."""
    return dict.fromkeys(("a", "b"), float(np.square(request.shares - np.array([0.7, 0.3, 0.0])).sum()))


def test_wide_search_comes_near_the_best() -> None:
    requests, mixtures = ask(WideSearch(), problem(), bowl)
    assert len(requests) == 40
    assert requests[0].shares == pytest.approx([1 / 3] * 3)
    for shares in mixtures:
        assert shares.sum() == pytest.approx(1)
        assert shares == pytest.approx([0.7, 0.3, 0.0], abs=0.06)
    assert len(mixtures) == 5


def test_drop_worst_leaves_out_the_useless_domain() -> None:
    requests, mixtures = ask(DropWorst(), problem(), bowl)
    assert len(requests) == 3
    assert mixtures[0] == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("name", ["random", "regmix", "dmo"])
def test_searches_of_free_length_get_ideals_epochs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regmix, "tree_prediction", lambda x, y, wanted, seed: wanted[:, 0])  # a second less
    asked, _ = ask(
        made(name, problem(), 7.4), problem(), lambda r: dict.fromkeys(("a", "b"), 1 + r.shares[0])
    )
    epochs = sum(request.fraction for request in asked if isinstance(request, Train))
    assert epochs == pytest.approx(7.4, abs=0.5)
    with pytest.raises(ValueError, match="measure ideal first"):
        made(name, problem(), None)


def test_dmo_costs_what_is_said() -> None:
    # ratios 1/2, 2/3, 2, 3 of one of three equal amounts, for two domains, and the equal one
    assert dmo_trainings(problem()) == pytest.approx(1 + 2 * (2.5 + 8 / 3 + 4 + 5) / 3)


def test_every_row_can_be_made() -> None:
    assert tuple(",".join(ORDER).split(",")) == ORDER  # as the command line takes them
    assert len(set(ORDER)) == len(ORDER)
    for name in ORDER:
        assert callable(made(name, problem(), 3.0).search)


def test_row_counts_become_shares_by_mean_rows() -> None:
    """Not by the rows that one seed drew: joint's counts must be joint again at a fresh seed."""
    executor = SimpleNamespace(problem=problem(), per_row={"a": 10.0, "b": 30.0, "c": 20.0})
    bed = object.__new__(oracle_gap.Bed)
    assert bed.shares_of(executor, {"a": 30, "b": 10, "c": 30}) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert bed.shares_of(executor, np.array([1.0, 1.0, 2.0])) == {"a": 0.25, "b": 0.25, "c": 0.5}


def test_sources_are_blends_of_unlike_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files hold what the suite says, and a source's sample is of all its skills, not of the first ones."""
    for module in (oracle_gap, retrainings):
        monkeypatch.setattr(module, "TRAINED_ROWS", 1500)
    suite = oracle_gap.many_sources("twenty sources, blends", 24)
    assert suite == oracle_gap.many_sources("twenty sources, blends", 24)
    assert len(suite.rows) == 20
    assert min(suite.rows.values()) >= 100
    assert max(suite.rows.values()) <= 1000
    config = configfile.load(oracle_gap.configuration(suite, tmp_path, 30_000))
    assert list(config.references) == ["mathematics", "coding", "reasoning", "instruction"]
    assert {name: source.rows for name, source in config.domains.items()} == suite.rows
    seen: set[str] = set()
    assert suite.blends is not None
    for name, parts in suite.blends.items():
        lines = Path(config.domains[name].path).read_text(encoding="utf-8").splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        of_skill = {skill: sum(each.startswith(f"{skill}-") for each in ids) for skill in parts}
        assert sum(parts.values()) == pytest.approx(1)
        for skill, part in parts.items():
            assert of_skill[skill] == pytest.approx(part * len(ids), abs=3)
        assert not seen & set(ids)
        seen |= set(ids)


def test_a_method_that_cannot_be_asked_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Refusing:
        folder, budget = tmp_path, 9
        suite = oracle_gap.Suite("x", 1, {"a": 1})

        def search(self, name: str, seed: int, epochs: float | None) -> dict[str, Any]:
            raise InputError(f"{name} has no law for it")

    oracle_gap.measure(Refusing(), ["dmo", "regmix"], 1, 2)  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert "joint is left out: joint has no law for it" in told
    assert "regmix is left out: it is given the epochs of ideal" in told
    assert not (tmp_path / "figures.json").exists()


@pytest.mark.slow
def test_rows_are_measured_once_and_on_fresh_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way on the tiny project: joint, a fixed mixture, a search of IDEAL's cost, the wide search."""
    monkeypatch.setattr(oracle_gap, "configuration", lambda suite, folder, budget: project(folder))
    monkeypatch.setattr(oracle_methods, "WideSearch", lambda: WideSearch(randoms=1, near=1, keep=2))
    suite = oracle_gap.Suite("tiny, equal", 1, {"count": 140, "swap": 140})
    only = ("uniform", "ideal", "random")
    bed = oracle_gap.Bed(suite, tmp_path, 1400)
    oracle_gap.measure(bed, only, searches=1, seeds=2)
    told = capsys.readouterr().err
    path = tmp_path / "tiny-equal" / "figures.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = record["rows"]
    assert list(rows) == ["joint", "uniform", "ideal", BEST, "random"]
    assert record["seeds"] == [901, 902]
    assert [np.shape(row["loss"]) for row in rows.values()] == [(1, 2)] * 5
    assert rows["joint"]["loss"][0][0] == pytest.approx(np.mean(list(rows["joint"]["losses"][0][0].values())))
    costs = {name: row["searches"][0]["epochs"] for name, row in rows.items()}
    assert costs["joint"] == costs["uniform"] == 0
    assert costs[BEST] == pytest.approx(3 * 2, abs=0.1)  # three trainings of two epochs
    assert costs["ideal"] > 4  # round 0 and its replicate, and an influence stage at least
    assert costs["random"] == pytest.approx(costs["ideal"], abs=1.1)  # whole trainings, of two epochs each
    assert "joint, seed 901: training on" in told
    figures = of_suite(record)
    assert figures["methods"][BEST]["gap_closed"] == pytest.approx(1)
    oracle_gap.measure(oracle_gap.Bed(suite, tmp_path, 1400), only, searches=1, seeds=2)
    assert "training" not in capsys.readouterr().err.replace("training tokens", "")
    assert json.loads(path.read_text(encoding="utf-8")) == record
