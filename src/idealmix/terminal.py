"""A run's events on the terminal: a live bar with the time left on a screen, plain lines anywhere else.

Flows in: the events of `idealmix.rounds.watch.Watch`. Flows out: text on standard error, so that standard output
stays free for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from idealmix.report.words import duration

# A log file gets a line of progress at most this often.
_PLAIN_SECONDS = 15.0


class Terminal:
    """Draws a run's events.

    Args:
        quiet: show nothing but warnings (``--json``).
        silent: show nothing at all (a process that does not lead).
        console: for tests; default standard error.
    """

    def __init__(self, quiet: bool = False, silent: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            # a log has no edge: never wrap or cut a line to a guessed width
            self._console.width = max(self._console.width, 160)
        self._quiet, self._silent = quiet or silent, silent
        self.stopping = False  # the user wants to stop: the next event of the run raises KeyboardInterrupt
        self._step, self._started, self._spoken = "", 0.0, 0.0
        self._bar: Progress | None = None
        self._task: Any = None

    def begin(self, step: str) -> None:
        self._go_on()
        self._step, self._started, self._spoken = step, time.monotonic(), time.monotonic()

    def advance(self, done: int, total: int, detail: str = "") -> None:
        self._go_on()
        if self._quiet or total <= 0:
            return
        if self._console.is_terminal:
            self._draw(done, total, detail)
            return
        now = time.monotonic()
        if now - self._spoken >= _PLAIN_SECONDS and 0 < done < total:
            self._spoken = now
            left = (now - self._started) / done * (total - done)
            tail = f", {detail}" if detail else ""
            self._line(f"  {self._step}: {done}/{total}, about {duration(left)} left{tail}")

    def end(self, seconds: float, reused: bool) -> None:
        self._clear()
        took = seconds or time.monotonic() - self._started
        self._line(f"{self._step}: {'already done' if reused else duration(took)}")
        self._step = ""

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        if self._silent:
            return
        self._clear()
        self._console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self._quiet:
            return
        self._clear()
        table = Table(box=None, pad_edge=False)
        for i, column in enumerate(columns):
            words = i == 0 or column == "why"
            table.add_column(column, justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        self._console.print()
        self._console.print(title, style="bold", markup=False, soft_wrap=True)
        self._console.print(table)
        self._console.print()

    def _go_on(self) -> None:
        if self.stopping:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Leave the terminal as it was found; called also after a failure."""
        self._clear()

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def _draw(self, done: int, total: int, detail: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._step, total=total, detail=detail)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, detail=detail)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def fail(message: str) -> None:
    """Print an error's message, and nothing else, on standard error."""
    Console(stderr=True, highlight=False).print(
        f"error: {message}", style="bold red", markup=False, soft_wrap=True
    )
    sys.stderr.flush()
