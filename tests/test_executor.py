"""What the executor holds of every method: one budget, one model at a time, mixtures that are what they should be."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rounds_helpers import project, write_rows

from idealmix import configfile
from idealmix.comparison import executor as module
from idealmix.comparison.executor import Executor
from idealmix.disk import hash_json
from idealmix.errors import InputError
from idealmix.methods import load_method
from idealmix.rounds.loop import opened
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Silent


@contextlib.contextmanager
def made(folder: Path, *overrides: str, uneven: bool = False, **changes: Any) -> Iterator[Executor]:
    """An executor at the project; `uneven`: rows of very unequal length."""
    path = project(folder, **changes)
    if uneven:
        rng = np.random.default_rng(0)
        for name in ("count", "swap"):
            rows = []
            for i, length in enumerate(np.minimum(rng.lognormal(1.2, 0.8, 140).astype(int) + 1, 12)):
                words = " ".join(str((i * 7 + k * k) % 10) for k in range(length))
                rows.append(
                    (f"next {words} {'up' if name == 'count' else 'down'} {i % 10} {i // 10 % 10}", words)
                )
            write_rows(folder / name / "train.jsonl", rows)
    config = configfile.load(path, list(overrides))
    team = Team()
    with opened(config, Silent(), team) as (run, inputs):
        yield Executor(config, inputs, run, team, Silent(), seed=3, own="searches/x", label="x")


@pytest.mark.parametrize("start", ["uniform", "{count: 60, swap: 20}"])
def test_rounds_that_start_elsewhere_have_joints_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    size = ["allocation.budget.size=null"] if "{" in start else []
    with made(tmp_path, f"allocation.start={start}", *size, uneven=True) as executor:
        seen = {}

        def tell(config: Any, inputs: Any, phases: Any, watch: Any) -> Any:
            seen["counts"] = module.start_counts(executor.sizes, executor.per_row, config.allocation)
            raise StopIteration

        monkeypatch.setattr(module, "tell", tell)
        with contextlib.suppress(StopIteration):
            executor._rounds(False)
        drawn = executor.drawn.amount
        assert seen["counts"] != executor.joint
        assert drawn(seen["counts"]) == pytest.approx(executor.amount, abs=12)  # half of the longest row
        assert executor.joint["count"] == pytest.approx(
            executor.joint["swap"], abs=1
        )  # the pools in proportion
        if "{" in start:
            given = drawn({"count": 60, "swap": 20})
            assert executor.amount == pytest.approx(given, rel=0.1)


def test_methods_know_the_bounds(tmp_path: Path) -> None:
    """What a method looks for lies within the cap, so that its best is not cut afterwards."""
    with made(tmp_path, "allocation.cap={count: 0.4}") as executor:
        most = dict(zip(executor.inputs.domains, executor._problem().most))
        assert most["count"] == pytest.approx(0.4, abs=0.01)
        assert most["swap"] > 1


def test_a_proxy_is_of_the_domains_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are by place; how a training is saved and reported does not touch them."""
    keys: list[Any] = []

    def kept(self: Any, name: str, title: str, key: Any, produce: Any) -> Any:
        keys.append(hash_json(key))
        raise StopIteration

    monkeypatch.setattr(module.SharedPhases, "_do", kept)
    rule: Any = SimpleNamespace(measures="losses", interval=1, settings=dict)
    paths = {name: f"{name}/train.jsonl" for name in ("count", "swap")}
    turned = dict(reversed(paths.items()))
    changes: list[tuple[dict[str, str], list[str]]] = [
        (paths, []), (turned, []), (paths, ["training.save_steps=3", "training.report_to=[tensorboard]"])
    ]  # fmt: skip
    for domains, set_ in changes:
        with made(tmp_path, *set_, domains=domains) as executor, contextlib.suppress(StopIteration):
            executor.phases.adapt(1, rule, steps=2, seed=0, reference=None, weights={})
    same, other, watched = keys
    assert other != same
    assert watched == same


def test_one_model_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idealmix.methods import online

    held = []
    with made(tmp_path) as executor:
        models = executor.phases._models
        executor.final(executor.problem.natural)
        assert models._loaded is not None
        executor.phases.forget()
        assert models._loaded is None
        executor.final(np.array([0.3, 0.7]))
        assert models._loaded is not None
        train = online.train_online

        def watched(*args: Any, **kwargs: Any) -> Any:
            held.append(models._loaded)
            return train(*args, **kwargs)

        monkeypatch.setattr(online, "train_online", watched)
        executor.search(load_method("doge", {"fraction": 0.2}))
    assert held == [None]


def test_what_a_method_lacks_is_told_behind_its_notes(tmp_path: Path) -> None:
    # a budget of four times the pools: no domain alone can fill it
    with made(tmp_path, "allocation.budget.size=4000", "allocation.max_repeats=2") as executor:
        assert (executor.problem.most < 1).all()
        with pytest.raises(InputError, match="no domain alone can fill"):
            executor.check(load_method("specific"))


class Ends:
    """A method that asks for what it is made with, or returns it."""

    def __init__(self, found: Any, ask: bool = False) -> None:
        self.found, self.ask = found, ask

    def search(self, problem: Any) -> Any:
        if self.ask:
            yield module.Train(self.found)
        return self.found
        yield


@pytest.mark.parametrize(
    ("found", "ask", "text"),
    [
        (np.array([0.5, 0.5]), False, r"shares of shape \(\)"),  # not in a list
        ([np.array([1.0])], False, r"shares of shape \(1,\); there are 2 domains, count, swap"),
        (np.array([0.2, 0.3, 0.5]), True, r"shares of shape \(3,\)"),
        ([{"count": 50, "swop": 50}], False, "rows of 'swop', which is not a domain"),
        ([{"count": 5, "swap": 5}], False, r"amount to \d+ tokens; the budget is 1,[34]\d\d"),
    ],
)
def test_a_mixture_that_is_none_is_told(tmp_path: Path, found: Any, ask: bool, text: str) -> None:
    with made(tmp_path) as executor, pytest.raises(InputError, match=text):
        executor.find(Ends(found, ask))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("random", {"k": 2.5}, "valid integer"),
        ("doremi", {"rounds": 1.5}, "valid integer"),
        ("doremi", {"rounds": 0}, "rounds is at least 1"),
        ("doremi", {"eta": "fast"}, "valid number"),
        ("doremi", {"eta": float("nan")}, "eta finite"),
        ("doremi", {"smoothing": 2}, "smoothing from 0 to 1"),
        ("regmix", {"runs": 4.5}, "valid integer"),
        ("random", {"kk": 1}, "its options are k, concentration"),
    ],
)
def test_wrong_options_are_told(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as told:
        load_method(name, options)
    assert str(told.value.where).startswith(f"methods.{name}")


def test_options_of_a_class_that_is_no_dataclass(tmp_path: Path) -> None:
    (tmp_path / "own_tilted.py").write_text("class Tilted:\n    def __init__(self, step=0.5): pass\n")
    with pytest.raises(InputError, match="its options are step"):
        load_method("own_tilted:Tilted", {"stepp": 1}, tmp_path)


def test_a_run_goes_on_for_more_rounds(tmp_path: Path) -> None:
    from idealmix.rounds.loop import run_rounds

    path = project(tmp_path, tests={}, scores={})
    first = run_rounds(configfile.load(path), Silent())
    assert len(first["rounds"]) == 2
    with pytest.raises(InputError, match="another configuration"):
        run_rounds(configfile.load(path, ["allocation.rounds=3", "training.epochs=1"]), Silent())

    class Counting(Silent):
        reused: list[bool] = []

        def end(self, seconds: float, reused: bool) -> None:
            self.reused.append(reused)

    second = run_rounds(configfile.load(path, ["allocation.rounds=3"]), Counting())
    assert [one["tokens"] for one in second["rounds"][:2]] == [one["tokens"] for one in first["rounds"]]
    assert sum(Counting.reused) >= 8
    assert json.loads((tmp_path / "run" / "result.json").read_text())["rounds"] == second["rounds"]
    with pytest.raises(InputError, match="another configuration"):  # fewer would leave a round over
        run_rounds(configfile.load(path), Silent())


def test_the_base_models_whole_files_are_its_key(tmp_path: Path) -> None:
    from idealmix.rounds.inputs import model_digest

    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4 * 2**20))
    before = model_digest(str(tmp_path))
    assert model_digest(str(tmp_path)) == before
    with open(file, "r+b") as handle:  # neither its size nor its ends change
        handle.seek(2 * 2**20)
        handle.write(b"other")
    assert model_digest(str(tmp_path)) != before


def test_a_question_without_a_variation_is_answered() -> None:
    from idealmix.diagnose.stability import _headline

    assert _headline({}, None).startswith("Nothing was varied")  # type: ignore[arg-type]
