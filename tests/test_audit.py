"""The audit of the dependencies fails on a finding, and only on a finding."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: Path, out: str, status: int = 0) -> str:
    """Stands in for pip-audit."""
    path = folder / "pip-audit"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint({out!r})\nsys.stderr.write('no route to host')\nsys.exit({status})\n"
    )
    path.chmod(0o755)
    return str(path)


CLEAN = {"name": "numpy", "version": "1", "vulns": []}
BAD = {"name": "yaml", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"], "description": ""}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("out", "status", "expected", "says"),
    [
        (json.dumps({"dependencies": [CLEAN]}), 0, 0, "1 packages audited, 0 findings"),
        (json.dumps({"dependencies": [CLEAN, BAD]}), 1, 1, "VULNERABLE: yaml 2: CVE-1, mended in 3"),
        (json.dumps({"dependencies": [BAD, UNKNOWN]}), 1, 1, "does not know torch"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, 0, "NOT AUDITED"),
        ("", 1, 0, "NOT AUDITED: the service could not be asked: no route to host"),
        ("[]", 0, 0, "NOT AUDITED"),
    ],
)
def test_only_a_finding_fails(
    audit: Any, tmp_path: Path, out: str, status: int, expected: int, says: str
) -> None:
    found, lines = audit.judge(audit.ask(program(tmp_path, out, status), "numpy==1\n"))
    assert found == expected
    assert says in "\n".join(lines)


def test_an_accepted_finding_is_told_and_passes(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "not called")
    assert audit.judge({"dependencies": [BAD]}) == (
        0, ["accepted: yaml 2: CVE-1: not called", "1 packages audited, 1 findings"],
    )  # fmt: skip


def test_a_program_that_is_not_there_is_said(audit: Any) -> None:
    status, lines = audit.judge(audit.ask("no-such-program", ""))
    assert status == 0
    assert "NOT AUDITED" in lines[0]
