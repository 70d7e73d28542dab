"""Rows of token ids -> padded batches for measuring: sorted by length, so little is padded.

Flows in: row ids, input ids, labels (unshifted, -100 = no loss) and weights (how often the row counts). Flows out:
`Batch` objects on the CPU, in an order that depends on nothing but the rows; all at once, or one by one as they are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from idealmix.errors import InputError

IGNORED = -100
"""The label of a position without loss, as transformers has it."""


@dataclass(frozen=True)
class Batch:
    """Rows side by side.

    Attributes:
        input_ids: (B, L) token ids; for a module that reads no tokens, any tensor that begins with (B, L).
        attention_mask: (B, L), 1 at real positions, 0 at pads.
        labels: (B, L) unshifted; -100 where there is no loss.
        row_ids: B identifiers; sampled labels are keyed by them.
        weights: (B,) float64, repetitions of each row.
        index: the batch's place in its list, for messages.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row_ids: tuple[str, ...]
    weights: Tensor
    index: int = 0

    @property
    def real(self) -> Tensor:
        """(B, L) bool: not a pad."""
        return self.attention_mask.bool()

    @property
    def positions(self) -> Tensor:
        """(B, L) place of a token in its row, counted without pads (so padding on either side changes nothing)."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            weights=self.weights.to(device),
        )


Row = tuple[str, Sequence[int], Sequence[int], float]
"""Row id, input ids, labels, weight."""


def make_batches(rows: Iterable[Row], batch_tokens: int, pad_id: int = 0) -> list[Batch]:
    """Right-padded batches of at most `batch_tokens` positions, pads included; the longest rows first.

    A row longer than `batch_tokens` is a batch of its own. Longest first: what does not fit in memory fails at
    once. Rows of equal length are ordered by id, so the input's order changes nothing.

    Raises:
        InputError: a row without tokens, with unequal lengths, or with a weight that is not finite and positive.
    """
    ordered = sorted(rows, key=lambda row: (-len(row[1]), row[0]))
    groups: list[list[Row]] = []
    for row in ordered:
        name, ids, labels, weight = row
        if not len(ids) or len(ids) != len(labels):
            raise InputError(f"{len(ids)} tokens and {len(labels)} labels", where=f"row {name}")
        if not 0 < weight < float("inf"):
            raise InputError(f"its weight is {weight}", where=f"row {name}", mend="weights are repetitions")
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0][1]) <= batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_pad(group, pad_id, index) for index, group in enumerate(groups)]


class LazyBatches(Sequence[Batch]):
    """What `make_batches` makes, each padded when it is asked for: a million rows stay where they lie.

    Args:
        names: (N,) row ids.
        lengths: (N,) tokens of each row, at least 1.
        weights: (N,) finite and positive.
        read: gives a row's input ids and labels, by its place in `names`.
        batch_tokens, pad_id: as for `make_batches`.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[int],
        weights: Sequence[float],
        read: Callable[[int], tuple[Sequence[int], Sequence[int]]],
        batch_tokens: int,
        pad_id: int = 0,
    ) -> None:
        self._names, self._weights, self._read, self._pad_id = names, weights, read, pad_id
        order = sorted(range(len(names)), key=lambda i: (-lengths[i], names[i]))
        groups: list[list[int]] = []
        for i in order:
            if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= batch_tokens:
                groups[-1].append(i)
            else:
                groups.append([i])
        self._groups = list(enumerate(groups))

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, at: int) -> Batch: ...
    @overload
    def __getitem__(self, at: slice) -> LazyBatches: ...
    def __getitem__(self, at: int | slice) -> Batch | LazyBatches:
        if isinstance(at, slice):
            part = copy.copy(self)
            part._groups = self._groups[at]
            return part
        index, group = self._groups[at]
        rows = [(self._names[i], *self._read(i), self._weights[i]) for i in group]
        return _pad(rows, self._pad_id, index)


def _pad(rows: Sequence[Row], pad_id: int, index: int) -> Batch:
    shape = len(rows), max(len(ids) for _, ids, _, _ in rows)
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, (_, ids, targets, _) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.as_tensor(ids)
        labels[i, : len(ids)] = torch.as_tensor(targets)
        mask[i, : len(ids)] = 1
    weights = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    return Batch(input_ids, mask, labels, tuple(row[0] for row in rows), weights, index)
