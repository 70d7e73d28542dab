"""Where a pool's rows lie: an Arrow file that is mapped into memory, not loaded.

Flows in: records, one by one. Flows out: a `Store`, whose ``data`` is a ``datasets.Dataset`` on that file. The file
goes when the last pool on it goes, and at the latest when the process ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from idealmix.errors import IdealmixError

if TYPE_CHECKING:
    from datasets import Dataset

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "conversation": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "supervised": pa.int32(),
        "prompt_key": pa.string(),
        "digest": pa.string(),
    }
)
_BATCH = 1000


class Store:
    """Writes `records` (dicts of the columns id, conversation, input_ids, labels, supervised, prompt_key, digest).

    Raises:
        IdealmixError: the temporary folder cannot be written; what `records` raises passes through.
    """

    def __init__(self, records: Iterator[Mapping[str, Any]]) -> None:
        from datasets import Dataset

        folder = tempfile.mkdtemp(prefix="idealmix-")
        weakref.finalize(self, _remove, folder, os.getpid())
        path = Path(folder) / "pool.arrow"
        try:
            sink = pa.OSFile(str(path), "wb")
            with sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
                while batch := list(islice(records, _BATCH)):
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_SCHEMA))
        except OSError as error:  # of the writing, or of closing what was written: `records` raises none
            raise IdealmixError(
                f"the tokenised rows cannot be written: {error}",
                where=folder,
                mend="free some space, or set TMPDIR to a larger disk",
            ) from error
        self.data: Dataset = Dataset.from_file(str(path))


def _remove(folder: str, owner: int) -> None:
    # a forked worker holds a copy of the store, and must not take the file from its parent
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
