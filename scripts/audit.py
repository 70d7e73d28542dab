"""Asks for known vulnerabilities of the installed packages, by pip-audit.

    python scripts/audit.py PIP_AUDIT PYTHON

PIP_AUDIT is the program, PYTHON the interpreter whose packages are asked about. Exit status 1 only on a finding; where the
service could not be asked, or does not know a package, that is said aloud and is no failure: it says nothing about
the packages. ACCEPTED lists findings that were looked at and do not concern idealmix, with the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Advisory: why it does not concern us.
ACCEPTED: dict[str, str] = {}


def installed(python: str) -> str:
    """The packages as requirements; what is not from an index (this project itself) is left out."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze", "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout


def ask(program: str, requirements: str) -> dict[str, Any] | str:
    """pip-audit's answer, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "requirements.txt"
        path.write_text(requirements, encoding="utf-8")
        asked = [
            program,
            "-r",
            str(path),
            "--no-deps",
            "--disable-pip",
            "--format=json",
            "--progress-spinner=off",
        ]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    try:
        answer = json.loads(done.stdout)
        return answer if isinstance(answer["dependencies"], list) else "its answer has another form"
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]


def judge(answer: dict[str, Any] | str) -> tuple[int, list[str]]:
    """Exit status and what to print."""
    if isinstance(answer, str):
        return 0, [f"NOT AUDITED: the service could not be asked: {answer}"]
    known = [each for each in answer["dependencies"] if "skip_reason" not in each]
    unknown = [each["name"] for each in answer["dependencies"] if "skip_reason" in each]
    found = [(each, one) for each in known for one in each.get("vulns", [])]
    lines = []
    for package, one in found:
        reason = ACCEPTED.get(one["id"])
        mended = ", ".join(one.get("fix_versions", [])) or "no version yet"
        lines.append(
            f"accepted: {package['name']} {package['version']}: {one['id']}: {reason}" if reason
            else f"VULNERABLE: {package['name']} {package['version']}: {one['id']}, mended in {mended}"
        )  # fmt: skip
    if unknown:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        lines.append(f"NOT AUDITED: the service does not know {', '.join(unknown[:10])}{more}")
    lines.append(f"{len(known)} packages audited, {len(found)} findings")
    return int(any(one["id"] not in ACCEPTED for _, one in found)), lines


def main() -> None:
    """Audit, print, exit."""
    status, lines = judge(ask(sys.argv[1], installed(sys.argv[2])))
    print("\n".join(lines))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
