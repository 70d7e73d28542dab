"""Readers of single files: JSON Lines, JSON, CSV, Parquet.

Flows in: a path. Flows out: rows as dicts, each with the place that an error about it names. Rows stream; a file is
never held whole, except ``.json``, which has to be.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, AnyStr

from idealmix.data.strict_json import strict_json
from idealmix.errors import InputError

Rows = Iterator[tuple[str, dict[str, Any]]]

_NOT_UTF8 = "save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8 FILE"


_TURNS = {"messages", "conversations"}  # lists that a single row may hold

#: Bytes (of CSV: characters) of one line; no row that can be trained on is longer, and memory is not endless.
LONGEST_LINE = 64 * 2**20


def _lines(stream: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """The lines of a file, none of them held further than `LONGEST_LINE`."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"this line is longer than {LONGEST_LINE // 2**20} MiB, which no row should be",
                where=f"{path}:{number}",
                mend="see that rows end in line breaks, and that nothing but rows is in the file",
            )
        yield line


def _json_lines(path: Path) -> Rows:
    with path.open("rb") as stream:
        for number, raw in enumerate(_lines(stream, path), 1):
            place = f"{path}:{number}"
            line = _decoded(raw, place)
            if number == 1:
                line = line.removeprefix("\ufeff")
            if line.strip():
                yield place, _object(_json(line, place), place)


def _json_document(path: Path) -> Rows:
    """A list of rows; or, as many files of this suffix are, JSON Lines."""
    try:
        text = _decoded(path.read_bytes(), str(path)).removeprefix("\ufeff")
        if not text.strip():
            return
        rows = strict_json(text)
    except MemoryError:
        raise InputError(
            "there is not enough memory for this file, which has to be read whole",
            where=str(path),
            mend="write it as JSON Lines (.jsonl), one row a line",
        ) from None
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise InputError(
                f"not JSON: {error.msg}, column {error.colno}", where=f"{path}:{error.lineno}"
            ) from error
        yield from _json_lines(path)
        return
    except ValueError as error:
        raise InputError(f"not JSON that can be read: {error}", where=str(path)) from error
    if isinstance(rows, dict):  # one row, or rows under one key
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(rows) == 1 and lists and not rows.keys() & _TURNS else [rows]
    if not isinstance(rows, list):
        raise InputError("not a list of rows", where=str(path), mend="write [{...}, {...}] or JSON Lines")
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        yield place, _object(row, place)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the module's own limit (131,072) is shorter than real answers
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(_lines(stream, path), strict=True)
            header = reader.fieldnames or []
            if twice := [column for column, count in Counter(header).items() if count > 1]:
                raise InputError(f"the column {twice[0]!r} is named twice", where=f"{path}:1")
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(
                        f"the row does not have the header's {len(header)} fields",
                        where=place,
                        mend="quote fields that hold commas or line breaks",
                    )
                yield place, dict(row)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason}", where=str(path), mend=_NOT_UTF8) from error
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", where=str(path)) from error


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", without_nulls(row)
    except (
        pyarrow.ArrowException,
        ValueError,
        NotImplementedError,
    ) as error:  # ValueError: text that is not UTF-8
        raise InputError(f"not a readable Parquet file: {first_line(error)}", where=str(path)) from error


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}",
            where=place,
            mend=_NOT_UTF8,
        ) from error


def _json(line: str, place: str) -> Any:
    try:
        return strict_json(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg}, column {error.colno}",
            where=place,
            mend="write one JSON object on each line",
        ) from error
    except ValueError as error:
        raise InputError(f"not JSON that can be read: {error}", where=place) from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(
            f"a row must be a JSON object, and this is a {type(row).__name__}",
            where=place,
            mend='write {"prompt": ..., "response": ...} or another accepted shape',
        )
    return row


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the nulls with which columnar formats fill up objects of unequal keys.

    A column's own null stays: it is an error that should be seen.
    """

    def inner(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: inner(item) for key, item in value.items() if item is not None}
        return [inner(item) for item in value] if isinstance(value, list) else value

    return {column: inner(value) for column, value in row.items()}


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_file(path: Path) -> Rows:
    """The rows of a file, by its suffix.

    Raises:
        InputError: it cannot be read, or is not what its suffix says.
    """
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        raise unreadable(error, path) from error


def unreadable(error: OSError, path: str | Path) -> InputError:
    """What a file says that the system does not let us read."""
    return InputError(
        f"cannot be read: {error.strerror or error}",
        where=str(error.filename or path),
        mend="see that it is a file and that you may read it",
    )


#: By suffix, in the order in which messages name them.
READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_document,
    ".csv": _csv,
    ".parquet": _parquet,
}
