"""The errors and warnings a user can meet: each says what is wrong, where, and how to mend it.

Flows out: exceptions that the command line turns into one message and an exit status.
"""

from __future__ import annotations


class IdealmixError(Exception):
    """Something failed that is not the user's input; exit status 1.

    Args:
        what: what went wrong, one sentence.
        where: the file and line, configuration key, layer or phase, if there is one.
        mend: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(self.message())

    def message(self) -> str:
        """The full text: ``where: what`` and, on its own line, how to mend it."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  To mend: {self.mend}" if self.mend else head

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments need this to cross a process boundary
        return (_rebuild, (type(self), self.what, self.where, self.mend))


class InputError(IdealmixError):
    """The user's input is wrong; exit status 2."""

    exit_code = 2


class Doubt(UserWarning):
    """Something in a measurement that the user should know; the report shows it."""


def _rebuild(kind: type[IdealmixError], what: str, where: str | None, mend: str | None) -> IdealmixError:
    return kind(what, where=where, mend=mend)
