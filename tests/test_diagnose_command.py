"""`idealmix diagnose` as a user meets it: a folder without a run, a finished run, refusals, texts that are markup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import WORDS, project, swap, write_rows
from typer.testing import CliRunner

from idealmix import configfile
from idealmix.cli import app
from idealmix.data.conversation import Conversation
from idealmix.diagnose.checkpoint import find
from idealmix.diagnose.command import diagnose
from idealmix.diagnose.noise import shortened
from idealmix.diagnose.page import build
from idealmix.errors import InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds.loop import run_rounds
from idealmix.rounds.watch import Silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without a run; one row of it holds markup."""
    folder = tmp_path_factory.mktemp("project")
    project(folder, objective="progress")
    hostile = [swap(a, b, "<script>alert(1)</script>") for a in WORDS for b in WORDS[:3]]
    write_rows(folder / "hostile" / "train.jsonl", hostile)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(
        text.replace("domains:\n", "domains:\n  hostile: hostile/train.jsonl\n"), encoding="utf-8"
    )
    return folder


def ask(folder: Path, question: str, rows: int | None = None, **seeds: int) -> dict[str, Any]:
    settings = configfile.load(folder / "config.yaml", [])
    answer, page = diagnose(settings, question, Silent(), rows, **seeds)
    assert page.is_file()
    stored = json.loads((page.parent / f"{question}.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(answer.to_json()))
    return stored


def test_without_a_run_round_0_is_trained_and_is_the_runs_own(folder: Path) -> None:
    found = ask(folder, "conflict")
    pairs = {(r["domain"], r["reference"]) for r in found["figures"]["relations"]}
    assert pairs == {(d, q) for d in ("hostile", "count", "swap") for q in ("count", "swap")}
    trained = folder / "run" / "round-0" / "train" / "record.json"
    before = trained.read_bytes()
    noise = ask(folder, "noise", 4)
    assert noise["figures"]["domains"]["count"]["rows"] == 140  # all of the pool, drawn or not
    for lists in noise["figures"]["listed"].values():
        assert all(len(rows) <= 4 for rows in lists.values())
        assert all(row["influence"] > 0 for row in lists["harmful"])
        losses = [row["loss"] for row in lists["high_loss"]]
        assert losses == sorted(losses, reverse=True)

    result = run_rounds(configfile.load(folder / "config.yaml", []), Silent())
    assert trained.read_bytes() == before
    assert (result["base"]["objective"]["value"], result["rounds"][0]["objective"]["value"]) == (0, -1)
    assert ask(folder, "conflict")["facts"]["Round"].startswith(f"{result['best']},")

    parts = ask(folder, "reference")["figures"]
    assert parts["reference_rows"] == {"count": 20, "swap": 20}
    assert parts["sizes"]["0.25"]["rows"] == {"count": 5, "swap": 5}
    assert parts["sizes"]["0.5"]["cosine"] > parts["sizes"]["0.1"]["cosine"]
    answered = ask(folder, "stability", seeds=1, trainings=1)
    firm = answered["figures"]
    (_, columns, rows), *_ = answered["tables"]
    assert {len(row) for row in rows} == {len(columns)}
    dampings = {f"damping × {times}" for times in ("0.01", "0.1", "10", "100")}
    assert {*dampings, "rows and labels, seed 1", "training, seed 1"} <= set(firm["agreement"])
    # another response has no damping: the sweep is of the converged one, beside it
    finite = configfile.load(folder / "config.yaml", ["influence.response=finite"])
    beside, _ = diagnose(finite, "stability", Silent(), None, seeds=0, trainings=0)
    swept = {name for name in beside.figures["agreement"] if "damping" in name}
    assert swept == {f"converged, damping × {times}" for times in ("0.01", "0.1", "1", "10", "100")}
    other = 1 - result["best"]
    measured = result["rounds"][other]["influence"] is not None
    assert (f"round {other}" in firm["agreement"]) == measured
    assert all(abs(sum(shares.values()) - 1) < 1e-9 for shares in firm["shares"].values())

    page = (folder / "run" / "diagnose" / "diagnosis.html").read_text(encoding="utf-8")
    assert "Who helps and who hurts whom" in page
    assert "Helpful and harmful rows" in page
    assert "<script" not in page

    report = (folder / "run" / "report.html").read_text(encoding="utf-8")
    for question in ("conflict", "noise", "reference", "stability"):
        assert f'id="asked-{question}"' in report
    assert "&lt;script&gt;alert(1)" in report
    assert "<script>alert" not in report
    assert "&lt;script&gt;" in page


def test_a_step_that_is_asked_for_is_the_one_that_the_run_took(folder: Path) -> None:
    settings = configfile.load(folder / "config.yaml", [])
    first = run_rounds(settings, Silent())["rounds"][0]
    at = find(settings, Silent())
    known = replace(at.trainings, tried={0: at.trainings.tried[0]})  # the losses of that time
    step = replace(at.of_round(0), trainings=known).step(InfluenceMatrix.from_json(first["influence"]))
    assert (step.rule, step.m) == ("curves", first["allocation"]["m"])
    assert step.counts == {name: move["after"] for name, move in first["allocation"]["moves"].items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["references.swap.path=count/reference.jsonl"], "references.swap.path"),
        (["seed=7"], "seed: 0 -> 7"),
        (["domains.third=count/train.jsonl"], "domains.third"),
    ],
)
def test_another_configuration_is_not_asked_of_the_run(folder: Path, change: list[str], named: str) -> None:
    with pytest.raises(InputError) as error:
        find(configfile.load(folder / "config.yaml", change), Silent())
    assert named in error.value.what
    as_it_is = [
        "influence.damping=0.01",
        "references.swap.weight=3",
        "objective=relative",
        "allocation.m=0.2",
    ]
    assert find(configfile.load(folder / "config.yaml", as_it_is), Silent()).config.allocation.m == 0.2


def test_a_round_that_is_being_made_anew_is_not_asked(folder: Path) -> None:
    path = folder / "run" / "result.json"
    text = path.read_text(encoding="utf-8")
    stale = json.loads(text)
    stale["rounds"][0]["counts"]["swap"] += 1
    path.write_text(json.dumps(stale), encoding="utf-8")
    with pytest.raises(InputError, match="round 0 is being made anew"):
        find(configfile.load(folder / "config.yaml", []), Silent())
    path.write_text(text, encoding="utf-8")


def test_one_question_at_a_time(folder: Path) -> None:
    for flags, said in (([], "nothing"), (["--noise", "--conflict"], "more than one question")):
        done = CliRunner().invoke(app, ["diagnose", str(folder / "config.yaml"), *flags])
        assert isinstance(done.exception, InputError)
        assert said in done.exception.what
        assert "--conflict" in str(done.exception.mend)


def test_texts_are_one_short_line() -> None:
    messages = [
        {"role": "user", "content": "first\n\n line " + "x" * 500},
        {"role": "assistant", "content": "an\x1b[31m answer"},
    ]
    text = shortened(Conversation("r", messages))
    assert len(text) < 130
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.endswith("an [31m answer")
    assert shortened(Conversation("r", [], text="raw\ttext")) == "raw text"


def test_the_page_escapes_names_and_texts() -> None:
    answer = {
        "question": "noise",
        "headline": "<b>x</b>",
        "tables": [["<i>t</i>", ["row", "text"], [["<u>r</u>", "<script>"]]]],
        "notes": [],
        "figures": {},
        "facts": {},
    }
    page = build([answer], "<run>")
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>", "<script", "<run>"))
