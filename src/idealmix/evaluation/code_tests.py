"""Generated code, judged by running its tests.

Flows in: a file of tests by row id, generated answers. Flows out: 1.0 where a row's tests pass, else 0.0. Two forms of tests:

    HumanEval   {"id", "prompt": source that the answer completes, "test": defines check(f), "entry_point": f's name}
    MBPP        {"id", "test_list": [assert statements], "test_setup_code": source that runs before}

The first code block of an answer is taken, or all of it where there is none. For HumanEval an answer may be the body alone, with
or without its indentation, or the whole function. What hangs, forks, writes, eats memory or does not parse counts as wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from idealmix.errors import InputError
from idealmix.evaluation.sandbox import passes

Tests = dict[str, dict[str, Any]]
FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
FORMS = ({"test": str, "entry_point": str, "prompt": str}, {"test_list": list})


def load_tests(path: str, where: str) -> Tests:
    """Tests by row id.

    Raises:
        InputError: no such file, a line that is not one of the two forms (which), an id given twice.
    """
    found: Tests = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the tests: {error.strerror}", where=where, mend=path) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "id" not in row or not any(_is(row, form) for form in FORMS):
            raise InputError(
                "this line holds no tests",
                where=f"{path}, line {number}",
                mend="give id and test_list (assert statements), or id, prompt, test and entry_point",
            )
        if str(row["id"]) in found:
            raise InputError(f"row {row['id']!r} has tests twice", where=f"{path}, line {number}")
        found[str(row["id"])] = row
    return found


def digest(path: str) -> str:
    """SHA-256 of the tests: figures of older ones are not reused."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def asked(tests: Tests, ids: Sequence[str], where: str) -> None:
    """Check that every row has tests.

    Raises:
        InputError: which rows have none.
    """
    missing = [row for row in ids if row not in tests]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} rows have no tests: {', '.join(missing[:5])}",
            where=where,
            mend="give each row's id a line in the file of tests, or score fewer rows",
        )


def run_tests(
    tests: Tests,
    answers: Mapping[str, str],
    *,
    judge: Callable[[str], bool] = passes,
    workers: int = 1,
) -> dict[str, float]:
    """1.0 or 0.0 by row id.

    Args:
        judge: runs a program.
        workers: programs that run at the same time.
    """

    def right(row: str) -> float:
        program = next(programs(tests[row], answers[row]), None)
        return float(program is not None and judge(program))

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(answers, pool.map(right, answers)))


def programs(test: Mapping[str, Any], answer: str) -> Iterator[str]:
    """The readings of an answer that compile, the likeliest first."""
    answer = answer.replace("\r\n", "\n")
    block = FENCE.search(answer)
    code = (block[1] if block else answer).strip("\n")
    if "test_list" in test:
        readings = ["\n".join([code, str(test.get("test_setup_code") or ""), *map(str, test["test_list"])])]
    else:
        name, head = test["entry_point"], test["prompt"].rstrip("\n")
        whole = re.search(rf"^(async )?def {re.escape(name)}\b", textwrap.dedent(code), re.MULTILINE)
        bodies = ["    " + code.lstrip(), textwrap.indent(textwrap.dedent(code), "    ")]
        if code[:1].isspace():
            bodies.insert(0, code)
        future = "".join(f"{line}\n" for line in FUTURE.findall(code))  # must stand first
        parts = (
            [f"{future}{head}\n    pass\n\n{FUTURE.sub('', textwrap.dedent(code))}"]
            if whole
            else [f"{head}\n{body}" for body in bodies]
        )
        readings = [f"{part}\n\n{test['test']}\n\ncheck({name})\n" for part in parts]
    return (reading for reading in readings if _compiles(reading))


def _compiles(source: str) -> bool:
    try:
        compile(source, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is(row: Mapping[str, Any], form: Mapping[str, type]) -> bool:
    return all(isinstance(row.get(key), kind) for key, kind in form.items())
