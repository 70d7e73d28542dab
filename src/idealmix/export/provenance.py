"""Where an export comes from, in the export.

Flows in: a materialised mixture and the files that were written. Flows out: ``provenance.json``: run, seed, exact
counts, hashes of the data and of every file, versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from idealmix import __version__
from idealmix.data.mixture import write_json
from idealmix.export.materialised import Materialised


def write_provenance(mixture: Materialised, target: str, folder: Path, files: Iterable[Path]) -> Path:
    """Write ``provenance.json`` into `folder`."""
    manifest = mixture.manifest
    training = mixture.training.model_dump(mode="json") if mixture.training else None
    content = {
        "format": 1,
        "target": target,
        "idealmix": __version__,
        "run": mixture.run.resolve().name,
        "mixture_written_by": manifest.get("idealmix"),
        "seed": manifest["seed"],
        "rows": manifest.get("rows"),
        "tokens": manifest.get("tokens"),
        "supervised_tokens": manifest.get("supervised_tokens"),
        "domains": manifest["domains"],
        "model": mixture.model,
        "training": training,
        "files": {file.relative_to(folder).as_posix(): _sha256(file) for file in files},
    }
    path = folder / "provenance.json"
    write_json(path, content)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
