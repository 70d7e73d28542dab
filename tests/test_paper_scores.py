"""The paper's scores: likelihoods of choices against a plain forward, instructions by lm-eval's checks, tables by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds_helpers import WORDS, project

from benchmarks.paper_scores import compared
from idealmix import configfile
from idealmix.evaluation.score_result import from_rows
from idealmix.training.model import load_model, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import paper_scores


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[dict[str, Any]]]:
    """A tiny model, its tokenizer, and two questions with choices of unequal length."""
    folder = tmp_path_factory.mktemp("scores")
    path = configfile.load(project(folder), []).model
    rows = []
    for number in range(2):
        prompt = [{"role": "user", "content": " ".join(WORDS[number : number + 3])}]
        answer = {"role": "assistant", "content": WORDS[0]}
        rows.append({"id": f"q{number}", "prompt": prompt, "messages": [*prompt, answer]})
    targets = {WORDS[0]: 1, f"{WORDS[1]} {WORDS[2]}": 0, WORDS[3]: 1}
    marks = [{"id": row["id"], "mc1_targets": targets, "mc2_targets": targets} for row in rows]
    paper_scores.write(folder / "truthfulness" / "choices.jsonl", marks)
    paper_scores.SAMPLE = folder
    return load_model(path, "float32"), load_tokenizer(path), rows


def by_hand(model: Any, tokenizer: Any, row: dict[str, Any], text: str) -> float:
    """log p of an answer with its end, token by token."""
    turns = [*row["prompt"], {"role": "assistant", "content": text}]
    before = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    while whole[-1] not in tokenizer.all_special_ids:  # a line end after the turn's end is not asked for
        whole = whole[:-1]
    with torch.no_grad():
        logs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logs[at - 1, whole[at]]) for at in range(len(before), len(whole)))


def test_likelihoods_of_choices(asked: tuple[Any, Any, list[dict[str, Any]]]) -> None:
    model, tokenizer, rows = asked
    targets = paper_scores.read(paper_scores.SAMPLE / "truthfulness" / "choices.jsonl")[0]["mc1_targets"]
    for row, (mc1, mc2) in zip(
        rows,
        zip(
            paper_scores.truthfulqa_mc1(model, tokenizer, rows),
            paper_scores.truthfulqa_mc2(model, tokenizer, rows),
        ),
    ):
        likely = {text: by_hand(model, tokenizer, row, text) for text in targets}
        best = max(likely, key=lambda text: likely[text])
        assert mc1 == targets[best]
        weights = {text: math.exp(value) for text, value in likely.items()}
        true = sum(weight for text, weight in weights.items() if targets[text])
        assert mc2 == pytest.approx(true / sum(weights.values()), rel=1e-4)


def test_instructions_are_checked(
    asked: tuple[Any, Any, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    model, tokenizer, rows = asked
    checks = [
        {"id": "q0", "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"id": "q1", "prompt": "p", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]},
    ]
    paper_scores.write(paper_scores.SAMPLE / "instruction" / "checks.jsonl", checks)
    monkeypatch.setattr(
        paper_scores, "generate", lambda *_, **__: ["no comma in here", "this is not capital"]
    )
    assert paper_scores.ifeval(model, tokenizer, rows) == [1.0, 0.0]


def test_marks_are_brought_and_marked_rows_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extras, sample = tmp_path / "extras", tmp_path / "sample"
    ids = {"a": "punctuation:no_comma", "b": min(paper_scores.UNMARKED), "c": "punctuation:no_comma"}
    checks = [{"id": row, "instruction_id_list": [kind]} for row, kind in ids.items()]
    paper_scores.write(extras / "instruction" / "ifeval_checks.jsonl", checks)
    for name in ("truthfulness/truthfulqa_mc", "coding/humaneval_full", "coding/mbpp_tests"):
        paper_scores.write(extras / f"{name}.jsonl", [{"id": name}])
    paper_scores.write(sample / "instruction" / "test.jsonl", [{"id": row} for row in ("x", "b", "c", "a")])
    monkeypatch.setattr(paper_scores, "SAMPLE", sample)
    paper_scores.bring(extras)
    rows = [row["id"] for row in paper_scores.read(sample / "instruction" / "test.jsonl")]
    assert rows == ["c", "a", "x", "b"]
    assert capsys.readouterr().out.startswith("2 rows of ")
    assert len(paper_scores.read(sample / "coding" / "tests.jsonl")) == 2


def test_a_table_of_scores() -> None:
    rows = {"base": [0, 0, 0, 0, 1], "joint": [1, 1, 0, 1, 1], "ideal": [1, 1, 1, 1, 1]}
    found = {
        model: {"s": from_rows("s", {str(n): float(v) for n, v in enumerate(values)})}
        for model, values in rows.items()
    }
    table = compared(found)["s"]
    assert table["informative"]  # joint's interval is above zero
    assert table["models"]["joint"]["mean"] == pytest.approx(0.8)
    assert table["models"]["ideal"]["minus_joint"]["mean"] == pytest.approx(0.2)
    half = 2.7764 * math.sqrt(0.2) / math.sqrt(5)  # five differences, one of them 1: standard deviation 0.447
    assert table["models"]["ideal"]["minus_joint"]["interval"] == pytest.approx(
        [0.2 - half, 0.2 + half], abs=1e-3
    )
    found["joint"] = found["base"]
    assert not compared(found)["s"]["informative"]
    assert json.dumps(compared(found))
