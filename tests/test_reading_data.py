"""What reading a source must not do in silence: leave files out, ignore a key, or take text that no file can hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_helpers import pool_from

from idealmix import config
from idealmix.data.formats import Reading
from idealmix.data.materialise import export_jsonl
from idealmix.data.mixture import draw
from idealmix.errors import InputError

ROW = {"prompt": "next 1", "response": "2"}


def lines(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_left_out_beside_those_of_a_split_are_named(tmp_path: Path) -> None:
    lines(tmp_path / "train_math.jsonl", ROW)
    lines(tmp_path / "deep" / "algebra.jsonl", ROW)
    lines(tmp_path / "test.jsonl", ROW)  # another split: asked for by its own name, and not worth a word
    pool = pool_from(tmp_path)
    assert len(pool) == 1
    (said,) = pool.report.warnings
    assert "no split is in the name of deep/algebra.jsonl" in said
    assert "test.jsonl" not in said


def test_many_files_left_out_are_counted(tmp_path: Path) -> None:
    for number in range(13):
        lines(tmp_path / f"{number:02}.jsonl", ROW)
    lines(tmp_path / "train.jsonl", ROW)
    (said,) = Reading(config.Source(path=str(tmp_path))).warnings
    assert said.endswith("09.jsonl and 3 more")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"split": "test"}, "split would"),
        ({"name": "main"}, "name would"),
        ({"name": "a", "split": "b"}, "name and split would"),
    ],
)
def test_a_single_file_takes_no_split_and_no_name(tmp_path: Path, given: dict, named: str) -> None:
    path = lines(tmp_path / "a.jsonl", ROW)
    with pytest.raises(InputError, match=named):
        Reading(config.Source(path=str(path), **given))
    assert len(list(Reading(config.Source(path=str(path), split="train")))) == 1


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"id": "\ud800", **ROW}, "'id' holds half"),
        ({"\ud800": 1, **ROW}, r"the column '\\ud800' holds half"),
        ({"messages": [{"role": "assistant", "content": "a", "\ud800": 1}]}, r"'\\ud800' cannot be written"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(
    tmp_path: Path, row: dict, named: str
) -> None:
    path = lines(tmp_path / "a.jsonl", ROW, row)
    with pytest.raises(InputError, match=rf"a\.jsonl:2.*: {named}"):
        list(Reading(config.Source(path=str(path))))


def test_repeats_take_no_id_that_the_pool_has(tmp_path: Path) -> None:
    names = ["a", "a#2", "b"]
    pool = pool_from(lines(tmp_path / "p.jsonl", *({"id": name, **ROW} for name in names)))
    folder = export_jsonl(
        draw({"math": pool}, {"math": 9}, 0, max_repeats=3), tmp_path / "out", {"math": pool}
    )
    ids = [json.loads(line)["id"] for line in (folder / "math.jsonl").open(encoding="utf-8")]
    assert sorted(ids) == ["a", "a#2", "a#2#2", "a#2#3", "a#3", "a#4", "b", "b#2", "b#3"]
