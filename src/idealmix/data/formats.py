"""Reads a source: a file, a folder or a Hugging Face dataset, row by row, into conversations.

Flows in: a ``config.Source``. Flows out: `Reading`, which yields ``Conversation``s with unique ids and keeps what a
report needs. Rows stream; a file is never held whole, except ``.json``, which has to be.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from idealmix import config
from idealmix.data.conversation import Conversation
from idealmix.data.shapes import shaped
from idealmix.errors import InputError

Rows = Iterator[tuple[str, dict[str, Any]]]

_NOT_UTF8 = "save it as UTF-8, for example: iconv -f LATIN1 -t UTF-8 FILE"
# Names by which a folder's files are told apart; the split's own name is asked for first.
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "reference")


class Reading:
    """The conversations of a source, and what was noticed on the way (complete after the iteration).

    A row's id is its ``id`` as a string; a row without one gets a hash of its content, made unique by a suffix.

    Attributes:
        files: the local files that are read; empty for a hub dataset.
        shapes: rows by their columns (see ``shapes``).
        unused: columns that no shape uses.

    Raises (while iterating):
        InputError: nothing there, unreadable, not UTF-8, not JSON, a wrong row, an id twice, or no rows.
    """

    def __init__(self, source: config.Source) -> None:
        self.source = source
        self._found = _find(source)
        self.files = self._found if isinstance(self._found, list) else []
        self.shapes: Counter[str] = Counter()
        self.unused: set[str] = set()

    def __iter__(self) -> Iterator[Conversation]:
        self.shapes.clear()
        places: dict[str, str] = {}
        for place, row in self._rows():
            found = shaped(row, place)
            self.shapes[found.shape] += 1
            self.unused |= found.unused
            conversation = Conversation("", found.messages, found.tools, found.text)
            if "id" in row:
                row_id = _given_id(row["id"], place)
                if row_id in places:
                    raise InputError(
                        f"the id {row_id!r} is given twice; it also stands at {places[row_id]}",
                        where=place,
                        mend="give each row its own id, or leave the ids out: they are then made from the content",
                    )
            else:
                row_id = _unique(hashlib.sha256(conversation.to_json().encode()).hexdigest()[:16], places)
            places[row_id] = place
            yield Conversation(row_id, found.messages, found.tools, found.text)
        if not places:
            raise InputError(
                "there are no rows in it", where=self.source.path, mend="give a file with at least one row"
            )

    def _rows(self) -> Rows:
        if isinstance(self._found, list):
            for path in self._found:
                yield from _READERS[path.suffix.lower()](path)
        else:
            for number, row in enumerate(self._found, 1):
                yield f"{self.source.path}, row {number}", _without_nulls(row)


def _given_id(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(
            f"'id' is {value!r}, neither a string nor a whole number", where=place, mend="or leave the id out"
        )
    return str(value)


def _unique(wanted: str, taken: Mapping[str, Any]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _find(source: config.Source) -> list[Path] | Any:
    """The files to read, or a ``datasets.Dataset``."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _folder(path, source)
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise InputError(
                f"files of type {path.suffix or 'without a suffix'!r} are not read",
                where=str(path),
                mend=f"accepted are {', '.join(_READERS)}, folders, and Hugging Face dataset names",
            )
        return [path]
    looks_local = path.suffix.lower() in _READERS or source.path.startswith(("/", ".", "~"))
    if looks_local or source.path.count("/") > 1 or "\\" in source.path:
        raise InputError("no such file or folder", where=source.path, mend="check the path's spelling")
    return _load_dataset(source.path, source)


def _folder(folder: Path, source: config.Source) -> list[Path] | Any:
    """A folder that ``save_to_disk`` wrote, a downloaded dataset repository, or one that holds data files."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, source)
    if source.name is not None or _has_configurations(folder / "README.md"):
        return _load_dataset(str(folder), source)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix.lower() in _READERS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise InputError(
            f"the folder holds no file of an accepted type ({', '.join(_READERS)})",
            where=str(folder),
            mend="give a file, or a folder that holds data files",
        )
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    if set(splits.values()) == {None}:
        return files
    chosen = [path for path in files if splits[path] == source.split]
    if not chosen:
        raise InputError(
            f"no file is named after the split {source.split!r}; there are: "
            + ", ".join(path.name for path in files[:10]),
            where=str(folder),
            mend="name one file, or set split to one of "
            + ", ".join(sorted({split for split in splits.values() if split})),
        )
    return chosen


def _split_of(path: Path) -> str | None:
    """``train`` of ``train-00000-of-00002.parquet`` and of ``train/a.jsonl``; None where no name tells."""
    for part in (path.stem, *(parent.name for parent in path.parents)):
        word = part.lower().replace(".", "-").replace("_", "-").split("-")[0]
        if word in _SPLITS:
            return word
    return None


def _has_configurations(card: Path) -> bool:
    """Whether a dataset card says which files make up which configuration and split."""
    if not card.is_file():
        return False
    head = card.read_text(encoding="utf-8", errors="replace").split("---")
    return len(head) > 2 and any(line.startswith("configs:") for line in head[1].splitlines())


def _saved(folder: Path, source: config.Source) -> Any:
    import datasets

    try:
        saved: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"this folder of datasets' save_to_disk cannot be read: {_first_line(error)}", where=str(folder)
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if source.split not in saved:
            raise InputError(
                f"it has no split {source.split!r}", where=str(folder), mend=f"there are: {', '.join(saved)}"
            )
        return saved[source.split]
    return saved


def _load_dataset(path: str, source: config.Source) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(path, source.name, split=source.split)
    except (DatasetsError, OSError, ValueError, RuntimeError, TypeError) as error:
        named = f" (configuration {source.name!r})" if source.name else ""
        raise InputError(
            f"neither a file or folder here, nor could datasets load it{named}, split {source.split!r}: "
            + _first_line(error),
            where=path,
            mend="check the spelling, name, split and the network; or give a downloaded file",
        ) from error


def _json_lines(path: Path) -> Rows:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            place = f"{path}:{number}"
            line = _decoded(raw, place)
            if number == 1:
                line = line.removeprefix("\ufeff")
            if line.strip():
                yield place, _object(_json(line, place), place)


def _json_document(path: Path) -> Rows:
    """A list of rows; or, as many files of this suffix are, JSON Lines."""
    text = _decoded(path.read_bytes(), str(path)).removeprefix("\ufeff")
    if not text.strip():
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise InputError(
                f"not JSON: {error.msg}, column {error.colno}", where=f"{path}:{error.lineno}"
            ) from error
        yield from _json_lines(path)
        return
    if isinstance(rows, dict):  # one row, or rows under one key
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(rows) == 1 and lists and "messages" not in rows else [rows]
    if not isinstance(rows, list):
        raise InputError("not a list of rows", where=str(path), mend="write [{...}, {...}] or JSON Lines")
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        yield place, _object(row, place)


def _csv(path: Path) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the module's own limit (131,072) is shorter than real answers
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
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
                    yield f"{path}, row {number}", _without_nulls(row)
    except pyarrow.ArrowException as error:
        raise InputError(f"not a readable Parquet file: {_first_line(error)}", where=str(path)) from error


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_document,
    ".csv": _csv,
    ".parquet": _parquet,
}


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
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg}, column {error.colno}",
            where=place,
            mend="write one JSON object on each line",
        ) from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(
            f"a row must be a JSON object, and this is a {type(row).__name__}",
            where=place,
            mend='write {"prompt": ..., "response": ...} or another accepted shape',
        )
    return row


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the nulls with which columnar formats fill up objects of unequal keys.

    A column's own null stays: it is an error that should be seen.
    """

    def inner(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: inner(item) for key, item in value.items() if item is not None}
        return [inner(item) for item in value] if isinstance(value, list) else value

    return {column: inner(value) for column, value in row.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
