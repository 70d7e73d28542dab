"""Scores on the deciding halves of reference sets: they stop a mixture, and reach no gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounds_helpers import idealmix, project

from idealmix import configfile
from idealmix.config import Config
from idealmix.evaluation.score_result import ScoreResult, from_rows
from idealmix.evaluation.set_loss import SetLoss
from idealmix.rounds.goal import Goal
from idealmix.rounds.judgement import judge
from idealmix.rounds.loop import run_rounds
from idealmix.rounds.watch import Silent

# Right on every row of the first three models (base, round 0, its replicate), wrong on every row of those after them.
WATCH = """
from pathlib import Path

def falls(model, tokenizer, rows):
    calls = Path(__file__).with_suffix(".calls")
    said = calls.read_text() if calls.exists() else ""
    calls.write_text(said + ",".join(sorted(row["id"] for row in rows)) + "\\n")
    return [float(said.count("\\n") < 3)] * len(rows)
"""


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch, **score: Any) -> tuple[dict[str, Any], list[str]]:
    """A run with a watched score; its result and the row ids of each call."""
    (folder / "watch_module.py").write_text(WATCH, encoding="utf-8")
    scores = {"watch": {"reference": "swap", "callable": "watch_module:falls", **score}}
    config = project(folder, scores=scores)
    monkeypatch.chdir(folder)
    done = idealmix("run", str(config))
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "run" / "result.json").read_text())
    return result, (folder / "watch_module.calls").read_text().split()


def test_a_fall_beyond_its_limit_is_not_kept_and_the_loss_alone_would_have_kept_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "free").mkdir()
    (tmp_path / "held").mkdir()
    free, calls = watched(tmp_path / "free", monkeypatch)
    held, _ = watched(tmp_path / "held", monkeypatch, max_decrease=0.1)
    assert free["best"] == 1
    assert free["rounds"][1]["decision"] in ("better", "leaning")
    assert (held["best"], held["rounds"][1]["decision"]) == (0, "worse")
    assert "the score watch lost more than its limit allows" in held["rounds"][1]["reason"]
    # the same rows each time, those of the deciding half; the matrix knows nothing of it
    assert len(calls) == 4
    assert len(set(calls)) == 1
    assert len(calls[0].split(",")) == 20
    assert free["rounds"][0]["influence"] == held["rounds"][0]["influence"]
    assert [r["scores"]["watch"]["mean"] for r in held["rounds"]] == [1.0, 0.0]
    assert held["base"]["watched_scores"]["watch"]["n"] == 20
    page = (tmp_path / "held" / "run" / "report.html").read_text()
    assert "watch by round" in page
    assert "no gradient knows them" in page


def test_answers_are_generated_in_batches_that_follow_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while generating is mended by `influence.batch_tokens`, as the message says."""
    asked: list[int] = []

    def counted(model: Any, tokenizer: Any, rows: Any, new: int, batch_tokens: int, **_: Any) -> list[str]:
        asked.append(batch_tokens)
        return ["x"] * len(rows)

    monkeypatch.setattr("idealmix.evaluation.scores.generate", counted)
    score = {"reference": "swap", "exact_match": "(.+)", "max_new_tokens": 4}
    config = project(tmp_path, scores={"watch": score}, allocation={"rounds": 1})
    run_rounds(configfile.load(config, ["influence.batch_tokens=300"]), Silent())
    assert asked
    assert set(asked) == {1200}


def losses(mean: float) -> dict[str, SetLoss]:
    return {"q": SetLoss("q", ("a", "b", "c", "d"), mean + np.array([-0.1, 0.1, 0.2, -0.2]), np.ones(4, int))}


def score(*values: float) -> ScoreResult:
    return from_rows("s", dict(zip("abcd", values)))


def test_a_fall_is_paired_by_row_against_all_trainings_of_round_0() -> None:
    goal = Goal("mean_loss", {"q": 1.0}, losses(1.0), [losses(1.1)])
    goal.start_scores = [{"s": score(1, 1, 0, 1)}, {"s": score(1, 1, 0, 0)}]
    fall = goal.fall(score(0, 1, 0, 0))
    by_row = np.array([1.0, 0.0, 0.0, 0.5])
    assert fall.value == pytest.approx(by_row.mean())
    assert fall.se == pytest.approx(by_row.std(ddof=1) / 2)
    assert (fall.dof, fall.seeds, fall.old_runs) == (3, 2, 2)
    assert fall.seed_sd == pytest.approx(np.std([0.75, 0.5], ddof=1))


def test_a_score_without_rows_is_compared_by_its_mean() -> None:
    goal = Goal(
        "mean_loss", {"q": 1.0}, losses(1.0), start_scores=[{"s": ScoreResult("s", 0.8, None, 4, None)}]
    )
    fall = goal.fall(ScoreResult("s", 0.5, None, 4, None))
    assert (fall.value, fall.se) == (pytest.approx(0.3), 0.0)


@pytest.mark.parametrize(("limit", "outcome"), [(None, "better"), (1.0, "better"), (0.0, "worse")])
def test_only_a_limit_lets_a_score_decide(limit: float | None, outcome: str) -> None:
    config = Config.model_validate({
        "model": "m", "domains": {"d": "d.jsonl"}, "references": {"q": "q.jsonl"},
        "scores": {"s": {"reference": "q", "exact_match": "x", "max_decrease": limit}},
    })  # fmt: skip
    goal = Goal("mean_loss", {"q": 1.0}, losses(1.0), start_scores=[{"s": score(1, 1, 1, 1)}])
    decision = judge(config, goal, losses(0.5), {"s": score(0, 0, 0, 0)}, losses(1.0))
    assert decision.outcome == outcome


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"exact_match": "x"}, "name either the test set with test, or a reference set with reference"),
        ({"exact_match": "x", "test": "t", "reference": "q"}, "name either the test set"),
        ({"lm_eval": "gsm8k", "reference": "q"}, "leave test and reference out"),
        ({"exact_match": "x", "test": "t", "max_decrease": 0.1}, "no test set and no task decides"),
    ],
)  # fmt: skip
def test_what_cannot_steer_is_refused(setting: dict[str, Any], said: str) -> None:
    data = {
        "model": "m", "domains": {"d": "d"}, "references": {"q": "q"}, "tests": {"t": "t"}, "scores": {"s": setting}
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        Config.model_validate(data)
