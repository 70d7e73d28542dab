"""Generated code under its tests: right answers pass, everything that misbehaves counts as wrong and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from idealmix.config import Score
from idealmix.errors import InputError
from idealmix.evaluation import sandbox, scores
from idealmix.evaluation.code_tests import asked, load_tests, programs, run_tests
from idealmix.evaluation.sandbox import passes
from idealmix.evaluation.scores import check_rows, check_score, score, score_digest

HUMANEVAL = {
    "id": "h/0",
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n",
}
MBPP = {
    "id": "m/1",
    "test_setup_code": "import math",
    "test_list": ["assert area(1) == math.pi", "assert area(0) == 0"],
}


@pytest.fixture(params=["as here", "without namespaces"])
def kept_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of starting the child; on many systems users may not make namespaces."""
    if request.param != "as here":
        monkeypatch.setattr(sandbox, "_namespaces", lambda: ())


@pytest.mark.parametrize(
    "answer",
    [
        "    return [2 * x for x in xs]",
        "return [2 * x for x in xs]",
        "ys = []\n    for x in xs:\n        ys.append(2 * x)\n    return ys",
        "ys = []\nfor x in xs:\n    ys.append(2 * x)\nreturn ys",
        "def double(xs):\n    return [2 * x for x in xs]",
        "Here it is:\n```python\nfrom typing import List\n\ndef double(xs: List[int]):\n    return [x + x for x in xs]\n```\nDone.",
    ],
)
def test_a_right_answer_passes_as_body_or_function(answer: str) -> None:
    assert run_tests({"h/0": HUMANEVAL}, {"h/0": answer}) == {"h/0": 1.0}


def test_asserts_of_mbpp() -> None:
    answers = {
        "right": "def area(r):\n    return math.pi * r * r",
        "wrong": "def area(r):\n    return 3 * r * r",
    }
    tests = {row: {**MBPP, "id": row} for row in answers}
    assert run_tests(tests, answers, workers=2) == {"right": 1.0, "wrong": 0.0}


@pytest.mark.parametrize("answer", ["", "return [", "    pass", "def other(xs):\n    return xs", "\0"])
def test_a_wrong_answer_fails(answer: str) -> None:
    assert run_tests({"h/0": HUMANEVAL}, {"h/0": answer}) == {"h/0": 0.0}


def test_what_does_not_parse_is_not_run() -> None:
    assert not list(programs(MBPP, "def ("))
    assert run_tests({"m/1": MBPP}, {"m/1": "def ("}, judge=lambda program: pytest.fail(program)) == {
        "m/1": 0.0
    }


@pytest.mark.usefixtures("kept_in")
@pytest.mark.parametrize(
    "program",
    [
        "raise ValueError",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "x = bytearray(3 * 2**30)",
        "import os\ntry:\n    os.fork()\nexcept BaseException:\n    pass",
        "import subprocess\ntry:\n    subprocess.run(['true'])\nexcept BaseException:\n    pass",
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 0.2)\nexcept BaseException:\n    pass",
        "input()",
        "def f():\n    return f()\nf()",
    ],
)  # fmt: skip
def test_what_misbehaves_counts_as_wrong_even_if_it_catches_all(program: str) -> None:
    assert not passes(program, seconds=5)


@pytest.mark.usefixtures("kept_in")
@pytest.mark.parametrize("program", ["while True:\n    pass", "import time\ntime.sleep(60)"])
def test_what_hangs_is_killed(program: str) -> None:
    began = time.monotonic()
    assert not passes(program, seconds=1)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("kept_in")
def test_no_file_is_written_emptied_or_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")

    def tried(statement: str) -> str:
        return f"import ctypes, os\ntry:\n    {statement}\nexcept Exception:\n    pass"

    for statement in (
        f"open({str(mine)!r}, 'w')",
        f"os.remove({str(mine)!r})",
        f"os.truncate({str(mine)!r}, 0)",
        f"os.open({str(tmp_path / 'new')!r}, os.O_CREAT)",
        "open('in its own folder', 'w').write('x')",
    ):
        assert not passes(tried(statement)), statement
    if _landlock():  # below Python the kernel refuses; the program itself goes on
        assert passes(tried(f"assert ctypes.CDLL(None).unlink({os.fsencode(mine)!r}) == -1"))
    assert mine.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [mine]


def _landlock() -> bool:
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0


def test_a_process_started_below_python_dies_with_it() -> None:
    if not sandbox._namespaces():
        pytest.skip("users may not make namespaces here")
    mark = f"sleeper-{os.getpid()}"
    program = (
        "import ctypes, time\nc = ctypes.CDLL(None)\n"
        f"if c.fork() == 0:\n    c.setsid()\n    c.prctl(15, b'{mark[:15]}', 0, 0, 0)\n    time.sleep(60)\n"
        "time.sleep(60)"
    )
    assert not passes(program, seconds=1)
    time.sleep(0.2)
    alive = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == mark[:15]:
                alive.append(int(comm.parent.name))
        except OSError:
            continue
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def test_reading_and_much_output_are_no_fault() -> None:
    assert passes(
        "import json, math\nprint('x' * 10**6)\nopen('/dev/null').read()\nassert math.gcd(4, 6) == 2"
    )


def test_a_score_generates_runs_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tests.jsonl"
    path.write_text("".join(json.dumps({**MBPP, "id": row}) + "\n" for row in ("a", "b", "c")))

    class Pool:
        ids = ("a", "b", "c")

        def __len__(self) -> int:
            return 3

        def conversation(self, number: int) -> SimpleNamespace:
            return SimpleNamespace(id=self.ids[number])

    answers = {"a": "def area(r): return math.pi * r * r", "b": "def area(r): return 0"}
    monkeypatch.setattr(
        scores, "generate", lambda model, tokenizer, asked, most, progress: [answers[row.id] for row in asked]
    )
    setting = Score(test="t", code_tests=str(path), rows=2)
    found = score("code", None, None, Pool(), setting)
    assert found.per_row == {"a": 1.0, "b": 0.0}
    assert found.mean == 0.5
    with pytest.raises(InputError, match="1 of 3 rows have no tests: d"):
        check_rows("code", Score(test="t", code_tests=str(path)), SimpleNamespace(ids=["a", "b", "d"]))


def test_a_file_of_tests_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "tests.jsonl"
    path.write_text(json.dumps(HUMANEVAL) + "\n\n" + json.dumps(MBPP) + "\n")
    tests = load_tests(str(path), "scores.code.code_tests")
    assert list(tests) == ["h/0", "m/1"]
    with pytest.raises(InputError, match="1 of 2 rows have no tests: h/9"):
        asked(tests, ["h/0", "h/9"], "scores.code.code_tests")
    before = score_digest("code", Score(test="t", code_tests=str(path)))
    path.write_text(json.dumps(HUMANEVAL) + "\n" + json.dumps({"id": "x", "test_list": "no list"}) + "\n")
    assert score_digest("code", Score(test="t", code_tests=str(path))) != before
    with pytest.raises(InputError) as wrong:
        check_score("code", Score(test="t", code_tests=str(path)))
    assert wrong.value.where == f"{path}, line 2"
    path.write_text(json.dumps(MBPP) + "\n" + json.dumps(MBPP))
    with pytest.raises(InputError, match="twice"):
        load_tests(str(path), "x")
    with pytest.raises(InputError, match="cannot read"):
        check_score("code", Score(test="t", code_tests=str(tmp_path / "absent.jsonl")))


@pytest.mark.parametrize(
    "answer",
    [
        "```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\nThat is all.",
        "from __future__ import annotations\n\ndef add(a: int, b: int) -> int:\n    return a + b\n",
        "def add(a, b):\n    return a + b\n\nif __name__ == '__main__':\n    print(add(int(input()), 1))\n",
    ],
)
def test_right_answers_in_unusual_forms_pass(answer: str) -> None:
    test = {
        "prompt": "def add(a, b):\n",
        "test": "def check(f):\n    assert f(1, 2) == 3",
        "entry_point": "add",
    }
    assert run_tests({"r": test}, {"r": answer}) == {"r": 1.0}
