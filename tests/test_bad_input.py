"""Every mistake of docs/bad-input.md gets one message and exit status 2, never a traceback."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input_cases import CASES, Case, table
from rounds_helpers import project

from idealmix import cli

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    project(folder)
    return folder


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """A file that is read whole by mistake fails here instead of filling the machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 900 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def run(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit status and all that was printed."""
    arguments = case.change(folder)
    dry = [] if case.trains else ["--dry-run"]
    monkeypatch.setattr(sys, "argv", ["idealmix", "run", str(folder / "config.yaml"), *dry, *arguments])
    capfd.readouterr()
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    else:
        code = 0
    printed = capfd.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.what}" for case in CASES])
def test_one_message_and_exit_2(
    pristine: Path,
    tmp_path: Path,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "project"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(tmp_path)
    code, text = run(folder, case, monkeypatch, capfd)
    assert case.says in text
    assert code == case.status, text
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    assert len(text) < 4000
    assert not list(tmp_path.rglob("executed"))


def test_page_and_cases_agree() -> None:
    assert len(CASES) >= 100
    assert len({(case.kind, case.what) for case in CASES}) == len(CASES)
    assert PAGE.read_text(encoding="utf-8").endswith("\n\n" + table())
