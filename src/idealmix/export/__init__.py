"""A run's final mixture as files that another trainer takes as they are.

Flows in: a run folder (its ``mixture/``, its ``config.yaml``) and a target's name. Flows out: a folder of rows, the
target's own configuration, and ``provenance.json``. Counts stay exact: repetitions are already written out, so no
target is asked to sample, weigh or repeat anything. A row that the target would drop or cut down is an error.
"""

from __future__ import annotations

import difflib
import importlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idealmix.errors import IdealmixError, InputError
from idealmix.export.materialised import read_materialised
from idealmix.export.provenance import write_provenance

# Each module has write(mixture, output) -> (files, what to run in the folder).
TARGETS = {
    "trl": "idealmix.export.trl",
    "llama-factory": "idealmix.export.llama_factory",
    "axolotl": "idealmix.export.axolotl",
    "ms-swift": "idealmix.export.ms_swift",
    "open-instruct": "idealmix.export.open_instruct",
    "nemo": "idealmix.export.nemo",
    "hf-dataset": "idealmix.export.hf_dataset",
    "csv": "idealmix.export.csv_table",
}


@dataclass(frozen=True)
class Exported:
    """What was written: `counts` are rows by domain, `command` is run inside `folder`."""

    target: str
    folder: Path
    files: list[Path]
    counts: dict[str, int]
    command: str

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "target": self.target,
            "output": str(self.folder),
            "files": [str(file.relative_to(self.folder)) for file in self.files],
            "counts": self.counts,
            "rows": sum(self.counts.values()),
            "command": self.command,
        }


def export(run: str | Path, target: str, output: str | Path | None = None) -> Exported:
    """Write a run's mixture for a target.

    Args:
        run: a run folder whose final mixture is written.
        target: a key of `TARGETS`.
        output: a folder that is absent or empty; default ``RUN/export/TARGET``. It is there whole or not at all.

    Raises:
        InputError: an unknown target; no run, or one without a mixture; files that are not the run's any more;
            an output that holds something; rows that the target cannot take.
        IdealmixError: the output cannot be written.
    """
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{target!r} is no export target", where="--to", mend=hint + "there are: " + ", ".join(TARGETS)
        )
    mixture = read_materialised(Path(run))
    folder = Path(output) if output is not None else Path(run) / "export" / target
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError("this is not a folder", where=str(folder), mend="give another --output")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            "this folder is not empty", where=str(folder), mend="give another --output, or empty it first"
        )
    module = importlib.import_module(TARGETS[target])
    try:
        folder = Path(os.path.realpath(folder))  # "." has no name, nor anything beside it
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            part = Path(scratch, folder.name)  # inside, for a temporary folder is its owner's alone
            part.mkdir()
            written, command = module.write(mixture, part)
            written.append(write_provenance(mixture, target, part, written))
            if folder.exists():
                folder.rmdir()
            os.replace(part, folder)
    except OSError as error:
        raise IdealmixError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    files = [folder / file.relative_to(part) for file in written]
    return Exported(target, folder, files, mixture.counts, command)
