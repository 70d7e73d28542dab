"""The loaders under hypothesis: whatever comes in is loaded whole or refused by one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from idealmix import config
from idealmix.data import files
from idealmix.data.pools import load_pool
from idealmix.data.strict_json import DEEPEST, strict_json
from idealmix.data.tokenise import Encoder
from idealmix.errors import InputError

SAME_FOLDER = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
COLUMNS = st.sampled_from(
    [
        "id",
        "messages",
        "tools",
        "conversations",
        "prompt",
        "completion",
        "response",
        "instruction",
        "input",
        "output",
        "system",
        "text",
        "x",
    ]
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", "robot"]),
        "content": VALUES | st.text(),
    },
    optional={"tool_calls": VALUES, "name": VALUES},
)
ROWS = st.dictionaries(COLUMNS, VALUES | st.text() | st.lists(TURN, max_size=4), max_size=5)


@pytest.mark.parametrize("loader", list(fuzz.CHECKS))
@given(seed=st.integers(0, 2**40))
@SAME_FOLDER
def test_a_mutated_file_is_loaded_or_refused(tmp_path: Path, loader: str, seed: int) -> None:
    fuzz.one(loader, seed, tmp_path)


@given(rows=st.lists(ROWS, max_size=4), length=st.sampled_from([2, 60, 512]))
@SAME_FOLDER
def test_any_row_is_kept_counted_or_refused(tmp_path: Path, rows: list[object], length: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    try:
        pool = load_pool("x", config.Source(path=str(path)), Encoder(fuzz.tokenizer(), length), seed=0)
    except InputError:
        return
    assert pool.report.read == len(rows) == len(pool) + sum(pool.report.dropped.values())


@given(value=VALUES, spare=st.text(max_size=3))
@settings(max_examples=200, deadline=None)
def test_strict_json_reads_what_is_written(value: object, spare: str) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        with pytest.raises(ValueError, match="is not JSON"):
            strict_json(json.dumps(value))
        return
    assert strict_json(text) == value


@pytest.mark.parametrize("levels", [DEEPEST, DEEPEST + 1, 100_000])
def test_strict_json_counts_levels(levels: int) -> None:
    text = "[" * levels + "]" * levels
    if levels <= DEEPEST:
        strict_json(text)
    else:
        with pytest.raises(ValueError, match="levels deep"):
            strict_json(text)
    assert strict_json(json.dumps("[" * levels)) == "[" * levels  # brackets of a text are no levels


def test_what_looks_odd_is_no_mistake(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, blank lines, right-to-left text, and a cut in the middle of an emoji."""
    texts = [
        "plain",
        "\u05e9\u05dc\u05d5\u05dd \u202e",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 3,
        "\x7f \u0085 \u2028",
    ]
    lines = [json.dumps({"prompt": text, "response": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode() + b"\r\n")
    whole = Encoder(fuzz.tokenizer(), 512)
    pool = load_pool("x", config.Source(path=str(path)), whole, seed=0)
    assert [pool.conversation(n).messages[1]["content"] for n in range(len(pool))] == texts
    emoji = len(whole.encode(pool.conversation(2)).input_ids)
    for length in range(emoji - 12, emoji):  # each of an emoji's bytes is a token here
        cut = load_pool("x", config.Source(path=str(path)), Encoder(fuzz.tokenizer(), length), seed=0)
        assert (cut.report.read, cut.report.kept, cut.report.truncated) == (4, 4, 1)
        assert cut.conversation(2).messages[1]["content"] == texts[2]  # written as it was


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_may_be_as_long_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = "x" * 40
    row = json.dumps({"text": text}) if name == "a.jsonl" else text
    path = tmp_path / name
    path.write_text(("" if name == "a.jsonl" else "text\n") + row + "\n", encoding="utf-8")
    monkeypatch.setattr(files, "LONGEST_LINE", len(row) + 1)
    assert [found["text"] for _, found in files.read_file(path)] == [text]
    monkeypatch.setattr(files, "LONGEST_LINE", len(row))
    with pytest.raises(InputError, match="this line is longer"):
        list(files.read_file(path))
