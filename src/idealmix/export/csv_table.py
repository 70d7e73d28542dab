"""CSV, for spreadsheets and everything else.

Flows in: a materialised mixture. Flows out: ``mixture.csv`` (every row: ``id``, ``domain``, then ``messages`` and
``tools`` as JSON text, or ``text``; idealmix reads it back) and ``counts.csv`` (a line a domain).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from idealmix.export.materialised import Materialised

_COMMAND = "open mixture.csv or counts.csv"

_COUNTED = ("rows", "tokens", "supervised_tokens", "unique_rows", "repeats", "pool_rows")


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write both tables."""
    rows, counts = output / "mixture.csv", output / "counts.csv"
    kinds = [kind for kind in ("messages", "text") if kind in mixture.kinds]
    columns = ["id", "domain", *kinds, *([] if mixture.plain else ["tools"])]
    with rows.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns, restval="")
        table.writeheader()
        for domain in mixture.domains:
            for record in domain.records():
                table.writerow(
                    {"domain": domain.name, **{key: _cell(value) for key, value in record.items()}}
                )
    total = sum(mixture.counts.values())
    with counts.open("w", encoding="utf-8", newline="") as stream:
        plain = csv.writer(stream)
        plain.writerow(["domain", *_COUNTED, "share_of_rows"])
        for domain in mixture.domains:
            figures = [domain.facts.get(name) for name in _COUNTED]
            plain.writerow([domain.name, *figures, domain.rows / total])
    return [rows, counts], _COMMAND


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
