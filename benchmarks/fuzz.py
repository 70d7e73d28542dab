"""Fuzzes the loaders of configurations and data: whatever comes in, a result or one clear error comes out.

    python -m benchmarks.fuzz --minutes 60 --seed 0

Each case mutates a good file: bytes, lines, structure, values from a list of nasty ones. A configuration has to load or to
be refused by an ``InputError``. A data file has to be refused, or every row of it that an independent count finds is kept,
left out by the sample, or counted as dropped. Another exception, or 20 seconds of the processor without an answer, is a finding: it is
written to ``--findings`` with its seed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import random
import signal
import string
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from idealmix import config as schema
from idealmix import configfile
from idealmix.errors import InputError

SECONDS = 20

GOOD_CONFIG: dict[str, Any] = {
    "model": "some/model",
    "method": "ideal",
    "methods": {"random": {"k": 5}},
    "domains": {"math": "a.jsonl", "code": {"path": "b.jsonl", "rows": 10}},
    "references": {"math": {"path": "ra.jsonl", "weight": 2}, "code": "rb.jsonl"},
    "tests": {"math": "t.jsonl"},
    "scores": {"s": {"test": "math", "exact_match": "#### (.+)"}},
    "objective": "relative",
    "constraints": {"math": {"max_increase": 0.1}},
    "training": {"epochs": 2, "learning_rate": 1e-5, "lora": {"r": 4}, "adam_beta2": 0.99},
    "influence": {"curvature": "ekfac", "layers": ["*.q_proj"]},
    "allocation": {"m": 0.2, "budget": {"unit": "rows", "size": 100}, "start": {"math": 3, "code": 4}, "floor": {"math": 0.1}},
    "seed": 1,
    "output": "runs/x",
}  # fmt: skip

_USER, _SAID = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
_CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
GOOD_ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 + 2?", "response": "It is 4."},
    {"id": "a", "messages": [_USER, _SAID, _USER, _SAID], "tools": [{"name": "f"}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello \U0001f600"}]},
    {"instruction": "Add.", "input": "2, 2", "output": "4", "source": "x"},
    {"prompt": [_USER], "completion": [_SAID]},
    {"query": "\u05e9\u05dc\u05d5\u05dd", "response": "\u4f60\u597d"},
    {"text": "It rains."},
    {"messages": json.dumps([_USER, _SAID])},
    {"messages": [_USER, _CALL, {"role": "tool", "content": ""}, _SAID]},
]

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 10**400, -0.0, 1e308, float("inf"), float("nan"), "", " ", "\0", "\n", "\ud800",
    "\ufeff", "\u202e", "\U0001f600", "e\u0301", "<script>alert(1)</script>", "../../../etc/passwd", "~nobody/x", "/dev/full",
    "%s%n{0}{model}", "${HOME}", "$(id)", "{{ 7 * 7 }}", "no", "null", "1e5", "x" * 5000, [], {}, [[]], [None], {"": ""},
    {"role": "user"}, [{}], "[" * 200, '{"a": 1, "a": 2}', "NaN", b"bytes",
]  # fmt: skip

Check = Callable[[random.Random, Path], str]


class HangError(Exception):
    """No answer in time."""


def nest(chance: random.Random, value: Any) -> Any:
    """A value inside of up to 200 others."""
    for _ in range(chance.choice((1, 3, 40, 200))):
        value = [value] if chance.random() < 0.5 else {"x": value}
    return value


def mutated(chance: random.Random, value: Any) -> Any:
    """The structure with one part of it changed, taken out, doubled or replaced."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        copy, key = dict(value), chance.choice(list(value))
        what = chance.random()
        if what < 0.6:
            copy[key] = mutated(chance, copy[key])
        elif what < 0.75:
            del copy[key]
        elif what < 0.9:
            copy[word(chance, str(key))] = copy.pop(key)
        else:
            copy[word(chance, str(key))] = chance.choice(NASTY)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.85:
        items, at = list(value), chance.randrange(len(value))
        what = chance.random()
        if what < 0.7:
            items[at] = mutated(chance, items[at])
        elif what < 0.85:
            items.insert(at, items[chance.randrange(len(items))])
        else:
            del items[at]
        return items
    if isinstance(value, str) and chance.random() < 0.4:
        return word(chance, value)
    return nest(chance, value) if chance.random() < 0.1 else chance.choice(NASTY)


def word(chance: random.Random, text: str) -> str:
    """A text with a letter changed, gone, doubled, or something put in."""
    at = chance.randint(0, len(text))
    put = chance.choice(
        [
            "",
            "\0",
            "\n",
            "\r",
            "\u202e",
            "\U0001f468\u200d\U0001f469",
            "/",
            ":",
            '"',
            "'",
            "{",
            *string.ascii_letters,
        ]
    )
    return text[:at] + put + text[at + chance.randint(0, 2) :]


def bytes_of(chance: random.Random, content: bytes) -> bytes:
    """A file with bits, bytes or pieces changed."""
    for _ in range(chance.choice((0, 0, 0, 0, 1, 2, 8))):
        at, what = chance.randint(0, len(content)), chance.random()
        if what < 0.3 and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
        elif what < 0.5:
            content = content[:at]
        elif what < 0.7:
            put = [
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"\r\n",
                b"\r",
                b"\xed\xa0\x80",
                b'"',
                b"[" * 2000,
                b"{",
                b"\n\n",
                b": ",
                b"&a ",
                b"*a",
            ]
            content = content[:at] + chance.choice(put) + content[at:]
        elif what < 0.85:
            content = content[:at] + content[chance.randint(0, len(content)) :]
        else:
            content = content.replace(b"\n", b"\r\n")
    return content


# --- the loaders -----------------------------------------------------------------------------------------------


def check_config(chance: random.Random, folder: Path) -> str:
    """A mutated config.yaml, perhaps with overrides."""
    data: Any = GOOD_CONFIG
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        data = mutated(chance, data)
    try:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (yaml.YAMLError, RecursionError):  # too deep to be written down here
        text = repr(data).encode("utf-8", "surrogatepass")
    path = folder / "config.yaml"
    path.write_bytes(bytes_of(chance, text))
    overrides = []
    if chance.random() < 0.3:
        key = ".".join(
            chance.choice([*GOOD_CONFIG, "rows", "path", "math", "", "x"])
            for _ in range(chance.randint(1, 4))
        )
        overrides = [word(chance, f"{key}={chance.choice(NASTY)}")]
    loaded = configfile.load(path, overrides)
    (folder / "again.yaml").write_text(configfile.dump(loaded), encoding="utf-8")
    assert configfile.load(folder / "again.yaml") == loaded, "the resolved configuration reads back otherwise"
    return "loaded"


def check_data(chance: random.Random, folder: Path) -> str:
    """A mutated data file in one of the formats."""
    from idealmix.data.pools import load_pool
    from idealmix.data.tokenise import Encoder

    shape = chance.choice(GOOD_ROWS)
    rows: list[Any] = [
        shape if chance.random() < 0.7 else chance.choice(GOOD_ROWS) for _ in range(chance.randint(1, 6))
    ]
    rows = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    for _ in range(chance.choice((0, 0, 1, 2))):
        at = chance.randrange(len(rows))
        rows[at] = mutated(chance, rows[at])
    name = chance.choice(("a.jsonl", "a.jsonl", "a.json", "a.csv", "a.parquet"))
    path = folder / name
    clean = FORMATS[path.suffix](rows)
    content = bytes_of(chance, clean)
    path.write_bytes(content)
    length = chance.choice((2, 40, 128, 512))
    source = schema.Source(path=str(path), rows=chance.choice((None, None, 1, 3)))
    pool = load_pool("math", source, Encoder(tokenizer(), length), seed=0)
    report = pool.report
    assert report.read == report.kept + report.not_sampled + sum(report.dropped.values()), "rows are missing"
    assert len(pool) == report.kept
    if path.suffix == ".jsonl":
        assert report.read == sum(
            bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        ), "lines are missing"
    elif content == clean:
        assert report.read == len(rows), "rows are missing"
    for number in range(len(pool)):
        row = pool.row(number)
        assert 0 < len(row.input_ids) == len(row.labels) <= length
        json.dumps(pool.conversation(number).record(), allow_nan=False).encode()
    return f"loaded {path.suffix}"


def _json_lines(rows: list[Any]) -> bytes:
    return b"".join(_json(row) + b"\n" for row in rows)


def _json(value: Any) -> bytes:
    return json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _csv(rows: list[Any]) -> bytes:
    import csv

    text, flat = io.StringIO(), [row if isinstance(row, dict) else {"text": row} for row in rows]
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in flat for key in row)) or ["text"])
    writer.writeheader()
    writer.writerows(
        {k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in row.items()} for row in flat
    )
    return text.getvalue().encode("utf-8", "surrogatepass")


def _parquet(rows: list[Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    try:
        table = pyarrow.Table.from_pylist([row if isinstance(row, dict) else {"text": row} for row in rows])
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
        return b"PAR1" + _json_lines(rows) + b"PAR1"


FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


@functools.cache
def tokenizer() -> Any:
    """Every byte is a token, so that every text can be told from every other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **dict.fromkeys(("eos_token", "pad_token"), "<end>")
    )


CHECKS: dict[str, Check] = {"config": check_config, "data": check_data}


def one(name: str, seed: int, folder: Path) -> str:
    """One case: what came of it. Anything but a result or an `InputError` is raised."""
    chance = random.Random(f"{name} {seed}")
    try:
        return CHECKS[name](chance, folder)
    except InputError as error:
        if not error.what.strip() or len(str(error)) > 20_000:
            raise RuntimeError(f"a message of {len(str(error))} letters") from error
        return "refused"


def _hang(number: int, frame: Any) -> None:
    raise HangError(f"no answer in {SECONDS} s")


def main() -> None:
    """Fuzz for some minutes and print what came."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(CHECKS))
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    from trl import SFTConfig  # noqa: F401  (an import must not be what an alarm interrupts)

    tokenizer()
    signal.signal(signal.SIGPROF, _hang)
    counts: collections.Counter[str] = collections.Counter()
    findings, seed, began = 0, arguments.seed, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        while time.monotonic() - began < 60 * arguments.minutes:
            for name in [arguments.only] if arguments.only else CHECKS:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    counts[f"{name}: {one(name, seed, Path(place))}"] += 1
                except Exception:
                    findings += 1
                    arguments.findings.mkdir(parents=True, exist_ok=True)
                    (arguments.findings / f"{name}-{seed}.txt").write_text(
                        traceback.format_exc(), encoding="utf-8", errors="replace"
                    )
                    print(
                        f"finding: {name}, seed {seed}: {traceback.format_exc().splitlines()[-1][:200]}",
                        flush=True,
                    )
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
            seed += 1
    print(
        f"{sum(counts.values()):,} cases in {time.monotonic() - began:.0f} s from seed {arguments.seed}; {findings} findings"
    )
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count:,}")
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    main()
