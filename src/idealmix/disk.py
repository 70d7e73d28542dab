"""Files that lie on the disk whole or not at all, and one clear error where the disk refuses them.

Flows in: JSON data or text, and a path. Flows out: the file, or an `IdealmixError` that says what, where and how to mend.
Python raises ``OSError``; safetensors its own ``SafetensorError``, with the system's error as text; torch a
``RuntimeError`` of its archive writer, which tells no reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from idealmix.errors import IdealmixError, InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("No space left", "File too large", *(f"os error {number})" for number in _FULL))
_TORCH_WRITER_TEXTS = ("PytorchStreamWriter", "inline_container.cc", "iostream error")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is absent or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("this file does not exist", where=str(path)) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"this file is not JSON: {error}", where=str(path)) from None


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (temporary file, flush to disk, rename)."""
    part = path.with_name(path.name + ".tmp")
    with open(part, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def hash_json(data: Any) -> str:
    """SHA-256 of data as canonical JSON."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Return when a file, or every file in a folder, lies on the disk: what is written later then tells that it does."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one clear message."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what, mend = "the disk is full", "free some space, then run the same command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what, mend = "this folder cannot be written", "change its permissions or set another `output`"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            what, mend = "a file stands where the run folder should be", "set another `output`"
        else:
            raise
        raise IdealmixError(what, where=str(error.filename or path), mend=mend) from error


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
