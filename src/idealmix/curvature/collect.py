"""What flows through the measured layers: inputs and output gradients, streamed layer by layer.

Flows in: a module, its layers and batches. Flows out: for each layer and batch one `Signal` (a, s), handed to a
visitor as soon as the backward pass reaches the layer, then forgotten; and each row's loss.

One forward and one backward a batch. Parameters are frozen, so autograd makes no weight gradients: hooks sit on the
layers' output tensors. Only the loss is masked, never s: attention carries the loss to prompt positions.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from idealmix.curvature.batch import IGNORED, Batch
from idealmix.curvature.covered import is_sharded, unwrapped
from idealmix.curvature.layers import Layer
from idealmix.curvature.memory import cut, halves, ran_out, release, sharded, too_large, while_adding
from idealmix.curvature.passes import Pass
from idealmix.curvature.positions import RowsUnknown
from idealmix.curvature.processes import Processes
from idealmix.curvature.selfcheck import verify_layers
from idealmix.curvature.signals import Losses, Signal, Visitor, joined
from idealmix.curvature.task import CausalTask, Task
from idealmix.errors import Doubt, IdealmixError

__all__ = ["Collector", "Losses", "Progress", "Signal"]

Progress = Callable[[int, int, str], None]
"""Called with batches done, batches in all, and what is being done."""


class Collector:
    """Runs a model over batches and hands out signals.

    Args:
        model: any module; its parameters' ``requires_grad`` and its mode are put back afterwards. Inside DDP and
            ``torch.compile`` the model itself is run; one sharded by ``fully_shard`` needs `processes`.
        layers: from `select_layers`.
        task: how to get logits and targets.
        processes: who shares the batches; default this process alone.
        progress: told after every batch.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        task: Task | None = None,
        processes: Processes | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.layers = unwrapped(model), list(layers)
        self.task: Task = task or CausalTask()
        self.processes = processes or Processes()
        self.measures_head = measures_head(self.model, self.layers)
        self._progress = progress or (lambda done, total, detail: None)
        self._sharded = is_sharded(model)
        self._verified = self._sharded  # autograd's gradients are in shards there
        self._alone = False  # rows are measured one by one
        self._most: int | None = None  # positions, pads included, that fit in memory

    def sweep(
        self,
        batches: Sequence[Batch],
        *visitors: Visitor,
        label_seed: int | None = None,
        detail: str = "",
    ) -> Iterator[Losses]:
        """One forward and backward for each batch of this process's share; yields after each.

        A batch is cut where it must be: a square one (it could not be told from its transpose), one whose layers see
        routed positions (row by row), one that does not fit in memory. Each of its parts yields, except that parts
        of one that ran out of memory yield together.

        The first sweep of a collector compares two rows' sums with autograd's own gradients, layer by layer.

        Args:
            batches: the same list on every process.
            visitors: each gets every signal, and no row twice.
            label_seed: sample the labels from the model with this seed; None: the data's own.
            detail: words for the progress display.

        Raises:
            IdealmixError: something is not finite (layer, batch and row ids are named), a row does not fit in memory,
                or the model does something that is not covered; on every process, whichever it happened on.
        """
        mine = self.processes.share(batches)
        failure: IdealmixError | None = None
        with _frozen(self.model), _eager():
            try:
                if not self._verified and batches:
                    verify_layers(self, batches)
                    self._verified = True
                for done, batch in enumerate(mine, 1):
                    yield from self._measure(batch, visitors, label_seed)
                    self._progress(done, len(mine), detail)
            except IdealmixError as error:
                if self._sharded:  # the others wait in a pass for its weights: they end because it does
                    raise
                failure = error
            for _ in range(self._idle(batches) if self._sharded else 0):
                Pass(self, batches[-1], ()).run(label_seed)
        self.processes.agree(failure)

    def real(self, batch: Batch) -> Tensor:
        """(B, L) bool: the positions that count. Pads never do; prompts always do."""
        return batch.real

    def supervised(self, batch: Batch, targets: Tensor) -> Tensor:
        """(B, L) bool: the positions whose loss counts, with sampled labels as with the data's own."""
        return (targets != IGNORED) & batch.real

    def _measure(self, batch: Batch, visitors: Sequence[Visitor], label_seed: int | None) -> Iterator[Losses]:
        for part in self._parts(batch):
            try:
                losses = self._fitted(part, slice(0, len(part.row_ids)), frozenset(), visitors, label_seed)
            except RowsUnknown as unknown:
                self._one_by_one(unknown, part)
                yield from self._measure(part, visitors, label_seed)
            else:
                yield joined(losses)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch, or smaller ones where that is known to be needed."""
        rows, length = batch.input_ids.shape[:2]
        large = self._most is not None and rows * length > self._most
        if rows > 1 and (self._alone or rows == length or large):
            for half in halves(slice(0, rows)):
                yield from self._parts(cut(batch, half, trim=True))
        else:
            yield cut(batch, slice(0, rows), trim=True) if self._alone else batch

    def _fitted(
        self,
        batch: Batch,
        rows: slice,
        done: frozenset[str],
        visitors: Sequence[Visitor],
        label_seed: int | None,
    ) -> list[Losses]:
        """Losses of some rows of a batch, in one pass or, where memory does not suffice, in halves.

        A pass may run out of memory when some layers' signals have been handed out. Each layer's sum is complete in
        itself, so the halves leave those layers out: no signal is handed out twice.
        """
        whole = rows == slice(0, len(batch.row_ids))
        part = batch if whole else cut(batch, rows)
        attempt = Pass(self, part, visitors, done, None if whole else (batch, rows))
        try:
            return [attempt.run(label_seed)]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if self._sharded:
                raise sharded(part) from error
            if attempt.adding:
                raise while_adding(attempt.adding, part) from error
            if len(part.row_ids) == 1:
                raise too_large(part) from error
            # all that was raised is let go before the next attempt: the traceback holds the tensors of this one
            done |= attempt.emitted
        del attempt
        release()
        self._most = part.input_ids.shape[:2].numel() // 2
        warnings.warn(
            f"memory ran out at {len(part.row_ids)} rows of {part.input_ids.shape[1]} tokens (batch {batch.index}): "
            f"from here on a pass has at most {self._most} tokens; influence.batch_tokens: {self._most} avoids the loss",
            Doubt,
            stacklevel=4,
        )
        first, rest = (self._fitted(batch, half, done, visitors, label_seed) for half in halves(rows))
        return first + rest

    def _one_by_one(self, unknown: RowsUnknown, batch: Batch) -> None:
        if self._sharded and len(batch.row_ids) > 1:
            raise sharded(batch)
        if self._alone:
            raise IdealmixError(
                f"its input has shape {unknown.shape} where {(*unknown.expected, 'features')} is expected: which "
                "position is a pad cannot be told",
                where=f"layer {unknown.layer}",
                mend="leave this layer out with influence.layers",
            )
        self._alone = True
        warnings.warn(
            f"layer {unknown.layer}: its input has shape {unknown.shape} where {unknown.expected} rows and positions "
            "are measured: which row a position belongs to cannot be told, so from here on every row is measured alone, "
            "which takes longer; leave the layer out with influence.layers to measure many rows at once",
            Doubt,
            stacklevel=4,
        )

    def _idle(self, batches: Sequence[Batch]) -> int:
        """Passes that this process makes only because another has more: all gather a sharded model's weights."""
        passes = [
            sum(len(list(self._parts(batch))) for batch in batches[rank :: self.processes.size])
            for rank in range(self.processes.size)
        ]
        return max(passes) - passes[self.processes.rank]


def measures_head(model: nn.Module, layers: Sequence[Layer]) -> bool:
    """A measured layer is the output head or inside it; True where it is not known which module that is."""
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module):
        return True
    inside = set(head.modules())
    return any(module in inside for layer in layers for module in layer.modules)


def _eager() -> AbstractContextManager[object]:
    """Compiled modules run as they were written: compiled code does not call hooks."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters need no gradient, and modules are in evaluation mode, except where that would switch gradient
    checkpointing off: transformers' blocks checkpoint in training mode only (their dropouts are off all the same).
    """
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        for module, _ in modes:
            module.training = bool(getattr(module, "gradient_checkpointing", False))
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
