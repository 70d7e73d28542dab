"""`run --dry-run` tells everything that shows without the model's weights; a run tells the cheap part before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from rounds_helpers import project, save_model

from idealmix import configfile
from idealmix.allocation import start_counts
from idealmix.config import Allocation, Budget
from idealmix.errors import InputError
from idealmix.rounds.checks import check_all
from idealmix.rounds.loop import run_rounds
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Silent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry")
    save_model(folder / "small")
    return project(folder)


def dry(path: Path, *overrides: str) -> None:
    check_all(configfile.load(path, list(overrides)), Silent(), Team())


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=ideal-paper", "allocation={}"],
        ["method=random", "methods={random: {k: 3}, doremi: {rounds: 2}}"],
        ["search={fraction: 0.5, model: ./small, lora: true}", "influence.layers=['*lora_B*']"],
        ["training.lora={r: 2}", "influence.layers=['*lora_A*']"],
    ],
)
def test_what_can_run_passes_and_leaves_nothing(path: Path, overrides: list[str]) -> None:
    dry(path, *overrides)
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize(
    ("where", "text", "overrides"),
    [
        ("influence.layers", "'*up_prj' matches no linear layer", ["influence.layers=['*up_prj']"]),
        (
            "influence.layers",
            "matches no linear layer",
            ["influence.layers=[mlp_x]", "search={fraction: 0.5}"],
        ),
        ("training.lora", "cannot be put on the model", ["training.lora={target_modules: [nothing]}"]),
        ("allocation.budget.size", "short", ["allocation.budget.size=10000000"]),
        ("allocation.budget.size", "too little for one row", ["allocation.budget.size=1"]),
        ("allocation.floor", "sum to", ["allocation.floor={count: 0.7, swap: 0.7}"]),
        ("training", "leaves nothing to train on", ["training.epochs=0.001"]),
        ("training.epochs", "more rows than", ["training.epochs=1e12"]),
        ("methods.random", "its options are k", ["methods={random: {kk: 1}}"]),
        ("methods.doremi", "rounds is at least 1", ["method=doremi", "methods={doremi: {rounds: 0}}"]),
        ("method", "", ["method='no_such_module:Magic'"]),
        ("nowhere", "", ["search={fraction: 0.5, model: ./nowhere}"]),
        ("allocation.budget.size", "too little for one row", ["search={fraction: 0.001}"]),
    ],
)
def test_what_would_fail_later_is_told(path: Path, where: str, text: str, overrides: list[str]) -> None:
    with pytest.raises(InputError) as told:
        dry(path, *overrides)
    assert text in str(told.value)
    assert where in str(told.value.where)
    assert not (path.parent / "run").exists()


def test_a_run_tells_a_wrong_layer_before_it_trains(path: Path, tmp_path: Path) -> None:
    config = configfile.load(path, [f"output={tmp_path / 'run'}", "influence.layers=[mpl]"])
    with pytest.raises(InputError, match="'mpl' matches no linear layer"):
        run_rounds(config, Silent())
    assert not (tmp_path / "run" / "round-0").exists()
    assert not (tmp_path / "run" / "base").exists()


def test_a_mended_configuration_is_not_another_one(path: Path, tmp_path: Path) -> None:
    output, rounds = f"output={tmp_path / 'run'}", "allocation.rounds=1"
    with pytest.raises(InputError, match="its options are k"):
        run_rounds(configfile.load(path, [output, rounds, "methods={random: {kk: 1}}"]), Silent())
    run_rounds(configfile.load(path, [output, rounds, "methods={random: {k: 1}}"]), Silent())


def test_a_search_tells_a_wrong_layer_of_its_model_before_it_trains(path: Path, tmp_path: Path) -> None:
    from idealmix.comparison.single import run_any

    search = ["search={fraction: 0.5, model: ./small}", "influence.layers=[mpl]"]
    with pytest.raises(InputError, match="'mpl' matches no linear layer"):
        run_any(configfile.load(path, [f"output={tmp_path / 'run'}", *search]), Silent())
    assert not list((tmp_path / "run").rglob("train"))


def test_a_budget_below_a_row() -> None:
    allocation = Allocation(budget=Budget(unit="tokens", size=3))
    with pytest.raises(InputError, match=r"the budget is 3 tokens.* a row has 32\.5 on average") as told:
        start_counts({"a": 30, "b": 10}, {"a": 30.0, "b": 40.0}, allocation)
    assert told.value.where == "allocation.budget.size"
