"""What a question is answered with: the same sentence, tables and notes on the terminal, in the file and on the page.

Flows in: figures in words and as plain JSON. Flows out: ``diagnose/<question>.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from idealmix.disk import disk_errors, write_json
from idealmix.rounds.watch import Watch

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows of text; the first column holds names."""


@dataclass(frozen=True)
class Answer:
    """One question's answer.

    Attributes:
        question: ``conflict``, ``noise``, ``reference``, ``stability`` or ``fidelity``.
        headline: the answer in one sentence.
        tables: to be shown.
        notes: how to read them, and what they do not say.
        figures: everything as plain JSON data.
        facts: of the model that was asked: which round, how it was measured.
    """

    question: str
    headline: str
    tables: list[Table]
    notes: list[str]
    figures: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"format": 1, **asdict(self)}

    def write(self, folder: Path) -> Path:
        """Write ``<question>.json`` into an existing or new folder.

        Raises:
            IdealmixError: the disk is full or cannot be written.
        """
        path = folder / f"{self.question}.json"
        with disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, self.to_json())
        return path

    def show(self, watch: Watch) -> None:
        """On the terminal."""
        for table in self.tables:
            watch.table(*table)
        watch.note(self.headline)
        for text in self.notes:
            watch.note(text)
