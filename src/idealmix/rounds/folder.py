"""The run folder: one lock, and phases that are done exactly once.

Flows in: a phase's name, what it depends on, and the function that produces it. Flows out: the artifact on disk
(a file or a folder), whole or not there at all.

A phase writes to ``<name>.part``; when that is complete its marker ``.phases/<name>.done`` is written, then the part
is renamed. The marker holds the phase's key (the hash of its inputs, which include the keys of the phases before
it), the hash of every file, and the seconds that it took. On resume a phase counts as done when key and hashes agree,
whether or not the rename was reached; anything else is done again, and the reason is told. No clock decides anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idealmix.disk import disk_errors, hash_json, read_json, remove, settle, write_json, write_text
from idealmix.errors import IdealmixError

# Part of every key: raise it when the meaning of an artifact changes, so that old ones are not mixed in.
FORMAT = 1

SEARCH = "search"
"""In the folder of a run with a ``search`` block: the folder of the search, a run of its own."""

# Behind a claim's key once its part is whole, but not hashed yet: hashing a checkpoint takes its time.
_WRITTEN = "\nwritten\n"


@dataclass(frozen=True)
class Artifact:
    """A finished phase: where it lies, its key, its seconds, and whether this process made it."""

    path: Path
    key: str
    seconds: float
    fresh: bool

    def json(self) -> Any:
        """The artifact's content, for a phase that is one JSON file."""
        return read_json(self.path)


@dataclass(frozen=True)
class Begun:
    """A phase under way: where to write, and when it started (monotonic seconds)."""

    name: str
    key: str
    part: Path
    started: float


class RunFolder:
    """One run on disk.

    Args:
        path: the folder; made if it is absent.
        tell: receives one sentence for every unusual thing found (a redone phase).
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda text: None) -> None:
        self.path, self._tell = path, tell
        self._digests: dict[tuple[int, ...], str] = {}  # of files as they were when this process read them

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process.

        Raises:
            IdealmixError: another process holds it, or the folder cannot be written.
        """
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held by the with below)
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                raise IdealmixError(
                    f"another process (pid {handle.read().strip() or 'unknown'}) is working on this run",
                    where=str(self.path),
                    mend="wait for it or stop it, or give this run another output folder",
                ) from None
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def phase(self, name: str, inputs: Mapping[str, Any], produce: Callable[[Path], Any]) -> Artifact:
        """Do a phase unless it is done.

        Args:
            name: the artifact's path inside the run folder, such as ``round-0/evaluation.json``.
            inputs: everything that the result depends on, as plain JSON data.
            produce: writes the artifact to the path that it is given: a file if `name` has a suffix, else an
                existing folder. That folder may hold what an interrupted attempt with the same key left.

        Raises:
            IdealmixError: the disk is full or cannot be written; what was finished before is kept.
        """
        begun = self.begin(name, inputs)
        if isinstance(begun, Artifact):
            return begun
        with disk_errors(begun.part):
            produce(begun.part)
        return self.finish(begun)

    def begin(self, name: str, inputs: Mapping[str, Any]) -> Artifact | Begun:
        """The finished artifact, or the part that is to be written; several processes may then write it together."""
        key = hash_json({"format": FORMAT, "phase": name, "inputs": inputs})
        if (done := self.finished(name, key)) is not None:
            return done
        final = self.path / name
        part, claim = self._part(name), self._claim(name)
        begun = Begun(name, key, part, time.monotonic())
        with disk_errors(final):
            left = self._left(name)
            if left == key + _WRITTEN and part.exists():
                return self.finish(begun)
            if left != key:
                remove(part)
            self._marker(name).unlink(missing_ok=True)  # from here on one tells of this part
            final.parent.mkdir(parents=True, exist_ok=True)
            write_text(claim, key)
            if not final.suffix:
                part.mkdir(exist_ok=True)
        return begun

    def finish(self, begun: Begun) -> Artifact:
        """Promote a written part: claim, marker, rename; a kill between any two of them loses nothing."""
        final, marker = self.path / begun.name, self._marker(begun.name)
        with disk_errors(final):
            settle(begun.part)
            write_text(self._claim(begun.name), begun.key + _WRITTEN)
            seconds = round(time.monotonic() - begun.started, 3)
            marker.parent.mkdir(parents=True, exist_ok=True)
            write_json(marker, {"key": begun.key, "files": self._hashes(begun.part), "seconds": seconds})
            self._promote(begun.name)
        return Artifact(final, begun.key, seconds, fresh=True)

    def finished(self, name: str, key: str) -> Artifact | None:
        """The artifact if it is done, whole and made from the same inputs."""
        marker, final = self._marker(name), self.path / name
        if not marker.exists():
            return None
        try:
            done = read_json(marker)
            made_from, files, seconds = done["key"], done["files"], float(done["seconds"])
        except (IdealmixError, KeyError, TypeError, ValueError):
            self._tell(f"{name}: its completion marker is damaged; doing this phase again")
            return None
        if made_from != key:
            self._tell(f"{name}: its inputs have changed; doing this phase again")
            return None
        with disk_errors(final):
            if self._hashes(final) != files:
                if self._hashes(self._part(name)) != files:
                    self._tell(f"{name}: the file on disk is damaged or was changed; doing this phase again")
                    if self._left(name) == key + _WRITTEN:
                        self._claim(name).unlink()  # what was whole once is so no more
                    return None
                self._promote(name)  # an earlier process ended between the marker and the rename
            self._claim(name).unlink(missing_ok=True)
        return Artifact(final, key, seconds, fresh=False)

    def _hashes(self, path: Path) -> dict[str, str] | None:
        """SHA-256 of a file, or of every file in a folder, by relative path; None where there is nothing."""
        if not path.exists():
            return None
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return {file.relative_to(path).as_posix(): self._hash(file) for file in files}

    def _hash(self, file: Path) -> str:
        """Read once, as long as the file stays as it is: a comparison asks for the same checkpoint dozens of times."""
        with open(file, "rb") as handle:
            seen = os.fstat(handle.fileno())
            state = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
            if state not in self._digests:
                self._digests[state] = hashlib.file_digest(handle, "sha256").hexdigest()
        return self._digests[state]

    def _promote(self, name: str) -> None:
        remove(self.path / name)
        os.replace(self._part(name), self.path / name)
        self._claim(name).unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """Seconds that each finished phase took, by name."""
        root = self.path / ".phases"
        return {
            marker.relative_to(root).as_posix().removesuffix(".done"): float(read_json(marker)["seconds"])
            for marker in sorted(root.rglob("*.done"))
        }

    def _left(self, name: str) -> str:
        """What the claim of an attempt that did not end says; empty without one."""
        claim = self._claim(name)
        return claim.read_text(encoding="utf-8", errors="replace") if claim.exists() else ""

    def _part(self, name: str) -> Path:
        return self.path / f"{name}.part"

    def _claim(self, name: str) -> Path:
        return self.path / f"{name}.part.key"

    def _marker(self, name: str) -> Path:
        return self.path / ".phases" / f"{name}.done"
