"""Scores by lm-evaluation-harness: a local task, offline, against answers that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import idealmix, project

from idealmix import configfile
from idealmix.config import Score
from idealmix.errors import InputError
from idealmix.evaluation.scores import check_score, score, score_digest
from idealmix.skills import base_model_path
from idealmix.training.model import load_model, load_tokenizer

pytest.importorskip("lm_eval")

CHOICES = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: "{{{{right}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, higher_is_better: false}}
"""


def write_task(folder: Path, rights: list[int], name: str = "letters") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps({"q": "say", "right": right}) + "\n" for right in rights))
    path = folder / f"{name}.yaml"
    path.write_text(CHOICES.format(name=name, rows=rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return load_model(base_model_path(), "float32").eval(), load_tokenizer(base_model_path())


def test_every_document_asks_the_same_so_the_score_is_the_share_of_one_answer(
    tmp_path: Path, model: tuple[Any, Any]
) -> None:
    # the prompt is always the same: the model picks one letter in all five, right in three or in two of them
    found = score("s", *model, None, Score(lm_eval=str(write_task(tmp_path, [0, 1, 0, 1, 0]))))
    assert found.mean in (pytest.approx(0.6), pytest.approx(0.4))
    assert found.n == 5
    assert found.per_row is not None
    values = [found.per_row[f"letters/{i}"] for i in range(5)]
    assert values[0] == values[2] == values[4] != values[1] == values[3]
    assert found.se == pytest.approx((0.3 / 5) ** 0.5)  # sd of 3 and 2 of five: sqrt(0.3)
    other = score(
        "s", *model, None, Score(lm_eval=str(write_task(tmp_path, [1, 0, 1, 0, 1], "turned")), rows=2)
    )
    assert other.n == 2
    assert other.mean == pytest.approx(0.5)


def test_what_cannot_be_scored(tmp_path: Path, model: tuple[Any, Any]) -> None:
    path = str(write_task(tmp_path, [0, 1]))
    with pytest.raises(InputError, match=r"no metric 'f1'.*|it has acc,none"):
        score("s", *model, None, Score(lm_eval=path, metric="f1"))
    with pytest.raises(InputError, match="a smaller value is better"):
        score("s", *model, None, Score(lm_eval=path, metric="brier_score"))
    (tmp_path / "letters.jsonl").unlink()
    with pytest.raises(InputError, match="cannot be run"):
        score("s", *model, None, Score(lm_eval=path))
    with pytest.raises(InputError, match="no such task file"):
        check_score("s", Score(lm_eval=str(tmp_path / "absent.yaml")))


def test_a_changed_task_is_another(tmp_path: Path) -> None:
    path = write_task(tmp_path, [0, 1])
    before = score_digest("s", Score(lm_eval=str(path)))
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert score_digest("s", Score(lm_eval=str(path))) != before


def test_an_unknown_task_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no task 'gsm8q'") as error:
        check_score("s", Score(lm_eval="gsm8q"))
    assert "gsm8k" in str(error.value.mend)
    check_score("s", Score(lm_eval="gsm8k"))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"lm_eval": "gsm8k", "test": "count"}, "brings its own rows"),
        ({"exact_match": "x"}, "name either the test set"),
        ({"lm_eval": "gsm8k", "exact_match": "x"}, "exactly one of"),
        ({"test": "count", "exact_match": "x", "metric": "acc"}, "metric is of lm_eval's tasks alone"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, given: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        configfile.load(project(tmp_path, scores={"s": given}))


def test_a_run_is_scored_by_a_task_without_test_sets(tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", [0, 1, 1], "mine")
    allocation = {"rounds": 1, "replicates": 0, "budget": {"size": 700}}
    path = project(tmp_path, tests={}, scores={"mine": "lm_eval:tasks/mine.yaml"}, allocation=allocation)
    done = idealmix("run", str(path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["base"]["scores"]["mine"]["n"] == 3
    assert result["final"]["joint"]["scores"]["mine"]["mean"] in (pytest.approx(1 / 3), pytest.approx(2 / 3))
