"""What the targets' modules share: safe file names, rows and YAML on disk.

Flows in: domains and what a module made of them. Flows out: files in an export's folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from idealmix import __version__
from idealmix.errors import InputError
from idealmix.export.materialised import Domain, Materialised

Row = dict[str, Any]


class UnfitError(Exception):
    """A row that a target would drop, cut or misread; its text is the reason."""


def safe_stems(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """File names without suffix: ASCII letters, digits, ``-`` and ``_``, unique even where case is not told apart.

    Trainers' command lines give commas, colons, ``#``, brackets and spaces a meaning of their own.
    """
    stems: dict[str, str] = {}
    taken = {name.lower() for name in reserved}
    for name in names:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        stem = base = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-")[:48] or "domain"
        number = 2
        while stem.lower() in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(stem.lower())
        stems[name] = stem
    return stems


def stems_of(mixture: Materialised, reserved: Iterable[str] = ()) -> dict[str, str]:
    """`safe_stems` of the domains that have rows."""
    return safe_stems([domain.name for domain in mixture.filled], reserved)


def converted(domains: Iterable[Domain], convert: Callable[[Row], Row], target: str) -> Iterator[Row]:
    """Every row of `domains` as the target's row.

    Args:
        convert: makes the target's row; raises `UnfitError` with the reason if it cannot.

    Raises:
        InputError: at the end, if rows were unfit: how many, which, why.
    """
    unfit: list[tuple[str, str]] = []
    for domain in domains:
        for record in domain.records():
            try:
                row = convert(record)
            except UnfitError as error:
                unfit.append((f"{record.get('id')!r} of {domain.name!r}", str(error)))
                continue
            yield row
    if unfit:
        count = f"{len(unfit):,} rows" if len(unfit) > 1 else "1 row"
        raise InputError(
            f"{target} cannot take {count}, such as {unfit[0][0]}: {unfit[0][1]}",
            where="mixture",
            mend="mend those rows in the source and run again, or export to hf-dataset or trl",
        )


def write_yaml(path: Path, content: Mapping[str, Any], mixture: Materialised, command: str) -> Path:
    """Write a target's configuration under a comment that says where it comes from."""
    counts = ", ".join(f"{name}: {rows}" for name, rows in mixture.counts.items())
    head = [
        f"Written by idealmix {__version__} from the run {mixture.run.resolve().name}, seed {mixture.seed}.",
        f"Rows, repetitions written out: {counts}.",
        f"In this folder: {command}",
    ]
    body = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    path.write_text("".join(f"# {line}\n" for line in head) + body, encoding="utf-8")
    return path


def refuse_unknown(message: Row, known: set[str]) -> None:
    """Raise for a key that the target would leave out without a word."""
    if unknown := sorted(set(message) - known):
        raise UnfitError(f"a message has {', '.join(map(repr, unknown))}, which would be lost")
