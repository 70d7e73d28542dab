"""Turns a full disk into one clear error, whichever library was writing; and waits until files lie on the disk.

Python raises ``OSError``; safetensors its own ``SafetensorError``, with the system's error as text; torch a
``RuntimeError`` of its archive writer, which tells no reason.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from idealmix.errors import IdealmixError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left", "File too large", *(f"os error {number})" for number in _FULL))
_TORCH_WRITER_TEXTS = ("PytorchStreamWriter", "inline_container.cc", "iostream error")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Everything inside may write below ``folder``.

    Raises:
        IdealmixError: the disk (or the user's share of it) is full, or a checkpoint could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if any(_is_full(each) for each in _with_causes(error)):
            what = "the disk is full"
        elif isinstance(error, RuntimeError) and any(text in str(error) for text in _TORCH_WRITER_TEXTS):
            what = f"the disk is full, or a checkpoint on it could not be written ({error})"
        elif isinstance(error, SafetensorError) and "deserializ" not in str(error):
            what = f"a file of weights could not be written: {error}"
        else:
            raise
        raise IdealmixError(
            what, where=str(folder), mend="free space there, see that it can be written to, and run again"
        ) from error


def settle(path: Path) -> None:
    """Return when a file, or every file in a folder, lies on the disk: what is written later then tells that it does."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those it came from: torch hides the first one behind that of closing its archive."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__
