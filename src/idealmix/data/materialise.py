"""A mixture as files that any trainer reads: one JSON Lines file a domain, and a manifest.

Flows in: a mixture and the pools it was drawn from. Flows out: a folder of ``<domain>.jsonl`` (rows in the
``messages`` format, or ``text``) and ``manifest.json``::

    {"format": 1, "idealmix": version, "seed": 0, "rows": ..., "tokens": ..., "supervised_tokens": ...,
     "domains": {"math": {"file": "math.jsonl", "sha256": of that file, "rows": ..., "tokens": ...,
                          "supervised_tokens": ..., "pool_rows": ..., "unique_rows": ..., "repeats": largest number
                          of times a row stands in it, "pool_digest": ..., "source": {"path", "files": {path: sha256}}}}}

Tokens are counted after cutting at ``max_length``; the files hold the rows uncut. A row that is repeated keeps its
id the first time, and has ``#2``, ``#3`` ... behind it after that; a number whose id the pool has already is passed
over, so that ids stay unique.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from idealmix.data.mixture import Mixture, write_json
from idealmix.data.pools import Pool
from idealmix.errors import IdealmixError


def export_jsonl(mixture: Mixture, folder: str | Path, pools: Mapping[str, Pool]) -> Path:
    """Write the mixture's rows and manifest into `folder` (made if need be); the manifest is written last.

    Raises:
        IdealmixError: the folder cannot be written.
    """
    folder = Path(folder)
    domains = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in mixture.parts.items():
            file, pool = folder / f"{quote(name, safe=' ')}.jsonl", pools[name]
            times = Counter(part.row_ids)
            domains[name] = {
                "file": file.name,
                "sha256": _write_rows(file, part.row_ids, pool),
                "rows": part.rows,
                "tokens": part.tokens,
                "supervised_tokens": part.supervised_tokens,
                "pool_rows": part.pool_rows,
                "unique_rows": len(times),
                "repeats": max(times.values(), default=0),
                "pool_digest": part.pool_digest,
                "source": {"path": pool.report.source, "files": pool.report.files},
            }
    except OSError as error:
        raise IdealmixError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    manifest = {
        "format": 1,
        "idealmix": version("idealmix"),
        "seed": mixture.seed,
        "rows": mixture.rows,
        "tokens": mixture.tokens,
        "supervised_tokens": mixture.supervised_tokens,
        "domains": domains,
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def _write_rows(path: Path, row_ids: list[str], pool: Pool) -> str:
    digest, seen = hashlib.sha256(), Counter[str]()
    with path.open("wb") as stream:
        for row_id in row_ids:
            row = pool.conversation(pool.index[row_id]).record()
            seen[row_id] += 1
            if seen[row_id] > 1:
                while (repeat := f"{row_id}#{seen[row_id]}") in pool.index:
                    seen[row_id] += 1
                row["id"] = repeat
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            stream.write(line)
    return digest.hexdigest()
