"""Reads a source: a file, a folder or a Hugging Face dataset, row by row, into conversations.

Flows in: a ``config.Source``. Flows out: `Reading`, which yields ``Conversation``s with unique ids and keeps what a
report needs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from idealmix import config
from idealmix.data.conversation import Conversation
from idealmix.data.files import READERS, Rows, first_line, read_file, unreadable, without_nulls
from idealmix.data.shapes import refuse_halves, shaped
from idealmix.errors import InputError

# Names by which a folder's files are told apart; the split's own name is asked for first.
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "reference")


class Reading:
    """The conversations of a source, and what was noticed on the way (complete after the iteration).

    A row's id is its ``id`` as a string; a row without one gets a hash of its content, made unique by a suffix.

    Attributes:
        files: the local files that are read; empty for a hub dataset.
        shapes: rows by their columns (see ``shapes``).
        unused: columns that no shape uses.
        warnings: what of the source is not read, in sentences for the user.

    Raises (while iterating):
        InputError: nothing there, unreadable, not UTF-8, not JSON, a wrong row, an id twice, or no rows.
    """

    def __init__(self, source: config.Source) -> None:
        self.source = source
        self.warnings: list[str] = []
        try:
            self._found = _find(source, self.warnings)
        except OSError as error:
            raise unreadable(error, source.path) from error
        except (ValueError, RuntimeError) as error:  # a zero byte; a home folder of nobody
            raise InputError(f"not a path: {error}", where=source.path) from error
        self.files = self._found if isinstance(self._found, list) else []
        self.shapes: Counter[str] = Counter()
        self.unused: set[str] = set()

    def __iter__(self) -> Iterator[Conversation]:
        self.shapes.clear()
        numbers: dict[str, int] = {}  # of the rows by id; their places would take three times the memory
        for number, (place, row) in enumerate(self._rows()):
            found = shaped(row, place)
            self.shapes[found.shape] += 1
            self.unused |= found.unused
            conversation = Conversation("", found.messages, found.tools, found.text)
            if "id" in row:
                row_id = _given_id(row["id"], place)
                if row_id in numbers:
                    raise InputError(
                        f"the id {row_id!r} is given twice; it also stands at {self._place(numbers[row_id])}",
                        where=place,
                        mend="give each row its own id, or leave the ids out: they are then made from the content",
                    )
            else:
                row_id = _unique(hashlib.sha256(conversation.to_json().encode()).hexdigest()[:16], numbers)
            numbers[row_id] = number
            yield Conversation(row_id, found.messages, found.tools, found.text)
        if not numbers:
            raise InputError(
                "there are no rows in it", where=self.source.path, mend="give a file with at least one row"
            )

    def _place(self, number: int) -> str:
        """Where a row stands, by reading up to it again."""
        return next(place for at, (place, _) in enumerate(self._rows()) if at == number)

    def _rows(self) -> Rows:
        if isinstance(self._found, list):
            for path in self._found:
                yield from read_file(path)
        else:
            for number, row in enumerate(self._found, 1):
                yield f"{self.source.path}, row {number}", without_nulls(row)


def _given_id(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(
            f"'id' is {value!r}, neither a string nor a whole number", where=place, mend="or leave the id out"
        )
    refuse_halves(str(value), "'id'", place)
    return str(value)


def _unique(wanted: str, taken: Mapping[str, Any]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _find(source: config.Source, warnings: list[str]) -> list[Path] | Any:
    """The files to read, or a ``datasets.Dataset``; `warnings` receives what is left out."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _folder(path, source, warnings)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise InputError(
                f"files of type {path.suffix or 'without a suffix'!r} are not read",
                where=str(path),
                mend=f"accepted are {', '.join(READERS)}, folders, and Hugging Face dataset names",
            )
        given = {"name": source.name is not None, "split": source.split != "train"}
        if idle := [key for key, is_given in given.items() if is_given]:
            raise InputError(
                f"a single file is read whole: {' and '.join(idle)} would change nothing",
                where=str(path),
                mend="leave that out, or give a folder or a hub dataset",
            )
        return [path]
    looks_local = path.suffix.lower() in READERS or source.path.startswith(("/", ".", "~"))
    if looks_local or source.path.count("/") > 1 or "\\" in source.path:
        raise InputError("no such file or folder", where=source.path, mend="check the path's spelling")
    return _load_dataset(source.path, source)


def _folder(folder: Path, source: config.Source, warnings: list[str]) -> list[Path] | Any:
    """A folder that ``save_to_disk`` wrote, a downloaded dataset repository, or one that holds data files."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, source)
    if source.name is not None or _has_configurations(folder / "README.md"):
        return _load_dataset(str(folder), source)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix.lower() in READERS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise InputError(
            f"the folder holds no file of an accepted type ({', '.join(READERS)})",
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
    if left := [str(path.relative_to(folder)) for path in files if splits[path] is None]:
        more = f" and {len(left) - 10:,} more" if len(left) > 10 else ""
        warnings.append(
            f"of this folder only the files that are named after the split {source.split!r} are read; no split is "
            f"in the name of {', '.join(left[:10])}{more}"
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
            f"this folder of datasets' save_to_disk cannot be read: {first_line(error)}", where=str(folder)
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
            + first_line(error),
            where=path,
            mend="check the spelling, name, split and the network; or give a downloaded file",
        ) from error
