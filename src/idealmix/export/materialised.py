"""A run's materialised mixture, read and checked.

Flows in: a run folder. Flows out: its domains with their files (hashes and counts verified), and what the run was
trained with, for the targets that take settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from idealmix.config import Training
from idealmix.errors import InputError


@dataclass(frozen=True)
class Domain:
    """One domain's rows.

    Attributes:
        name: as the user gave it.
        path: its JSON Lines file, repetitions included.
        facts: its entry of the mixture's manifest.
        kinds: which of ``messages`` and ``text`` its rows are.
        plain: every message is a role and a content, and no row has tools.
    """

    name: str
    path: Path
    facts: dict[str, Any]
    kinds: frozenset[str]
    plain: bool

    @property
    def rows(self) -> int:
        """Rows, repetitions included."""
        return int(self.facts["rows"])

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows: ``id`` and ``messages`` (perhaps ``tools``), or ``id`` and ``text``."""
        with self.path.open("rb") as stream:
            for line in stream:
                yield json.loads(line)


@dataclass(frozen=True)
class Materialised:
    """A run's final mixture.

    Attributes:
        run: the run folder.
        manifest: of the mixture.
        domains: in the manifest's order; those without rows included.
        model: the base model that the run started from, if the run says.
        training: the run's settings; None where an outside command trained, or the run does not say.
    """

    run: Path
    manifest: dict[str, Any]
    domains: list[Domain]
    model: str | None
    training: Training | None

    @property
    def counts(self) -> dict[str, int]:
        """Rows by domain."""
        return {domain.name: domain.rows for domain in self.domains}

    @property
    def seed(self) -> int:
        """Of the draw."""
        return int(self.manifest["seed"])

    @property
    def filled(self) -> list[Domain]:
        """The domains that have rows: no loader takes an empty file."""
        return [domain for domain in self.domains if domain.rows]

    @property
    def plain(self) -> bool:
        """No tools and no further keys anywhere."""
        return all(domain.plain for domain in self.domains)

    @property
    def kinds(self) -> frozenset[str]:
        """Of all rows."""
        return frozenset[str]().union(*(domain.kinds for domain in self.domains))

    def kind(self, target: str) -> str:
        """``messages`` or ``text``, for a target that takes one of them in one training.

        Raises:
            InputError: the mixture has both.
        """
        if len(self.kinds) > 1:
            having = [repr(domain.name) for domain in self.domains if "text" in domain.kinds]
            raise InputError(
                f"{target} trains on conversations or on raw texts, and this mixture has both "
                f"(raw texts in {', '.join(having)})",
                where=str(self.run),
                mend="export to hf-dataset or csv, or give those domains as conversations",
            )
        return next(iter(self.kinds))


def read_materialised(run: Path) -> Materialised:
    """Read and verify the final mixture of a run.

    Raises:
        InputError: not a run folder, no mixture yet, or files that differ from the manifest.
    """
    manifest_path = run / "mixture" / "manifest.json"
    if not manifest_path.is_file():
        known = [name for name in ("config.yaml", "manifest.json", ".phases") if (run / name).exists()]
        if not run.is_dir() or not known:
            missing = "no such folder" if not run.exists() else "this is not a run folder"
            raise InputError(missing, where=str(run), mend="give the `output` folder of a finished run")
        raise InputError(
            "this run has no final mixture yet",
            where=str(run),
            mend=f"let it end: idealmix run {run / 'config.yaml'}",
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["format"] != 1:
            raise InputError(f"its format is {manifest['format']!r}, and 1 is read", where=str(manifest_path))
        entries = {str(name): dict(entry) for name, entry in manifest["domains"].items()}
        int(manifest["seed"])
        domains = [_domain(name, entry, manifest_path.parent) for name, entry in entries.items()]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(manifest_path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a mixture's manifest: {error!r}", where=str(manifest_path)) from error
    model, training = _settings(run)
    return Materialised(run, manifest, domains, model, training)


def _domain(name: str, entry: dict[str, Any], folder: Path) -> Domain:
    """Hash, count and look at one file."""
    path = folder / Path(str(entry["file"])).name  # a manifest cannot point out of its folder
    if not path.is_file():
        raise _changed(path, f"the file of {name!r} is missing")
    digest, rows, kinds, plain = hashlib.sha256(), 0, set(), True
    with path.open("rb") as stream:
        for line in stream:
            digest.update(line)
            rows += 1
            try:
                row = json.loads(line)
                kinds.add("text" if "text" in row else "messages")
                plain = plain and "tools" not in row
                plain = plain and all(
                    set(message) == {"role", "content"} for message in row.get("messages", ())
                )
            except (ValueError, TypeError):
                raise _changed(path, f"line {rows} is not a row") from None
    if digest.hexdigest() != entry["sha256"] or rows != int(entry["rows"]):
        raise _changed(path, "it has changed since the run wrote it")
    return Domain(name, path, entry, frozenset(kinds), plain)


def _changed(path: Path, what: str) -> InputError:
    return InputError(what, where=str(path), mend="`idealmix run` on the run's config.yaml writes it again")


def _settings(run: Path) -> tuple[str | None, Training | None]:
    """The model and training block of the run's resolved configuration; its data need not be there any more."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        training = Training.model_validate(config["training"])
        return str(config["model"]), training if training.backend == "trl" else None
    except FileNotFoundError:
        return None, None
    except (
        OSError, yaml.YAMLError, RecursionError, ValidationError, KeyError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise InputError(
            f"not a run's configuration: {error}",
            where=str(run / "config.yaml"),
            mend="restore it, or take it away to export without the training's settings",
        ) from error
