"""Rows as Parquet with types that are stated, not guessed.

Flows in: a mixture's domains. Flows out: one Parquet file a domain, all with the same columns and types, so that
they concatenate. Loaders of JSON guess types file by file: a domain with tool calls then has other types than one
without, and where every text of a file looks like a date, the texts become timestamps.

Columns of a whole mixture: ``id`` and ``domain`` (text), ``messages`` (a list of role and content; of JSON objects where any message
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


def turns(tools: bool) -> datasets.Features:
    """Columns of rows whose messages are a role and a content; `tools` as JSON text if there are any."""
    import datasets

    text = datasets.Value("string")
    message = datasets.List({"role": text, "content": text})
    return datasets.Features({"id": text, "messages": message, **({"tools": text} if tools else {})})


def texts(*names: str) -> datasets.Features:
    """Columns of text."""
    import datasets

    return datasets.Features({name: datasets.Value("string") for name in names})


def records(domain: Domain) -> Iterator[dict[str, Any]]:
    """A domain's rows with its name, `tools` as JSON text."""
    for record in domain.records():
        tools = {"tools": json.dumps(record["tools"], ensure_ascii=False)} if "tools" in record else {}
        yield {**record, **tools, "domain": domain.name}


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], features: datasets.Features) -> Path:
    """Write rows; columns that a row lacks are null, and what `features` does not name is left out."""
    import datasets
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        for group in _groups({name: row.get(name) for name in features} for row in rows):
            writer.write_table(datasets.Dataset.from_list(group, features=features).data.table)
    return path


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while group := list(islice(rows, _GROUP)):
        yield group
