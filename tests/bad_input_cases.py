"""The wrong configurations, data files and models of docs/bad-input.md: how each is made, and what it gets.

`python tests/bad_input_cases.py` writes the page's table.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Change = Callable[[Path], list[str]]
"""Makes the fault in a project's folder; returns further arguments of the command."""

ROW = {"prompt": "next 1 2 3", "response": "2 3 4"}
TRAIN = "count/train.jsonl"


@dataclass(frozen=True)
class Case:
    """A mistake, and a part of the one message that it gets.

    Attributes:
        kind: configuration, data, references or model.
        what: the mistake in words.
        says: what stands in the message.
        change: makes it.
        trains: the mistake shows only when the model's weights are needed.
        status: the exit status; 1 where the input is not what is wrong for certain.
    """

    kind: str
    what: str
    says: str
    change: Change
    trains: bool = False
    status: int = 2


CASES: list[Case] = []


def case(kind: str, what: str, says: str, change: Change, trains: bool = False, status: int = 2) -> None:
    CASES.append(Case(kind, what, says, change, trains, status))


# --- configurations ------------------------------------------------------------------------------------------


def added(text: str) -> Change:
    """Append YAML to the configuration."""

    def change(folder: Path) -> list[str]:
        path = folder / "config.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in ("tests", "scores", "influence"):
            content.pop(key)
        path.write_text(f"{yaml.safe_dump(content)}\n{text}\n", encoding="utf-8")
        return []

    return change


def whole(content: bytes) -> Change:
    """Another file in the configuration's place."""

    def change(folder: Path) -> list[str]:
        (folder / "config.yaml").write_bytes(content)
        return []

    return change


def with_set(*overrides: str) -> Change:
    return lambda folder: [part for each in overrides for part in ("--set", each)]


def config(what: str, says: str, change: Change | str, trains: bool = False) -> None:
    """A wrong configuration; a string is one --set override."""
    case("configuration", what, says, with_set(change) if isinstance(change, str) else change, trains)


def gone(folder: Path) -> list[str]:
    (folder / "config.yaml").unlink()
    return []


def as_folder(folder: Path) -> list[str]:
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    return []


def bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines).encode()


config("no such file", "this configuration file does not exist", gone)
config("an output below a file", "config.yaml is a file, not a folder", "output=config.yaml/run")
config("a misspelt block in an override", "--set, traning: unknown key 'traning'", "traning.epochs=2")
config(
    "an override that the data refuse", "--set, allocation.budget.size", "allocation.budget.size=100000000"
)
config("a block that is nothing", "tests.count: a block of keys belongs here", "tests.count=null")
config("a folder in its place", "cannot read this configuration", as_folder)
config("an empty file", "this configuration is empty", whole(b""))
config("only comments", "this configuration is empty", whole(b"# nothing\n"))
config("a list", "a configuration is a mapping of keys to values", whole(b"- a\n- b\n"))
config("one word", "a configuration is a mapping of keys to values", whole(b"hello\n"))
config("not UTF-8", "cannot read this configuration", whole("model: caf\u00e9\n".encode("latin-1")))
config("UTF-16", "cannot read this configuration", whole("model: m\n".encode("utf-16")))
config("binary", "cannot read this configuration", whole(bytes(range(256))))
config("an escape that is no letter", "not valid YAML", whole(b'model: "\\UFFFFFFFF"\n'))
config("an override that is no letter", "the value is not YAML", 'tests="\\UFFFFFFFF"')
config("half of a surrogate pair", "half of a surrogate pair", added('objective: "a\\ud800"'))
config("half of a surrogate pair in a key", "half of a surrogate pair", added('"a\\ud800": 1'))
config("a control character", "not valid YAML", whole(b"model: a\x07b\n"))
config("not YAML", "not valid YAML", whole(b"model: [a\n"))
config("a tab as indentation", "not valid YAML", whole(b"training:\n\tepochs: 1\n"))
config("two documents", "not valid YAML", whole(b"model: a\n---\nmodel: b\n"))
config("a key twice", "the key 'seed' is given twice", added("seed: 1\nseed: 2"))
config("a key of a block twice", "the key 'm' is given twice", added("influence: {}\nconstraints: {m: {max_increase: 1}, m: {max_increase: 2}}"))  # fmt: skip
config("a list as a key", "a key must be text", added("constraints: {? [a] : b}"))
config("nested 50 levels", "nested too deeply", added("tests: " + "[" * 50 + "]" * 50))
config("nested 5,000 levels", "nested too deeply", added("tests: " + "[" * 5000 + "]" * 5000))
config("aliases that unfold to 10^12 values", "unfolds to more than 100,000 values", whole(bomb()))
config("an alias inside of itself", "nested too deeply", added("tests: &t [*t]"))
config("a Python object's tag", "seed: ", added("seed: !!python/object/apply:os.system [id]"))
config("a number of 5,000 digits", "cannot read the value", added("seed: " + "9" * 5000))
config("an impossible date", "cannot read the value", added("seed: 2024-13-45"))
config("an unknown key", "did you mean 'training'?", added("trainning: {epochs: 1}"))
config("an unknown key of a block", "did you mean 'curvature'?", "influence.curvatur=ekfac")
config("an unknown key of the trainer", "did you mean 'learning_rate'?", "training.lerning_rate=1")
config("a key in right-to-left script", "unknown key '\u05d0\u05d1\u05d2'", added("\u05d0\u05d1\u05d2: 1"))
config("no model", "model: this key is required", whole(b"domains: {a: a.jsonl}\nreferences: {a: r.jsonl}\n"))
config("no domains", "domains", "domains={}")
config("no references", "references", "references={}")
config("domains as a list", "domains", "domains=[a, b]")
config("a domain without a path", "domains.count", "domains.count={rows: 3}")
config("a domain's path is a number", "domains.count", "domains.count=3")
config("a name that leaves the folder", "a name is 1 to 64 bytes", added("tests: {../../up: t.jsonl}"))
config("a name with a slash", "a name is 1 to 64 bytes", added("tests: {a/b: t.jsonl}"))
config("an empty name", "a name is 1 to 64 bytes", added("tests: {'': t.jsonl}"))
config("a name of blanks", "a name is 1 to 64 bytes", added("tests: {'  ': t.jsonl}"))
config("a name with a line break", "a name is 1 to 64 bytes", added('tests: {"a\\nb": t.jsonl}'))
config("a name of HTML", "a name is 1 to 64 bytes", added("tests: {'<script>': t.jsonl}"))
config("a name that turns the line round", "a name is 1 to 64 bytes", added('tests: {"a\\u202Eb": t.jsonl}'))
config("a name of 65 bytes", "a name is 1 to 64 bytes", added("tests: {" + "n" * 65 + ": t.jsonl}"))
config(
    "names that differ only by case",
    "differs from 'Count' only by case",
    added("tests: {Count: t.jsonl, count: u.jsonl}"),
)
config("an empty path", "the path is empty", added("tests: {a: ' '}"))
config("a zero byte in a path", "a path without control characters", added('tests: {a: "t\\0.jsonl"}'))
config("the home of nobody", "home directory", added("tests: {a: '~nobody-of-that-name/t.jsonl'}"))
config("a path of 5,000 letters", "the path is too long", added("tests: {a: " + "p" * 5000 + ".jsonl}"))
config("an output with a zero byte", "output", added('output: "a\\0b"'))
case(
    "configuration",
    "the output is a file",
    "a file stands where the run folder should be",
    with_set("output=config.yaml"),
    True,
    1,
)
config("a negative weight", "references.count.weight", "references.count.weight=-1")
config(
    "every weight 0", "every weight is 0", with_set("references.count.weight=0", "references.swap.weight=0")
)
config("a weight that is not a number", "references.count.weight", "references.count.weight=.nan")
config("an infinite weight", "references.count.weight", "references.count.weight=.inf")
config("zero rows of a source", "domains.count.rows", "domains.count.rows=0")
config("epochs as a word", "training.epochs", "training.epochs=many")
config("no epochs", "training.epochs", "training.epochs=0")
config("epochs not a number", "training.epochs", "training.epochs=.nan")
config("endless epochs", "training.epochs", "training.epochs=.inf")
config("epochs beyond memory", "more rows than a training can plan", "training.epochs=1e12")
config("a negative learning rate", "training.learning_rate", "training.learning_rate=-1")
config("a batch of nothing", "training.per_device_train_batch_size", "training.per_device_train_batch_size=0")
config("rows of one token", "training.max_length", "training.max_length=1")
config(
    "an unknown schedule",
    "training.lr_scheduler_type: transformers knows no 'steep'",
    "training.lr_scheduler_type=steep",
)
config(
    "an unknown optimiser",
    "training.optim: transformers knows no 'adamw_magic'",
    "training.optim=adamw_magic",
)
config("an unknown tracker", "nowhere is not supported", "training.report_to=nowhere", True)
config("an unknown dtype", "training.dtype", "training.dtype=float8")
config("label smoothing", "label_smoothing_factor cannot be set", "training.label_smoothing_factor=0.1")
config("a seed for the trainer", "seed cannot be set", "training.seed=3")
config("a checkpoint's own code", "trust_remote_code cannot be set", "training.trust_remote_code=true")
config("an outside trainer without a command", "needs training.command", "training.backend=command")
config("a command without its places", "does not contain {train_file}", with_set("training={backend: command, command: 'true'}"))  # fmt: skip
config(
    "a command with an open quote",
    "cannot be split into words",
    with_set('training={backend: command, command: "t \'x {train_file} {output_dir}"}'),
)
config("a command that is not there", "the program cannot be started", with_set("training={backend: command, command: 'no-such-program {train_file} {output_dir}'}"), True)  # fmt: skip
config("adapters on no layer", "cannot be put on the model", "training.lora={target_modules: [nothing]}")
config("adapters of rank 0", "training.lora.r", "training.lora={r: 0}")
config("an unknown curvature", "influence.curvature", "influence.curvature=hessian")
config("layers that do not exist", "nonsense", "influence.layers=nonsense")
config("no damping", "influence.damping", "influence.damping=0")
config("more than all rows sampled", "influence.sample_fraction", "influence.sample_fraction=1.5")
config(
    "finite without its basis",
    "works in ekfac's or kfac's eigenbasis",
    with_set("influence.response=finite", "influence.curvature=identity"),
)
config("m of nothing", "allocation.m", "allocation.m=0")
config("no rounds", "allocation.rounds", "allocation.rounds=0")
config("a million replicates", "that many trainings never end", "allocation.replicates=1000000")
config("a floor above 1", "a share lies between 0 and 1", "allocation.floor=1.5")
config(
    "a floor for nobody",
    "no domain is called 'cuont'; did you mean 'count'?",
    "allocation.floor={cuont: 0.1}",
)
config("floors above the whole", "floor", with_set("allocation.floor={count: 0.7, swap: 0.7}"))
config("a start without a domain", "row counts are missing for swap", "allocation.start={count: 5}")
config("a start of nothing", "nothing to train on", "allocation.start={count: 0, swap: 0}")
config("negative rows", "row counts cannot be negative", "allocation.start={count: -1, swap: 5}")
config("a budget beyond all rows", "short", "allocation.budget.size=100000000")
config("a budget below one row", "too little for one row", "allocation.budget.size=1")
config("a budget of nothing", "allocation.budget.size", "allocation.budget.size=0")
config("an unknown unit", "allocation.budget.unit", "allocation.budget.unit=words")
config("a limit on nobody", "no reference set is called", "constraints={conut: {max_increase: 0.1}}")
config("a negative limit", "constraints.count.max_increase", "constraints={count: {max_increase: -1}}")
config("a score of no test set", "no test set is called", "scores={s: {test: maths, exact_match: x}}")
config(
    "a score of no reference set",
    "no reference set is called",
    "scores={s: {reference: maths, exact_match: x}}",
)
config(
    "a score of a test set and a reference set",
    "either the test set",
    "scores={s: {test: count, reference: count, exact_match: x}}",
)
config(
    "a test set that is to decide",
    "no test set and no task decides",
    "scores={s: {test: count, exact_match: x, max_decrease: 0.1}}",
)
config(
    "a negative limit on a score's fall",
    "scores.s.max_decrease",
    "scores={s: {reference: count, exact_match: x, max_decrease: -1}}",
)
config("a score of two kinds", "exactly one of", "scores={s: {test: count, exact_match: x, callable: 'a:b'}}")
config(
    "a regex that finds no answer",
    "finds no answer in",
    "scores={s: {test: count, exact_match: '#### (.+)'}}",
)
config("a regex that is none", "not a regular expression", "scores={s: {test: count, exact_match: '('}}")
config("a function that is not there", "scores.s", "scores={s: {test: count, callable: 'no_such_module:f'}}")
config("a wrong option of a method", "its options are k", "methods={random: {kk: 1}}")
config("an unknown method", "method", "method=magic")
config("a method that is not there", "method", "method='no_such_module:Magic'")
config(
    "the paper's method with another m",
    "fixes this to 0.15",
    with_set("method=ideal-paper", "allocation.m=0.5"),
)
config("a negative seed", "seed", "seed=-1")
config("a seed of 40 bits", "the largest seed is", "seed=1099511627776")
config("an override without a value", "is not key.path=value", "seed")
config("an override into a number", "is not a block of keys", "training.epochs.a.b=1")
config("an override that is not YAML", "the value is not YAML", "tests=[")
config("an override nested without end", "the value is not YAML", "tests=" + "[" * 20000)

# --- data ----------------------------------------------------------------------------------------------------


def file(name: str, content: bytes) -> Change:
    """A domain in a file of its own."""

    def change(folder: Path) -> list[str]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return ["--set", f"domains.count={name}"]

    return change


def rows(*wrong: Any, good: int = 3) -> Change:
    """Some good rows, then these (bytes as they are, else as JSON)."""
    lines = [json.dumps({"prompt": f"next {n}", "response": "1 2"}).encode() for n in range(good)]
    lines += [row if isinstance(row, bytes) else json.dumps(row).encode() for row in wrong]
    return file("wrong.jsonl", b"\n".join(lines) + b"\n")


def data(what: str, says: str, change: Change) -> None:
    case("data", what, says, change)


def sparse(folder: Path) -> list[str]:
    """A line of 1 GB that takes no space."""
    with (folder / "long.jsonl").open("wb") as stream:
        stream.write(json.dumps(ROW).encode() + b"\n")
        stream.truncate(2**30)
    return ["--set", "domains.count=long.jsonl"]


def sparse_csv(folder: Path) -> list[str]:
    with (folder / "long.csv").open("wb") as stream:
        stream.write(b"prompt,response\n")
        stream.truncate(2**30)
    return ["--set", "domains.count=long.csv"]


def parquet(table: Callable[[Any], Any]) -> Change:
    def change(folder: Path) -> list[str]:
        import pyarrow
        from pyarrow import parquet as files

        files.write_table(table(pyarrow), folder / "wrong.parquet")
        return ["--set", "domains.count=wrong.parquet"]

    return change


def cut_parquet(folder: Path) -> list[str]:
    import pyarrow
    from pyarrow import parquet as files

    path = folder / "cut.parquet"
    files.write_table(pyarrow.table({"text": ["a b"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    return ["--set", "domains.count=cut.parquet"]


def linked(folder: Path) -> list[str]:
    os.symlink(folder / "round.jsonl", folder / "round.jsonl")
    return ["--set", "domains.count=round.jsonl"]


def piped(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.jsonl")
    return ["--set", "domains.count=pipe.jsonl"]


def hollow(folder: Path) -> list[str]:
    (folder / "hollow").mkdir()
    return ["--set", "domains.count=./hollow"]


def splits(folder: Path) -> list[str]:
    (folder / "splits").mkdir()
    (folder / "splits" / "test.jsonl").write_text(json.dumps(ROW))
    return ["--set", "domains.count=./splits"]


NEST = "[" * 3000 + "]" * 3000
USER, SAID = {"role": "user", "content": "next 1"}, {"role": "assistant", "content": "2"}

data("no such file", "no such file or folder", with_set("domains.count=none.jsonl"))
data("an empty file", "there are no rows in it", file("a.jsonl", b""))
data("a file of blank lines", "there are no rows in it", file("a.jsonl", b"\n\r\n  \n"))
data("an empty list", "there are no rows in it", file("a.json", b"[]"))
data("a CSV of a header", "there are no rows in it", file("a.csv", b"prompt,response\n"))
data("a file of another type", "files of type '.xlsx' are not read", file("a.xlsx", b"PK"))
data("a file without a suffix", "files of type 'without a suffix' are not read", file("data", b"{}"))
data("a folder without data", "holds no file of an accepted type", hollow)
data("a folder without that split", "no file is named after the split 'train'", splits)
data("a link to itself", "no such file or folder", linked)
data("a pipe", "no such file or folder", piped)
data("a line that is not JSON", "wrong.jsonl:4: not JSON", rows(b"{not json"))
data("a line that is cut", "wrong.jsonl:4: not JSON", rows(b'{"prompt": "a", "resp'))
data("two rows on a line", "wrong.jsonl:4: not JSON", rows(b'{"text": "a"}{"text": "b"}'))
data("rows without line breaks but returns", "not JSON", file("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r'))
data("a line of Python", "not JSON", rows(b"{'text': 'a'}"))
data("a control character in a string", "not JSON", rows(b'{"text": "a\x01b"}'))
data("zero bytes", "not JSON", rows(b"\0\0\0\0"))
data("a row that is a list", "a row must be a JSON object, and this is a list", rows([1]))
data("a row that is null", "a row must be a JSON object, and this is a NoneType", rows(b"null"))
data("a row that is a number", "a row must be a JSON object, and this is a int", rows(b"7"))
data("Latin-1", "not UTF-8: byte 0xe9 at position", rows('{"text": "caf\u00e9"}'.encode("latin-1")))
data("UTF-16", "not UTF-8: byte 0xff at position 1", file("a.jsonl", '{"text": "a"}\n'.encode("utf-16")))
data("UTF-8 that is cut", "not UTF-8", file("a.jsonl", '{"text": "\u4e2d"}'.encode()[:-3]))
data("gzip", "not UTF-8", file("a.jsonl", b"\x1f\x8b\x08\x00rest"))
data("half of a surrogate pair", "half of a surrogate pair", rows(b'{"prompt": "a", "response": "\\ud83d"}'))
data("half of a pair as a key", "no accepted columns", rows(b'{"\\ud83d": "a"}'))
data(
    "a key twice",
    "the key 'response' is given twice",
    rows(b'{"prompt": "a", "response": "b", "response": "c"}'),
)
data("a key of a message twice", "the key 'content' is given twice", rows(b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}'))  # fmt: skip
data("NaN", "NaN is not JSON", rows(b'{"text": "a", "score": NaN}'))
data("an infinity", "-Infinity is not JSON", rows(b'{"text": "a", "score": -Infinity}'))
data(
    "a number of 5,000 digits", "not JSON that can be read", rows(b'{"text": "a", "n": ' + b"9" * 5000 + b"}")
)
data(
    "nested 3,000 levels",
    "nested more than 64 levels deep",
    rows(b'{"text": "a", "x": ' + NEST.encode() + b"}"),
)
data("nested 3,000 levels inside a string", "nested more than 64 levels deep", rows({"messages": NEST}))
data("nested 3,000 levels in a .json", "nested more than 64 levels deep", file("a.json", NEST.encode()))
data("a line of 1 GB", "long.jsonl:2: this line is longer than 64 MiB", sparse)
data("a CSV line of 1 GB", "long.csv:2: this line is longer than 64 MiB", sparse_csv)
data("a .json that is cut", "not JSON", file("a.json", b'[{"text": "a"},'))
data("a .json of one word", "not a list of rows", file("a.json", b'"hello"'))
data("a .json of two lists", "no accepted columns", file("a.json", b'{"train": [], "test": []}'))
data(
    "unknown columns",
    "no accepted columns; found: 'question', 'reply'",
    rows({"question": "a", "reply": "b"}),
)
data("an empty row", "no accepted columns; found: none", rows({}))
data("an answer that is null", "'response' is null", rows({"prompt": "a", "response": None}))
data("an empty answer", "'response' is empty", rows({"prompt": "a", "response": ""}))
data("an answer of blanks", "'response' is empty", rows({"prompt": "a", "response": " \n\t"}))
data(
    "an answer that is a number", "'response' is a number, not a string", rows({"prompt": "a", "response": 4})
)
data("an empty text", "'text' is empty", rows({"text": ""}))
data("an empty instruction", "'instruction' is empty", rows({"instruction": "", "output": "b"}))
data("an id that is null", "'id' is None", rows({**ROW, "id": None}))
data("an id that is a list", "'id' is [1]", rows({**ROW, "id": [1]}))
data("an id that is empty", "'id' is ''", rows({**ROW, "id": ""}))
data(
    "an id twice",
    "the id 'a' is given twice; it also stands at",
    rows({**ROW, "id": "a"}, {**ROW, "id": "a"}),
)
data("no messages", "'messages' is an empty list", rows({"messages": []}))
data("messages as text", "'messages' is str, not a list of turns", rows({"messages": "Hello"}))
data("a message that is text", "a message is str, not a mapping", rows({"messages": ["Hello"]}))
data("a message without a role", "a message is an object", rows({"messages": [{"content": "a"}]}))
data("an unknown role", "unknown role 'robot'", rows({"messages": [{"role": "robot", "content": "a"}]}))
data("a role that is a list", "unknown role []", rows({"messages": [{"role": [], "content": "a"}]}))
data(
    "an unknown speaker",
    "unknown speaker 'nobody'",
    rows({"conversations": [{"from": "nobody", "value": "a"}]}),
)
data("a turn that is not to be learned", "message 2: an assistant turn has the weight 0", rows({"messages": [USER, {**SAID, "weight": 0}]}))  # fmt: skip
data("no answer", "no assistant turn", rows({"messages": [USER]}))
data("an empty turn", "message 2: 'content' is empty", rows({"messages": [USER, {**SAID, "content": ""}]}))
data(
    "a picture",
    "a content of type 'image'",
    rows({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}),
)
data("a tool call without a name", "without a function's name", rows({"messages": [USER, {"role": "assistant", "tool_calls": [{"x": 1}]}]}))  # fmt: skip
data("tools that are no list", "'tools' is str", rows({"messages": [USER, SAID], "tools": "f"}))
data(
    "a CSV row that is short",
    "does not have the header's 2 fields",
    file("a.csv", b"prompt,response\nnext 1,2\nc\n"),
)
data(
    "a CSV row that is long",
    "does not have the header's 2 fields",
    file("a.csv", b"prompt,response\nnext 1,2\nnext 1,b,c\n"),
)
data("a CSV column twice", "the column 'prompt' is named twice", file("a.csv", b"prompt,prompt\na,b\n"))
data("a CSV with an open quote", "not CSV", file("a.csv", b'prompt,response\n"a,b\n'))
data("a CSV in Latin-1", "not UTF-8", file("a.csv", b"prompt,response\na,caf\xe9\n"))
data(
    "a CSV with semicolons",
    "no accepted columns; found: 'prompt;response'",
    file("a.csv", b"prompt;response\na;b\n"),
)
data("no Parquet at all", "not a readable Parquet file", file("a.parquet", b"no parquet"))
data("a Parquet that is cut", "not a readable Parquet file", cut_parquet)
data(
    "a Parquet of numbers", "'text' is a number, not a string", parquet(lambda pa: pa.table({"text": [1.0]}))
)
data(
    "a Parquet with NaN",
    "'text' is a number, not a string",
    parquet(lambda pa: pa.table({"text": [float("nan")]})),
)
data(
    "a Parquet of bytes", "'text' is bytes, not a string", parquet(lambda pa: pa.table({"text": [b"a\xff"]}))
)
data(
    "a Parquet of no rows",
    "there are no rows in it",
    parquet(lambda pa: pa.table({"text": pa.array([], pa.string())})),
)
data("a Parquet of text that is not UTF-8", "not a readable Parquet file", parquet(lambda pa: pa.table({"text": pa.array([b"caf\xe9"]).view(pa.string())})))  # fmt: skip
data(
    "no label before the cut",
    "not one supervised token is left",
    rows({"prompt": "next " * 90, "response": "2"}, good=0),
)

# --- several sets together -----------------------------------------------------------------------------------


def copied(source: str, target: str) -> Change:
    """A row of one set stands in another too."""

    def change(folder: Path) -> list[str]:
        row = json.loads((folder / source).read_text(encoding="utf-8").splitlines()[0])
        with (folder / target).open("a", encoding="utf-8") as stream:
            stream.write(
                json.dumps({**row, "id": "copied", "prompt": row["prompt"].upper().lower() + "  "}) + "\n"
            )
        return []

    return change


def few(folder: Path) -> list[str]:
    path = folder / "count/reference.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:3]))
    return []


case("sets", "a reference row in the training data", "reference", copied("count/reference.jsonl", TRAIN))
case("sets", "a test row in the training data", "test", copied("count/test.jsonl", TRAIN))
case("sets", "a test row in a reference set", "test", copied("swap/test.jsonl", "count/reference.jsonl"))
case("sets", "a reference set of three rows", "this reference set has 3 usable rows", few)

# --- models --------------------------------------------------------------------------------------------------


def model(what: str, says: str, change: Callable[[Path], Any], trains: bool = True, status: int = 2) -> None:
    def changed(folder: Path) -> list[str]:
        given = change(folder / "model")
        return given if isinstance(given, list) else []

    case("model", what, says, changed, trains, status)


def edited(name: str, **keys: Any) -> Callable[[Path], None]:
    """Change keys of one of the model's JSON files."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **keys}), encoding="utf-8")

    return change


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return changed


def pickled(folder: Path) -> None:
    """The weights as torch.save writes them."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def own_code(folder: Path) -> None:
    edited("config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"})(folder)  # fmt: skip
    (folder / "own.py").write_text("open('executed', 'w')\n")


def own_tokenizer(folder: Path) -> None:
    edited("tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})(folder)  # fmt: skip
    (folder / "own.py").write_text("open('executed', 'w')\n")


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def templated(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return change


def small_head(folder: Path) -> None:
    """Fewer embeddings than the tokenizer has tokens."""
    import torch
    from transformers import LlamaForCausalLM

    loaded = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    loaded.resize_token_embeddings(8)
    loaded.save_pretrained(folder)


model("no such folder", "no such folder", lambda _: ["--set", "model=./no-model"], False)
model(
    "a file in its place",
    "it is a file, not a model's folder",
    lambda _: ["--set", "model=./config.yaml"],
    False,
)
model(
    "a folder without config.json",
    "the folder holds no config.json",
    lambda _: ["--set", "model=./count"],
    False,
)
model(
    "a hub name that is not there",
    "the hub does not give a model of that name",
    lambda _: ["--set", "model=nobody/nothing"],
    False,
)
model(
    "an empty folder",
    "the folder holds no config.json",
    lambda folder: (shutil.rmtree(folder), folder.mkdir())[:0],
    False,
)
model("config.json is not JSON", "could not be loaded", written("config.json", b"{"), False)
model("config.json is a list", "could not be loaded", written("config.json", b"[]"), False)
model("config.json is not UTF-8", "could not be loaded", written("config.json", b"\xff\xfe"), False)
model("an unknown architecture", "could not be loaded", edited("config.json", model_type="magic"), False)
model("an encoder", "not a causal language model", edited("config.json", model_type="distilbert", architectures=["DistilBertModel"]), False)  # fmt: skip
model("an encoder and decoder", "not a causal language model", edited("config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]), False)  # fmt: skip
model(
    "a model without a head",
    "not a causal language model",
    edited("config.json", architectures=["LlamaModel"]),
    False,
)
model("a model of its own code", "could not be loaded", own_code, False)
model("a tokenizer of its own code", "no tokenizer could be loaded", own_tokenizer, False)
model("weights that only pickle reads", "stored by pickle, which can run any code", pickled)
model("no weights", "no weights as safetensors", without("model.safetensors"))
model(
    "weights that are cut", "the weights are damaged", weights(lambda content: content[: len(content) // 2])
)
model(
    "weights of a broken head", "the weights are damaged", weights(lambda content: b"\xff" * 8 + content[8:])
)
model("empty weights", "the weights are damaged", weights(lambda content: b""))
model(
    "weights of another size", "other shapes than its config.json says", edited("config.json", hidden_size=48)
)
model("more layers than there are weights of", "lacks", edited("config.json", num_hidden_layers=3))
model(
    "no tokenizer", "no tokenizer could be loaded", without("tokenizer.json", "tokenizer_config.json"), False
)
model("tokenizer.json is not JSON", "no tokenizer could be loaded", written("tokenizer.json", b"{"), False)
model("a chat template that is no template", "chat template", templated("{% for %}"), False)
model(
    "a chat template that refuses", "chat template refuses", templated("{{ raise_exception('no') }}"), False
)
model("a chat template that never ends", "chat template refuses", templated("{% for i in range(999999999) %}x{% endfor %}"), False)  # fmt: skip
model("a chat template that reaches for the system", "chat template refuses", templated("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[5].content }}"), False)  # fmt: skip
model("a chat template that leaves the prompt out", "leaves out messages of role 'user'", templated("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }} <end> {% endif %}{% endfor %}"), False)  # fmt: skip
model("adapters without their weights", "itself a folder of adapters", written("adapter_config.json", b'{"base_model_name_or_path": "x", "peft_type": "LORA"}'))  # fmt: skip
model("adapters of no base", "itself a folder of adapters", written("adapter_config.json", b"{}"))
model(
    "adapter_config.json is not JSON",
    "itself a folder of adapters",
    written("adapter_config.json", b"{"),
)
model("more tokens than embeddings", "the model embeddings for 8", small_head, False)
model(
    "rows longer than the positions",
    "the model has 2048 positions",
    lambda _: ["--set", "training.max_length=4096"],
    False,
)


def table() -> str:
    """The page's table."""
    lines = ["| | the mistake | in the message |", "|---|---|---|"]
    for number, one in enumerate(CASES, 1):
        says = one.says.replace("|", "\\|")
        lines.append(f"| {number} | {one.kind}: {one.what} | `{says}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "bad-input.md"
    head = page.read_text(encoding="utf-8").partition("| |")[0]
    page.write_text(head + table(), encoding="utf-8")
