"""All answers about a run as one self-contained HTML page, in the report's look.

Flows in: the ``<question>.json`` files of a folder. Flows out: ``diagnosis.html`` beside them, without a script or a request to
anywhere; names and rows' texts are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idealmix import __version__
from idealmix.report import words
from idealmix.report.templates import render
from idealmix.rounds.folder import read_json, write_text

TITLES = {
    "conflict": "Who helps and who hurts whom",
    "noise": "Helpful and harmful rows",
    "reference": "Is the reference set large enough?",
    "stability": "How firm is the mixture?",
    "fidelity": "How near is the curvature to the exact one?",
}


def write(folder: Path, name: str) -> Path:
    """Build the page from the answers that lie in the folder.

    Args:
        name: of the run.
    """
    answers = [read_json(folder / f"{q}.json") for q in TITLES if (folder / f"{q}.json").is_file()]
    page = folder / "diagnosis.html"
    write_text(page, build(answers, name))
    return page


def build(answers: Sequence[dict[str, Any]], name: str) -> str:
    """The page."""
    return render(
        "diagnosis.html",
        "idealmix.diagnose",
        answers=answers,
        name=name,
        titles=TITLES,
        words=words,
        version=__version__,
    )
