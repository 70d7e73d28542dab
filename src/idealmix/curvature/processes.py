"""Several processes measuring together: who takes which batch, and sums over all of them.

Flows in: the same list of batches on every process. Flows out: each process's share, and totals that are the same
on every process; pieces of work dealt out by their cost. With one process nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from idealmix.errors import IdealmixError

T = TypeVar("T")

_NOTHING: Any = object()


@dataclass(frozen=True)
class Processes:
    """The processes that take part. The default is this one alone, also inside a distributed run: what only rank 0 does
    must not wait for the others.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def all(cls) -> Processes:
        """Every process of the initialised ``torch.distributed`` group."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: disjoint, together the whole."""
        return items[self.rank :: self.size]

    def deal(self, costs: Sequence[float]) -> list[int]:
        """Which process does which piece of work: the dearest first, each to whom has the least so far."""
        load, owner = [0.0] * self.size, [0] * len(costs)
        for piece in sorted(range(len(costs)), key=lambda k: -costs[k]):
            owner[piece] = load.index(min(load))
            load[owner[piece]] += costs[piece]
        return owner

    def send(self, tensor: Tensor, owner: int) -> Tensor:
        """`tensor` becomes that of the process `owner`, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=owner)
        return tensor

    def all_sum(self, tensor: Tensor) -> Tensor:
        """`tensor` becomes the sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, failure: IdealmixError | None) -> None:
        """Raise the first process's failure on every process: one that failed alone would be waited for.

        Raises:
            IdealmixError: of whichever process.
        """
        for each in self.gather(failure):
            if each is not None:
                raise each

    def whole(self, mine: list[T]) -> list[T]:
        """The inverse of `share`: every process's items in their first order.

        Where a process has made more items of its share (batches cut in parts), they are dealt in turn: an order that
        is the same on every process, and the same for all that a sweep yields.
        """
        rounds = zip_longest(*self.gather(mine), fillvalue=_NOTHING)
        return [item for each in rounds for item in each if item is not _NOTHING]
