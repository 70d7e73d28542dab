"""Where the large matrices of a measurement lie: beside the model, or in a scratch folder.

Flows in: tensors by name. Flows out: the same tensors, read back when they are asked for. On disk only one layer's
matrices are in memory at a time; files are read, not mapped, so that they take no resident memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idealmix.errors import IdealmixError


class Shelf(Mapping[str, Tensor]):
    """Tensors by name.

    Args:
        folder: an existing folder for one file a tensor; None: memory, on the tensors' own device.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, Tensor | list[Tensor]] = {}  # a list: appended and not yet asked for
        self._files: dict[str, _File] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor; one of that name is replaced.

        Raises:
            IdealmixError: the disk is full or cannot be written.
        """
        if self._folder is None:
            self._held[name] = tensor
        else:
            self._write(name, tensor, tuple(tensor.shape), "wb")

    def append(self, name: str, tensor: Tensor) -> None:
        """Put a tensor behind those of that name: ``shelf[name]`` is (N, ...), in the order of the calls.

        Raises:
            IdealmixError: the disk is full or cannot be written.
        """
        if self._folder is not None:
            known = self._files.get(name)
            self._write(name, tensor, ((known.shape[0] if known else 0) + 1, *tensor.shape), "ab")
            return
        held = self._held.setdefault(name, [])
        if isinstance(held, Tensor):
            held = self._held[name] = list(held)
        held.append(tensor)

    def __getitem__(self, name: str) -> Tensor:
        if self._folder is None:
            held = self._held[name]
            if isinstance(held, list):
                held = self._held[name] = torch.stack(held)
            return held
        file = self._files[name]
        data = torch.empty(file.shape, dtype=file.dtype)
        with open(file.path, "rb") as handle:
            read = handle.readinto(_bytes(data))
        if read != data.nbytes:
            raise IdealmixError("this scratch file was cut", where=str(file.path), mend="run the phase again")
        return data.to(file.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held if self._folder is None else self._files)

    def __len__(self) -> int:
        return len(self._held if self._folder is None else self._files)

    def clear(self) -> None:
        """Forget everything; files are deleted."""
        self._held.clear()
        for file in self._files.values():
            file.path.unlink(missing_ok=True)
        self._files.clear()

    def _write(self, name: str, tensor: Tensor, shape: tuple[int, ...], mode: str) -> None:
        known = self._files.get(name)
        path = known.path if known else Path(str(self._folder)) / f"{len(self._files)}.bin"
        try:
            with open(path, mode) as handle:
                handle.write(_bytes(tensor.detach().cpu().contiguous()))
        except OSError as error:
            raise IdealmixError(
                f"cannot write a matrix of {tensor.nbytes / 2**20:,.0f} MiB: {error.strerror or error}",
                where=str(self._folder),
                mend="make room there, or measure fewer layers with influence.layers",
            ) from error
        self._files[name] = _File(path, tensor.dtype, shape, tensor.device)


class Shared(Mapping[str, Tensor]):
    """Tensors of which one serves several names.

    Args:
        shelf: by leader.
        leaders: whose tensor a name has.
    """

    def __init__(self, shelf: Shelf, leaders: Mapping[str, str]) -> None:
        self._shelf, self._leaders = shelf, leaders

    def __getitem__(self, name: str) -> Tensor:
        return self._shelf[self._leaders[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaders)

    def __len__(self) -> int:
        return len(self._leaders)


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's own memory."""
    array: Any = tensor.view(-1).numpy()
    return memoryview(array).cast("B")


@dataclass(frozen=True)
class _File:
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device


class Shelves:
    """Makes shelves that lie in one place, and clears it up.

    Args:
        scratch: where a temporary folder is made for matrices on disk; None: memory.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._place = (
            None if scratch is None else tempfile.TemporaryDirectory(dir=scratch, prefix=".influence-")
        )
        self._made = 0

    def shelf(self) -> Shelf:
        """A new, empty one."""
        if self._place is None:
            return Shelf()
        self._made += 1
        folder = Path(self._place.name) / str(self._made)
        folder.mkdir()
        return Shelf(folder)

    def __enter__(self) -> Shelves:
        return self

    def __exit__(self, *_: object) -> None:
        if self._place is not None:
            self._place.cleanup()
