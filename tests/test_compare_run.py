"""A whole comparison on tiny data: one budget, shared trainings, resume, costs; and a run by another method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import idealmix, project

from idealmix import configfile
from idealmix.comparison.compare import compare
from idealmix.comparison.single import run_any
from idealmix.errors import InputError
from idealmix.rounds import ending
from idealmix.rounds.watch import Silent

METHODS = "uniform,random,random-mean,specific,doremi,doge,dynamixsft,regmix,dmo,ideal,ideal-paper,tilted_of_tests:Tilted"
OPTIONS = {
    "random": {"k": 2},
    "random-mean": {"k": 2},
    "dynamixsft": {"interval": 2},
    "doge": {"mu": 0.005},
    "regmix": {"runs": 3, "fraction": 0.5, "regressor": "linear", "candidates": 500, "keep": 20},
    "dmo": {"ratios": [0.5, 2.0], "fraction": 0.5},
    "tilted_of_tests:Tilted": {"step": 0.2},
}
OWN = '''
import numpy as np
from idealmix.methods.protocol import Measure, Train


class Tilted:
    """One step against the influence of the natural mixture."""

    def __init__(self, step):
        self.step = step

    def search(self, problem):
        outcome = yield Train(problem.natural)
        matrix = yield Measure(outcome)
        slope = matrix.weighted(problem.weights).value
        return [outcome.shares * np.exp(-self.step * slope / np.abs(slope).max())]
'''

FAILING = """
class Failing:
    def search(self, problem): yield 1 / 0
class Plain:
    def search(self, problem): return []
"""


class Steps(Silent):
    """Keeps what was done anew, by step."""

    def __init__(self) -> None:
        self.fresh: list[str] = []
        self.notes: list[str] = []
        self.tables: list[tuple[str, list[str]]] = []

    def begin(self, step: str) -> None:
        self._step = step

    def end(self, seconds: float, reused: bool) -> None:
        if not reused:
            self.fresh.append(self._step)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.tables.append((title, columns))


def write(folder: Path, **changes: Any) -> Path:
    """The tiny project with twice as many rows of counting as of swapping, one epoch, cheap influence."""
    domains = {"count": "count/train.jsonl", "swap": {"path": "swap/train.jsonl", "rows": 70}}
    path = project(folder, domains=domains, methods=OPTIONS, **changes)
    (folder / "tilted_of_tests.py").write_text(OWN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Steps]:
    """A finished comparison of everything at one seed: (config, comparison.json, what was done)."""
    folder = tmp_path_factory.mktemp("comparison")
    path = write(folder)
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        content = compare(configfile.load(path), METHODS.split(","), 1, steps)
    return path, content, steps


def mixtures(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return content["methods"][name]["runs"][0]["mixtures"]


def test_every_mixture_has_one_budget(done: tuple[Path, dict[str, Any], Steps]) -> None:
    content = done[1]
    joint = mixtures(content, "joint")[0]
    assert joint["shares"] == {
        "count": pytest.approx(2 / 3, abs=0.01),
        "swap": pytest.approx(1 / 3, abs=0.01),
    }
    assert list(content["methods"]) == ["base", "joint", *METHODS.split(",")]
    for name in content["methods"]:
        for mixture in mixtures(content, name):
            assert abs(mixture["tokens"] - joint["tokens"]) <= 22, name  # half a row, two epochs
            assert mixture["steps"] == joint["steps"], name
    assert mixtures(content, "base") == []
    assert mixtures(content, "uniform")[0]["shares"]["swap"] == pytest.approx(0.5, abs=0.01)
    assert len(mixtures(content, "random-mean")) == 2


def test_what_is_the_same_is_trained_once(done: tuple[Path, dict[str, Any], Steps]) -> None:
    path, content, steps = done
    joint = mixtures(content, "joint")[0]["folder"]
    folder = path.parent / "run" / "compare"
    assert (folder / joint / "train" / "record.json").is_file()
    trained = list((folder / "trainings").glob("*/*-steps/train"))
    assert sum("training on" in step for step in steps.fresh) == len(trained)
    asked = sum(
        method["runs"][0]["search"]["trainings"] + len(method["runs"][0]["mixtures"])
        for method in content["methods"].values()
    )
    # joint is DoReMi's reference, both rounds' start and the own method's; random-mean has the two of random
    assert len(trained) <= asked - 6
    assert content["methods"]["ideal"]["runs"][0]["search"]["trainings"] >= 1  # a replicate of round 0
    best = {mixture["folder"] for mixture in mixtures(content, "random-mean")}
    assert mixtures(content, "random")[0]["folder"] in best


def test_the_best_of_k_is_the_best_and_the_mean_is_the_mean(done: tuple[Path, dict[str, Any], Steps]) -> None:
    path, content, _ = done
    folder = path.parent / "run" / "compare"
    values = []
    for mixture in mixtures(content, "random-mean"):
        sets = json.loads((folder / mixture["folder"] / "evaluation.json").read_text(encoding="utf-8"))[
            "deciding"
        ]
        values.append(sum(loss["mean"] for loss in sets.values()) / 2)
    methods = content["methods"]
    assert methods["random-mean"]["figures"]["objective"]["mean"] == pytest.approx(sum(values) / 2)
    assert methods["random"]["figures"]["objective"]["mean"] == pytest.approx(min(values))
    change = methods["random"]["figures"]["objective"]["difference"]["value"]
    assert change == pytest.approx(min(values) - methods["joint"]["figures"]["objective"]["mean"])


def test_progress_is_counted_from_the_base_model_to_joint(
    done: tuple[Path, dict[str, Any], Steps], tmp_path: Path
) -> None:
    config = configfile.load(done[0], ["objective=progress", f"output={tmp_path / 'run'}"])
    found = compare(config, ["base", "uniform"], 1, Steps())["methods"]
    value = {name: method["figures"]["objective"]["mean"] for name, method in found.items()}
    assert (value["base"], value["joint"]) == pytest.approx((0, -1))

    def loss(name: str, q: str) -> float:
        return found[name]["runs"][0]["losses"][q]

    def gained(q: str) -> float:
        before = loss("base", q)
        return (before - loss("uniform", q)) / max(before - loss("joint", q), 0.05 * before)

    assert value["uniform"] == pytest.approx(-sum(map(gained, config.references)) / 2)


def test_search_costs_in_epochs(done: tuple[Path, dict[str, Any], Steps]) -> None:
    methods = done[1]["methods"]
    cost = {name: method["search_epochs"] for name, method in methods.items()}
    assert cost["base"] == cost["joint"] == cost["uniform"] == cost["random-mean"] == 0
    assert cost["random"] == pytest.approx(2, abs=0.05)  # one training of two epochs more
    # joint (2 epochs), and a proxy over as many rows: forward and backward, and the reference forward (a third)
    assert cost["doremi"] == pytest.approx(2 + 2 * 4 / 3, abs=0.3)
    assert cost["regmix"] == pytest.approx(3 * 0.5 * 2, abs=0.2)
    search = methods["tilted_of_tests:Tilted"]["runs"][0]["search"]
    assert (search["trainings"], search["influence_stages"], search["proxies"]) == (1, 1, 0)
    # a training of two epochs; passes over all tokens: rows have 11, an epoch 1,400, each half of a reference set 20 rows
    stages = (done[0].parent / "run/compare" / mixtures(done[1], "joint")[0]["folder"]).glob(
        "influence-*/influence.json"
    )
    told = [json.loads(stage.read_text(encoding="utf-8")) for stage in stages]
    (passes,) = (stage["pass_tokens"] for stage in told if stage["centred"])  # the paper's is not
    assert passes["references"] == 2 * 20 * 11
    assert cost["tilted_of_tests:Tilted"] == pytest.approx(2 + sum(passes.values()) / 1400, rel=0.01)
    random = methods["random"]
    gain = -random["figures"]["test_loss"]["difference"]["value"] / cost["random"]
    assert random["gain_per_epoch"] == pytest.approx(gain)


def test_own_method_moves_where_influence_points(done: tuple[Path, dict[str, Any], Steps]) -> None:
    own, joint = (mixtures(done[1], name)[0] for name in ("tilted_of_tests:Tilted", "joint"))
    assert own["counts"] != joint["counts"]


def test_specific_pools_that_are_too_small_are_said(done: tuple[Path, dict[str, Any], Steps]) -> None:
    # 140 rows of 11 tokens, twice: 3,080 for count; 70 for swap: 1,540. The budget is 1,400: both fit
    assert not any("short of the budget" in note for note in done[2].notes)
    assert sorted(mixtures(done[1], "specific")[0]["counts"].values())[0] == 0


def test_files_and_a_second_call_that_does_nothing_new(
    done: tuple[Path, dict[str, Any], Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content, _ = done
    folder = path.parent / "run" / "compare"
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8")) == content
    assert "than joint" in (folder / "comparison.html").read_text(encoding="utf-8")
    monkeypatch.chdir(path.parent)
    again = Steps()
    twice = compare(configfile.load(path), ["uniform", "random"], 1, again)
    assert [step for step in again.fresh if step != "reading the data"] == []
    assert twice["methods"]["random"] == content["methods"]["random"]
    more = Steps()
    both = compare(configfile.load(path), ["uniform"], 2, more)
    assert both["methods"]["uniform"]["runs"][0] == content["methods"]["uniform"]["runs"][0]
    assert both["methods"]["uniform"]["figures"]["test_loss"]["difference"]["se"] is not None
    # IDEAL's replicate of round 0 was joint at the second seed
    assert sum("training on" in step for step in more.fresh) == 1


def test_another_configuration_in_the_same_folder_is_refused(
    done: tuple[Path, dict[str, Any], Steps],
) -> None:
    with pytest.raises(InputError, match="learning_rate"):
        compare(configfile.load(done[0], ["training.learning_rate=0.02"]), ["uniform"], 1, Silent())


def test_a_run_by_another_method_has_joint_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, method="temperature", scores={})
    monkeypatch.setattr(ending, "signatures", lambda story: [f"{len(story.rounds)} rounds"])
    told = Steps()
    result = run_any(configfile.load(path), told)
    assert "2 rounds" in result["warnings"]
    assert told.tables[-1][0] == "Joint SFT against temperature"
    assert told.tables[-1][1][-1] == "temperature (round 1)"
    first, second = result["rounds"]
    assert result["method"] == "temperature"
    assert (first["decision"], result["best"]) == ("start", 1)
    assert second["decision"] in ("better", "leaning", "worse", "undecided")
    assert "however it compares with joint" in result["ended"]
    counts = second["counts"]
    assert counts["count"] / counts["swap"] == pytest.approx(2**0.5, rel=0.05)
    assert result["replicates"]["count"] == 1
    lines = (tmp_path / "run" / "mixture" / "swap.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == counts["swap"]
    assert "temperature" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    alone = run_any(configfile.load(path, ["method=joint", f"output={tmp_path / 'j'}"]), Silent())
    assert len(alone["rounds"]) == 1
    with pytest.raises(InputError, match="ends in no mixtures, and a run needs one"):
        run_any(configfile.load(path, ["method=base", f"output={tmp_path / 'b'}"]), Silent())


def test_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, scores={})
    asked = ("compare", str(path), "--seeds", "1", "--set", "methods.random.k=1", "--methods")
    shown = idealmix(*asked, "random")
    assert shown.returncode == 0, shown.stderr
    assert "gain per extra epoch" in shown.stderr
    assert "comparison.html" in shown.stdout
    content = json.loads((tmp_path / "run" / "compare" / "comparison.json").read_text(encoding="utf-8"))
    assert list(content["methods"]) == ["base", "joint", "random"]
    assert content["seeds"] == [0]
    wrong = idealmix(*asked, "rndom", "--json")
    assert wrong.returncode == 2
    assert "did you mean 'random'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("method", "overrides", "said"),
    [
        ("random", ["methods.random.kk=1"], "its options are k, concentration"),
        # 210 rows of 11 tokens at most twice are 4,620
        ("random", ["allocation.budget.size=5000"], "the pools give 4,620, which is 380 short"),
        ("random", ["allocation.budget.hold=false"], "methods are compared at one budget"),
        ("dmo", ["references.other={path: count/test.jsonl}", "tests={}"], "'other' has none"),
        ("failing_of_tests:Failing", [], "Failing raised ZeroDivisionError: .*failing_of_tests.py, line 3"),
        ("failing_of_tests:Plain", [], "no generator"),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, overrides: list[str], said: str
) -> None:
    path = write(tmp_path, scores={})
    (tmp_path / "failing_of_tests.py").write_text(FAILING, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    steps = Steps()
    with pytest.raises(InputError, match=said):
        compare(configfile.load(path, overrides), ["uniform", method], 1, steps)
    assert set(steps.fresh) <= {"reading the data"}
    with pytest.raises(InputError, match="0 seeds cannot be compared"):
        compare(configfile.load(path), ["uniform"], 0, Silent())


def test_small_trainings_warm_up_for_less(tmp_path: Path) -> None:
    config = configfile.load(write(tmp_path, scores={}), ["training.warmup_steps=6", "methods.regmix.runs=2"])
    compare(config, ["regmix"], 1, Silent())
    rates = {}
    for record in (tmp_path / "run" / "compare" / "trainings").glob("*/*-steps/train/record.json"):
        sizes = json.loads(record.read_text(encoding="utf-8"))["step_sizes"]
        rates[len(sizes)] = sizes.index(max(sizes))
    whole, half = max(rates), min(rates)
    assert half == pytest.approx(whole / 2, abs=1)
    assert (rates[whole], rates[half]) == (6, 3)
