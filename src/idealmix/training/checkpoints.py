"""Checkpoints inside a training: sealed when they are whole, told from damaged ones, the older removed.

Flows in: the folder that the trainer writes ``checkpoint-<step>`` folders to, and the key of the training that it is
made by. Flows out: the newest whole one. A checkpoint's seal, ``seal.json``, is written last and holds the SHA-256 of its files. Which one is newer is told by the
step, not by a clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

_SEAL = "seal.json"
_KEPT = 2


def seal(folder: Path) -> None:
    """Mark a checkpoint as whole; of those beside it the newest two stay."""
    part = folder / f"{_SEAL}.tmp"
    part.write_text(json.dumps(_hashes(folder)), encoding="utf-8")
    os.replace(part, folder / _SEAL)
    for older in _by_step(folder.parent)[:-_KEPT]:
        shutil.rmtree(older, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: where the trainer writes them.
        key: a hash of all that the training is made from.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def ours(self) -> bool:
        """Whether the folder holds what this very training left."""
        mark = self._folder / "key.txt"
        return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == self._key

    def newest(self) -> Path | None:
        """The newest checkpoint of this training whose files are those that were sealed."""
        found = reversed(_by_step(self._folder)) if self.ours() else ()
        return next((path for path in found if _is_whole(path)), None)

    def claim(self) -> None:
        """Make the folder this training's; what another one left is removed."""
        if not self.ours():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            (self._folder / "key.txt").write_text(self._key, encoding="utf-8")

    def remove(self) -> None:
        """Remove them all, the key last."""
        for path in _by_step(self._folder):
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        sealed = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
        return bool(sealed == _hashes(checkpoint))
    except (OSError, ValueError):
        return False


def _by_step(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_SEAL)
    ):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
