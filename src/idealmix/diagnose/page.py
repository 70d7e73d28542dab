"""All answers about a run as one self-contained HTML page, in the report's look.

Flows in: the ``<question>.json`` files of a folder. Flows out: ``diagnosis.html`` beside them, without a script or a request to
anywhere; names and rows' texts are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idealmix import __version__
from idealmix.disk import write_text
from idealmix.report import words
from idealmix.report.answers import TITLES, answers_in
from idealmix.report.templates import render


def write(folder: Path, name: str) -> Path:
    """Build the page from the answers that lie in the folder.

    Args:
        name: of the run.
    """
    page = folder / "diagnosis.html"
    write_text(page, build(answers_in(folder), name))
    return page


def build(answers: Sequence[dict[str, Any]], name: str) -> str:
    """The page."""
    return render(
        "diagnosis.html",
        "idealmix.diagnose",
        answers=answers,
        name=name,
        titles=TITLES,
        in_report=False,
        words=words,
        version=__version__,
    )
