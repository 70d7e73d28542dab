"""What a command runs in: someone who watches, and one clear line when it is stopped.

Flows in: a command's own work, as the body of a ``with``. Flows out: a terminal and the team of processes for it; of an interrupt or a
lost process one message and exit status 1; of an error about a configuration key its file and line.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from idealmix.errors import InputError

if TYPE_CHECKING:
    from idealmix.rounds.team import Team
    from idealmix.terminal import Terminal


@contextmanager
def watching(as_json: bool, resume: str | None = None) -> Iterator[tuple[Terminal, Team]]:
    """A terminal to watch on, and one clear line when the user stops the work or one of several processes dies."""
    from idealmix.rounds.team import Team
    from idealmix.terminal import Terminal, fail

    team = Team()
    terminal = Terminal(quiet=as_json, silent=not team.leads)

    signals: set[int] = set()

    def stop(signum: int, frame: Any) -> None:
        # a library may swallow the exception (while it is imported, in a callback): the terminal raises it again
        signals.add(signum)
        terminal.stopping = True
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield terminal, team
    except (KeyboardInterrupt, Exception) as error:
        for number in previous:  # a launcher signals those that are left while they tell why they end
            signal.signal(number, signal.SIG_IGN)
        # what is interrupted in the middle may fail in its own way; a launcher that lost a process sends the others SIGTERM,
        # and after Ctrl-C every process loses the others
        stopped = isinstance(error, KeyboardInterrupt) or terminal.stopping
        lost = signal.SIGINT not in signals and team.lost_one(error)
        if not (stopped or lost):
            raise
        terminal.close()
        go_on = f" Everything finished is kept; go on with: {resume}" if resume else ""
        if resume and team.size > 1:
            go_on += " (by the same launcher)"
        if team.speaks():  # it may be the leading process that died
            died = lost or not team.leads
            fail(f"{'another process of this run has died' if died else 'stopped'}.{go_on}")
        raise typer.Exit(1) from None
    finally:
        terminal.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def located(config: Path, overrides: Sequence[str] | None) -> Iterator[None]:
    """Errors about a configuration key get the file and line of that key, or the override that set it."""
    from idealmix import configfile

    try:
        yield
    except InputError as error:
        raise configfile.locate(error, config, overrides or ()) from error
