"""Rows as Parquet with types that are stated, not guessed.

Flows in: a mixture's domains. Flows out: one Parquet file a domain, all with the same columns and types, so that
they concatenate. Loaders of JSON guess types file by file: a domain with tool calls then has other types than one
without, and a text that looks like a date can become one.

Columns: ``id`` and ``domain`` (text), ``messages`` (a list of role and content; of JSON objects where any message
of the mixture has more than those), ``tools`` (JSON text) and ``text``, each only where some row has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idealmix.export.materialised import Domain, Materialised

if TYPE_CHECKING:
    import datasets

# Rows in one row group: bounds the memory that writing and reading take.
_GROUP = 1000


def columns(mixture: Materialised) -> datasets.Features:
    """The columns that hold every row of the mixture."""
    import datasets

    text = datasets.Value("string")
    found: dict[str, Any] = {"id": text, "domain": text}
    if "messages" in mixture.kinds:
        message = {"role": text, "content": text} if mixture.plain else datasets.Json()
        found["messages"] = datasets.List(message)
    if not mixture.plain:
        found["tools"] = text
    if "text" in mixture.kinds:
        found["text"] = text
    return datasets.Features(found)


def write_parquet(path: Path, domain: Domain, features: datasets.Features) -> Path:
    """Write one domain; `features` are those of the whole mixture."""
    import datasets
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        for rows in _groups(_row(record, domain.name, features) for record in domain.records()):
            writer.write_table(datasets.Dataset.from_list(rows, features=features).data.table)
    return path


def _row(record: dict[str, Any], domain: str, columns: Iterable[str]) -> dict[str, Any]:
    tools = {"tools": json.dumps(record["tools"], ensure_ascii=False)} if "tools" in record else {}
    row = {**record, **tools, "domain": domain}
    return {name: row.get(name) for name in columns}


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while group := list(islice(rows, _GROUP)):
        yield group
