"""What `idealmix diagnose` has answered about a run, for its own page and for a section each in the report.

Flows in: a folder's ``<question>.json`` files. Flows out: their content in one order, and a title for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idealmix.disk import read_json
from idealmix.errors import InputError

TITLES = {
    "conflict": "Who helps and who hurts whom",
    "noise": "Helpful and harmful rows",
    "reference": "Is the reference set large enough?",
    "stability": "How firm is the mixture?",
    "fidelity": "How near is the curvature to the exact one?",
}


_KEYS = {"headline": str, "tables": list, "notes": list, "facts": dict, "figures": dict}


def answers_in(folder: Path) -> list[dict[str, Any]]:
    """All answers that lie in a folder. One that cannot be read is told as such: it is no reason to withhold the others."""
    return [_answer(folder / f"{q}.json", q) for q in TITLES if (folder / f"{q}.json").is_file()]


def _answer(path: Path, question: str) -> dict[str, Any]:
    try:
        found = read_json(path)
    except InputError:
        found = None
    if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in _KEYS.items()):
        return {**found, "question": question}
    said = (
        f"diagnose/{path.name} is damaged or of another version; ask again by idealmix diagnose --{question}."
    )
    return {"question": question, "headline": said, "tables": [], "notes": [], "facts": {}, "figures": {}}
