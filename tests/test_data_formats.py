"""Every accepted format and row shape is read; every wrong one is refused with its place."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from idealmix import config
from idealmix.data.conversation import Conversation
from idealmix.data.formats import Reading
from idealmix.errors import InputError

NOON = datetime.datetime(2020, 1, 1, 12)
ROWS = [{"prompt": f"Question {n}?", "response": f"Answer {n}, “quoted”,\nsecond line"} for n in range(3)]
ASKED = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Hello"}


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path | str, **source: object) -> list[Conversation]:
    return list(Reading(config.Source(path=str(path), **source)))


def one(tmp_path: Path, row: dict) -> Conversation:
    return read(lines(tmp_path / "one.jsonl", [row]))[0]


def said(rows: list[Conversation]) -> list[str]:
    return [row.messages[-1]["content"] for row in rows]


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def saved(folder: Path, kind: str) -> Path:
    table = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict(train=table, test=table.select([0])) if kind == "splits" else table).save_to_disk(
        str(folder)
    )
    return folder


def parquet_file(path: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


WRITERS = {
    "jsonl": lambda folder: lines(folder / "a.jsonl", ROWS),
    "json list": lambda folder: _text(folder / "a.json", json.dumps(ROWS)),
    "json lines named json": lambda folder: lines(folder / "b.json", ROWS),
    "json under a key": lambda folder: _text(folder / "c.json", json.dumps({"data": ROWS})),
    "byte order mark and blank lines": lambda folder: _text(
        folder / "d.jsonl", "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    ),
    "csv": lambda folder: write_csv(folder / "a.csv", ROWS),
    "parquet": lambda folder: parquet_file(folder / "a.parquet"),
    "folder of files": lambda folder: _folder(folder),
    "save_to_disk": lambda folder: saved(folder / "saved", "one"),
    "save_to_disk with splits": lambda folder: saved(folder / "saved", "splits"),
}


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _folder(folder: Path) -> Path:
    lines(folder / "train-00000-of-00002.jsonl", ROWS[:2])
    lines(folder / "train-00001-of-00002.jsonl", ROWS[2:])
    lines(folder / "test.jsonl", ROWS[:1])
    return folder


@pytest.mark.parametrize("writer", WRITERS)
def test_formats_give_the_same_rows(tmp_path, writer):
    expected = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        for row in ROWS
    ]
    rows = read(WRITERS[writer](tmp_path))
    assert [row.messages for row in rows] == expected
    # ids come from the content, so the format does not matter
    assert [row.id for row in rows] == [row.id for row in read(lines(tmp_path / "same.jsonl", ROWS))]


def test_a_downloaded_dataset_repository_goes_through_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    lines(folder / "part_a.jsonl", ROWS[:2])
    lines(folder / "part_b.jsonl", ROWS[2:])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: part_a.jsonl\n"
        "- config_name: b\n  data_files:\n  - split: test\n    path: part_b.jsonl\n---\n"
    )
    assert said(read(folder, name="a")) == [row["response"] for row in ROWS[:2]]
    assert said(read(folder, name="b", split="test")) == [ROWS[2]["response"]]
    with pytest.raises(InputError, match="configuration 'c'"):
        read(folder, name="c")


def test_a_hub_name_goes_to_load_dataset(monkeypatch):
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read("owner/rows", name="main", split="test")) == 3
    assert asked == [("owner/rows", "main", "test")]


def test_a_hub_name_that_does_not_load(monkeypatch):
    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/nothing' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="doesn't exist on the Hub"):
        read("owner/nothing")


SHAPES = [
    ({"messages": [ASKED, SAID]}, [ASKED, SAID]),
    ({"messages": json.dumps([ASKED, SAID])}, [ASKED, SAID]),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None}, SAID]},
        [ASKED, SAID],
    ),
    ({"prompt": "Hi", "completion": "Hello"}, [ASKED, SAID]),
    ({"prompt": [ASKED], "completion": [SAID]}, [ASKED, SAID]),
    ({"prompt": [ASKED], "completion": "Hello"}, [ASKED, SAID]),
    ({"query": "Hi", "response": "Hello"}, [ASKED, SAID]),
    ({"prompt": "Hi", "response": "Hello", "system": "S"}, [{"role": "system", "content": "S"}, ASKED, SAID]),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, [ASKED, SAID]),
    ({"instruction": "Hi", "input": "4", "output": "Hello"}, [{"role": "user", "content": "Hi\n\n4"}, SAID]),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [ASKED, SAID]),
    ({"conversations": [ASKED, SAID]}, [ASKED, SAID]),
    # an answer that is itself a JSON list stays a string
    (
        {"prompt": "Hi", "response": '[{"role": "user"}]'},
        [ASKED, {"role": "assistant", "content": '[{"role": "user"}]'}],
    ),
]


@pytest.mark.parametrize(("row", "messages"), SHAPES)
def test_shapes(tmp_path, row, messages):
    assert one(tmp_path, row).messages == messages


def test_raw_text(tmp_path):
    row = one(tmp_path, {"text": "It rains."})
    assert (row.text, row.messages) == ("It rains.", [])


def test_tool_calls_become_objects(tmp_path):
    function = {"name": "f", "arguments": '{"x": 1}'}
    expected = [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
    ]
    openai = [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = one(tmp_path, {"messages": openai, "tools": json.dumps(tools)})
    assert row.messages[1] == {"role": "assistant", "tool_calls": expected}
    assert row.tools == tools
    flat = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": json.dumps(function)}]
    assert one(tmp_path, {"conversations": flat}).messages[1]["tool_calls"] == expected


def test_parquet_nulls_inside_objects_are_fill_and_not_content(tmp_path):
    calls = [
        {"function": {"name": "f", "arguments": {"x": 1}}},
        {"function": {"name": "g", "arguments": {"y": 2}}},
    ]
    rows = [{"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}]} for call in calls]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [
        row.messages[1]["tool_calls"][0]["function"]["arguments"] for row in read(tmp_path / "a.parquet")
    ]
    assert found == [{"x": 1}, {"y": 2}]


def test_ids(tmp_path):
    rows = read(lines(tmp_path / "a.jsonl", [{**ROWS[0], "id": 7}, ROWS[1], ROWS[1], ROWS[2]]))
    assert rows[0].id == "7"
    assert rows[2].id == f"{rows[1].id}-2"
    assert len({row.id for row in rows}) == 4
    with pytest.raises(InputError, match=r"a.jsonl:3: the id '7' is given twice; .*a.jsonl:1"):
        read(lines(tmp_path / "a.jsonl", [{**ROWS[0], "id": 7}, ROWS[1], {**ROWS[2], "id": "7"}]))


def test_what_is_not_used_is_kept_for_the_report(tmp_path):
    reading = Reading(
        config.Source(path=str(lines(tmp_path / "a.jsonl", [{**ROWS[0], "source": "x"}, {"text": "a"}])))
    )
    list(reading)
    assert reading.unused == {"source"}
    assert reading.shapes == {"prompt, response": 1, "text": 1}


def test_what_turns_hold_beside_their_text_is_told_too(tmp_path):
    asked = {"from": "human", "value": "a", "weight": 0, "time": None}
    said = {"from": "gpt", "value": "b", "weight": 1, "score": 3}
    reading = Reading(
        config.Source(path=str(lines(tmp_path / "a.jsonl", [{"conversations": [asked, said]}])))
    )
    (row,) = reading
    assert row.messages == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert reading.unused == {"conversations.score"}


WRONG = [
    ({"question": "a", "reply": "b"}, r"one.jsonl:1: no accepted columns; found: 'question', 'reply'"),
    ({"prompt": "a", "response": None}, "'response' is null"),
    ({"prompt": "a", "response": "  \n"}, "'response' is empty"),
    ({"prompt": "a", "response": 4}, "'response' is a number, not a string"),
    ({"prompt": "a", "response": "\ud800"}, "surrogate"),
    ({"prompt": "a", "response": "b", "id": None}, "'id' is None"),
    ({"text": ""}, "'text' is empty"),
    ({"messages": []}, "an empty list"),
    ({"messages": "Hello"}, "'messages' is str, not a list"),
    ({"messages": [ASKED]}, "no assistant turn"),
    ({"messages": [ASKED, {"role": "assistant", "content": ""}]}, "message 2: 'content' is empty"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "unknown role 'robot'"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "of type 'image'"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"x": 1}]}]}, "without a function's name"),
    ({"messages": [ASKED, SAID], "tools": "f"}, "'tools' is str"),
    ({"conversations": [{"from": "nobody", "value": "a"}]}, "unknown speaker 'nobody'"),
    ({"conversations": [{"text": "a"}]}, "a turn of 'conversations'"),
    ({"messages": [ASKED, {**SAID, "weight": 0}]}, "message 2: an assistant turn has the weight 0;"),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.0}]},
        "the weight 0.0",
    ),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_wrong_rows_name_their_place(tmp_path, row, message):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert "one.jsonl:1" in str(error.value)


FILES = [
    ("a.jsonl", b"", "no rows"),
    ("a.json", b"[]", "no rows"),
    ("a.csv", b"prompt,response\n", "no rows"),
    ("a.jsonl", b'{"text": "a"}\nnot json\n', r"a.jsonl:2: not JSON"),
    ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a.jsonl:2: a row must be a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n', r"a.jsonl:2: not UTF-8: byte 0xe9 at position 14"),
    ("a.json", b'[{"text": "a"},\n oops]', r"a.json:2: not JSON"),
    ("a.csv", b"prompt,response\na,caf\xe9\n", "not UTF-8"),
    ("a.csv", b"prompt,response\na,b\nc\n", r"a.csv:3: the row does not have the header's 2 fields"),
    ("a.csv", b"prompt,response\na,b,c\n", r"a.csv:2"),
    ("a.csv", b"prompt,prompt\na,b\n", "named twice"),
    ("a.parquet", b"no parquet at all", "not a readable Parquet file"),
    ("a.txt", b"a", "files of type '.txt' are not read"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_wrong_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path / "folder"):
        with pytest.raises(InputError, match="no such file or folder"):
            read(path)
    with pytest.raises(InputError, match="holds no file of an accepted type"):
        read(tmp_path)
    lines(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no file is named after the split 'train'; there are: test.jsonl"):
        read(tmp_path)
    with pytest.raises(InputError, match="no split 'validation'"):
        read(saved(tmp_path / "saved", "splits"), split="validation")


def test_conversations_survive_storage():
    row = Conversation("a", [ASKED, SAID], [{"type": "function"}])
    assert Conversation.from_json("a", row.to_json()) == row
    assert row.prompt == [ASKED]
    assert row.answer == SAID
    text = Conversation("b", [], None, "It rains.")
    assert Conversation.from_json("b", text.to_json()) == text
    assert text.answer is None


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (
            {"messages": [ASKED, {**SAID, "when": NOON}]},
            r"row 1, message 2: 'when' cannot be written as JSON",
        ),
        ({"messages": [ASKED, {**SAID, "raw": b"x"}]}, r"row 1, message 2: 'raw' cannot be written as JSON"),
        ({"messages": [ASKED, SAID], "tools": [{"name": "f", "when": NOON}]}, r"row 1: 'tools' cannot"),
    ],
)
def test_values_that_json_does_not_have_are_refused_with_their_place(tmp_path, row, place):
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=place):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_may_not_be_read_is_an_input_error(tmp_path, name):
    path = tmp_path / name
    # a file for everyone to open, whose first byte cannot be read, by root neither
    path.symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
