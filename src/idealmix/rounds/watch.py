"""What a run tells whoever watches: the steps it takes, how far each is, notes, warnings, tables.

Flows in: events from the rounds. Flows out: nothing here; `idealmix.terminal` draws them, tests record them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Watch(Protocol):
    """Receives a run's events, in order; steps do not nest."""

    def begin(self, step: str) -> None:
        """A step starts: ``round 1: training on 4,120 rows``."""

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """The current step has done `done` of `total` equal parts."""

    def end(self, seconds: float, reused: bool) -> None:
        """The current step is finished; `reused` says that an earlier process had done it."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def warn(self, text: str) -> None:
        """Something the user should look at."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; the first column holds names, the others figures."""


class Silent:
    """Watches nothing."""

    def begin(self, step: str) -> None: ...
    def advance(self, done: int, total: int, detail: str = "") -> None: ...
    def end(self, seconds: float, reused: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...
