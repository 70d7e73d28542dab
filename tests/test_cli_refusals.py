"""Options that a command cannot use are refused before anything is read or written, and a refusal leaves no run behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rounds_helpers import idealmix, project

from idealmix import configfile
from idealmix.data.leaks import alike, check_leaks
from idealmix.diagnose.command import diagnose
from idealmix.errors import InputError
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.watch import Silent


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("compare", ["--methods", ""], "--methods: no method is named"),
        ("compare", ["--methods", " , "], "--methods: no method is named"),
        ("influence", ["--model", "x", "--mixture", "nope.json"], "--mixture: there is no file nope.json"),
        ("diagnose", ["--conflict", "--rows", "5"], "--rows: --conflict does not use it"),
        ("diagnose", ["--noise", "--trainings", "0"], "--trainings: --noise does not use it"),
        ("diagnose", ["--reference", "--seeds", "2"], "--seeds: --reference does not use it"),
    ],
)
def test_options_that_nothing_would_use(command: str, options: list[str], says: str, tmp_path: Path) -> None:
    path = project(tmp_path)
    shown = idealmix(command, str(path), *options)
    assert shown.returncode == 2, shown.stderr
    assert says in shown.stderr
    assert "To mend" in shown.stderr
    assert not (tmp_path / "run").exists()


def test_a_report_of_no_run(tmp_path: Path) -> None:
    shown = idealmix("report", str(tmp_path))
    assert shown.returncode == 2
    assert "no run has ended in this folder" in shown.stderr
    assert "idealmix view" in shown.stderr


def test_a_refused_question_holds_no_folder(tmp_path: Path) -> None:
    """The mended configuration is not another run's."""
    path = project(tmp_path)
    wrong = configfile.load(path, ["allocation.budget.size=100000000"])
    with pytest.raises(InputError, match="the pools give"):
        diagnose(wrong, "conflict", Silent())
    assert not (Path(wrong.output) / "config.yaml").exists()


def test_one_file_for_two_sets(tmp_path: Path) -> None:
    path = project(tmp_path)
    config = configfile.load(path)
    names = sorted(config.domains)
    twice = {f"domains.{names[0]}.path": config.domains[names[1]].path}
    told = configfile.load(path, [f"{key}={json.dumps(value)}" for key, value in twice.items()])
    inputs = load_inputs(told, Silent())
    ((name, text),) = alike({name: inputs.domains[name] for name in names[:2]})
    assert f"prompts stand in domains.{({*names[:2]} - {name}).pop()} too" in text
    assert any("influence cannot tell the two apart" in one for one in inputs.warnings)
    assert not alike(load_inputs(config, Silent()).domains)
    pool = inputs.domains[names[0]]
    with pytest.raises(InputError) as caught:
        check_leaks({"a": pool}, {}, {"b": pool})
    assert caught.value.what.count(pool.ids[0]) == 1  # the same rows are listed once
    assert "give one of them another" in (caught.value.mend or "")
