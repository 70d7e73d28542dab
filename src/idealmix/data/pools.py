"""Tokenised pools: what every phase reads rows from.

Flows in: a ``config.Source`` and an `Encoder`. Flows out: a `Pool`, whose rows lie in a memory-mapped Arrow file,
and its report: nothing is dropped, cut or left out without being counted there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idealmix import config
from idealmix.data.conversation import Conversation
from idealmix.data.formats import Reading
from idealmix.data.leaks import check_leaks as check_leaks
from idealmix.data.seeding import seeded_order
from idealmix.data.store import Store
from idealmix.data.tokenise import Encoder
from idealmix.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Row:
    """One tokenised row; labels are unshifted, -100 where there is no loss."""

    id: str
    input_ids: list[int]
    labels: list[int]


@dataclass
class Report:
    """What became of a source's rows: ``read = kept + not_sampled + sum(dropped.values())``.

    Attributes:
        source: path or name, as configured.
        files: SHA-256 of each local file by path; empty for a hub dataset.
        read, kept: rows.
        not_sampled: rows left out by the source's ``rows``.
        truncated: kept rows that were cut at the end.
        dropped: rows by reason.
        repeated_prompts: kept rows whose folded prompt another row before them has.
        unused_columns: columns that were not read.
        warnings: the above in sentences, for the user.
    """

    source: str
    files: dict[str, str] = field(default_factory=dict)
    read: int = 0
    kept: int = 0
    not_sampled: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    repeated_prompts: int = 0
    unused_columns: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


class Pool:
    """Tokenised rows of one domain, reference set or test set, in a fixed order.

    Attributes:
        name: of the domain or set.
        report: what became of the source's rows (shared by subsets).
        ids: (N,) unique row ids.
        tokens: (N,) int64, tokens of each row (nothing is padded).
        supervised: (N,) int64, labels of each row at positions >= 1: what a loss counts.
    """

    def __init__(self, name: str, data: Dataset, report: Report, store: Store | None) -> None:
        self.name, self.report = name, report
        self._data, self._store = data, store
        self._tokenised = data.select_columns(["id", "input_ids", "labels"])
        self._written = data.select_columns(["id", "conversation"])
        self.ids: list[str] = [row_id for batch in self._batches("id") for row_id in batch]
        counts = data.select_columns(["supervised"]).with_format("numpy")[:]["supervised"]
        self.supervised: NDArray[np.int64] = np.asarray(counts, np.int64)
        self.tokens: NDArray[np.int64] = self._lengths()

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        # a copy in another process maps the same file, which stays this process's to remove
        return {**self.__dict__, "_store": None}

    def row(self, number: int) -> Row:
        """The tokenised row at a position."""
        return Row(**self._tokenised[int(number)])

    def conversation(self, number: int) -> Conversation:
        """The row at a position as it was written, for export and generation."""
        found = self._written[int(number)]
        return Conversation.from_json(found["id"], found["conversation"])

    @cached_property
    def index(self) -> dict[str, int]:
        """Position by row id."""
        return {row_id: number for number, row_id in enumerate(self.ids)}

    @cached_property
    def prompt_keys(self) -> NDArray[np.bytes_]:
        """(N,) hashes of the folded prompts, 32 bytes each: as strings millions of them would fill memory."""
        return np.concatenate(
            [np.zeros(0, "S32"), *(np.array(keys, "S32") for keys in self._batches("prompt_key"))]
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rows in order: ids, conversations, token ids and labels."""
        digest = hashlib.sha256()
        for number, batch in enumerate(self._batches("digest")):
            digest.update((("\n" if number else "") + "\n".join(batch)).encode())
        return digest.hexdigest()

    def subset(self, indices: ArrayLike, name: str | None = None) -> Pool:
        """The rows at `indices` (unique), in that order, on the same file."""
        chosen = np.asarray(indices, np.int64)
        return Pool(name or self.name, self._data.select(chosen), self.report, self._store)

    def _batches(self, name: str) -> Iterator[list[Any]]:
        """A column, a thousand rows at a time."""
        for batch in self._data.select_columns([name]).iter(1000):
            yield batch[name]

    def _lengths(self) -> NDArray[np.int64]:
        ids = self._data.select_columns(["input_ids"]).with_format("arrow")
        parts = [
            batch["input_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
            for batch in ids.iter(1000)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def load_pool(name: str, source: config.Source, encoder: Encoder, *, seed: int) -> Pool:
    """Read, tokenise and store a source.

    Args:
        name: of the domain or set.
        source: its ``rows``, if set, takes a sample of rows that depends on the seed, the name and the row ids.

    Raises:
        InputError: the source cannot be read, a row is wrong, or no row with a supervised token is left.
    """
    reading, report, known = Reading(source), Report(source.path), len(encoder.warnings)
    chosen = _sample(name, reading, source.rows, seed) if source.rows else None
    store = Store(_records(name, reading, encoder, chosen, report))
    report.files = {str(path): _file_digest(path) for path in reading.files}
    report.unused_columns = sorted(reading.unused)
    if not report.kept:
        raise InputError(
            f"not one supervised token is left of its {report.read:,} rows, cut at {encoder.max_length} tokens",
            where=f"{name} ({source.path})",
            mend="raise training.max_length, or shorten the prompts",
        )
    pool = Pool(name, store.data, report, store)
    report.repeated_prompts = len(pool) - len(np.unique(pool.prompt_keys))
    raw = reading.shapes["text"]
    report.warnings = [
        sentence
        for counted, sentence in (
            (raw, f"{raw:,} rows are raw text: the loss is on all of it, prompts included"),
            (
                report.truncated,
                f"{report.truncated:,} of {report.kept:,} rows were cut at {encoder.max_length} tokens",
            ),
            *((n, f"{n:,} of {report.read:,} rows were dropped: {why}") for why, n in report.dropped.items()),
            (
                report.repeated_prompts,
                f"{report.repeated_prompts:,} rows repeat the prompt of another row in it",
            ),
            (reading.unused, f"columns not used: {', '.join(report.unused_columns)}"),
        )
        if counted
    ] + [*reading.warnings, *encoder.warnings[known:]]
    return pool


def split_reference(pool: Pool, seed: int) -> tuple[Pool, Pool]:
    """The two halves of a reference set: the first gives gradients, the second decides (sizes differ by one at most).

    Which row goes where follows from the seed, the set's name and the row id.
    """
    order, half = seeded_order(pool.ids, seed, "reference", pool.name), (len(pool) + 1) // 2
    return pool.subset(np.sort(order[:half])), pool.subset(np.sort(order[half:]))


def _sample(name: str, reading: Reading, rows: int, seed: int) -> set[str] | None:
    ids = [conversation.id for conversation in reading]
    if rows >= len(ids):
        return None
    return {ids[number] for number in seeded_order(ids, seed, "sample", name)[:rows]}


def _records(
    name: str, reading: Reading, encoder: Encoder, chosen: set[str] | None, report: Report
) -> Iterator[dict[str, Any]]:
    dropped: Counter[str] = Counter()
    for conversation in reading:
        report.read += 1
        if chosen is not None and conversation.id not in chosen:
            report.not_sampled += 1
            continue
        try:
            encoded = encoder.encode(conversation)
        except InputError as error:
            place = f"{name} ({reading.source.path}), row {conversation.id!r}"
            raise InputError(error.what, where=place, mend=error.mend) from error
        if not encoded.supervised:
            cut = "no supervised token before the cut" if encoded.truncated else "no supervised token"
            dropped[cut] += 1
            continue
        report.kept += 1
        report.truncated += encoded.truncated
        text = conversation.to_json()
        tokens = np.array([encoded.input_ids, encoded.labels], "<i4").tobytes()
        yield {
            "id": conversation.id,
            "conversation": text,
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "supervised": encoded.supervised,
            "prompt_key": conversation.prompt_key(),
            "digest": hashlib.sha256(f"{conversation.id}\0{text}\0".encode() + tokens).hexdigest()[:32],
        }
    report.dropped = dict(dropped)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
