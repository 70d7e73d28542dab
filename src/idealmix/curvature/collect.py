"""What flows through the measured layers: inputs and output gradients, streamed layer by layer.

Flows in: a module, its layers and batches. Flows out: for each layer and batch one `Signal` (a, s), handed to a
visitor as soon as the backward pass reaches the layer, then forgotten; and each row's loss.

One forward and one backward a batch. Parameters are frozen, so autograd makes no weight gradients: hooks sit on the
layers' output tensors. Only the loss is masked, never s: attention carries the loss to prompt positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idealmix.curvature.batch import IGNORED, Batch
from idealmix.curvature.finite import FiniteChecks
from idealmix.curvature.labels import sample, uniforms
from idealmix.curvature.layers import Layer
from idealmix.curvature.precision import wide
from idealmix.curvature.processes import Processes
from idealmix.curvature.task import CausalTask, Task
from idealmix.errors import IdealmixError

Progress = Callable[[int, int, str], None]
"""Called with batches done, batches in all, and what is being done."""


@dataclass(frozen=True)
class Signal:
    """One layer's part of one batch. M is L times the number of the layer's calls in the forward pass.

    Attributes:
        layer: which.
        a: (B, M, d_in) inputs, a column of ones last where there is a bias; zero at pads.
        s: (B, M, d_out) gradient of the batch's summed supervised loss (nats) at the layer's output; zero at pads.
        weights: (B,) repetitions of the rows, on the model's device.
        leader: name of the first layer that read the same input tensors (its own, if it is the first). Layers
            with one leader that follow each other get the same `a` object.
    """

    layer: Layer
    a: Tensor
    s: Tensor
    weights: Tensor
    leader: str


@dataclass(frozen=True)
class Losses:
    """Of one batch's rows, on the CPU.

    Attributes:
        row_ids: B identifiers.
        weights: (B,) float64.
        sums: (B,) float64, nats, summed over the row's supervised positions.
        supervised: (B,) positions with a label after the shift.
        positions: (B,) non-pad positions.
    """

    row_ids: tuple[str, ...]
    weights: Tensor
    sums: Tensor
    supervised: Tensor
    positions: Tensor


class Collector:
    """Runs a model over batches and hands out signals.

    Args:
        model: any module; its parameters' ``requires_grad`` and its mode are put back afterwards.
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
        self.model, self.layers = model, list(layers)
        self.task: Task = task or CausalTask()
        self.processes = processes or Processes()
        self._progress = progress or (lambda done, total, detail: None)

    def sweep(
        self,
        batches: Sequence[Batch],
        *visitors: Callable[[Signal], None],
        label_seed: int | None = None,
        detail: str = "",
    ) -> Iterator[Losses]:
        """One forward and backward for each batch of this process's share; yields after each batch.

        Args:
            batches: the same list on every process.
            visitors: each gets every signal.
            label_seed: sample the labels from the model with this seed; None: the data's own.
            detail: words for the progress display.

        Raises:
            IdealmixError: something is not finite (layer, batch and row ids are named), or the model does
                something that is not covered.
        """
        mine = self.processes.share(batches)
        with _frozen(self.model):
            for done, batch in enumerate(mine, 1):
                yield _Pass(self, batch, visitors).run(label_seed)
                self._progress(done, len(mine), detail)

    def real(self, batch: Batch) -> Tensor:
        """(B, L) bool: the positions that count. Pads never do; prompts always do."""
        return batch.real

    def supervised(self, batch: Batch, targets: Tensor) -> Tensor:
        """(B, L) bool: the positions whose loss counts, with sampled labels as with the data's own."""
        return (targets != IGNORED) & batch.real


class _Pass:
    """One batch's forward and backward."""

    def __init__(
        self, collector: Collector, batch: Batch, visitors: Sequence[Callable[[Signal], None]]
    ) -> None:
        self._of, self._visitors = collector, visitors
        device = next(collector.model.parameters()).device
        self._all_real = bool(collector.real(batch).all())
        self._batch = batch.to(device)
        self._real = collector.real(self._batch)
        self._forward = True
        self._inputs: dict[str, list[Tensor]] = {}  # by layer, one entry for each call
        self._versions: dict[str, list[int]] = {}  # how often each had been written when it was read
        self._gradients: dict[str, list[tuple[int, Tensor]]] = {}  # by layer: call, gradient
        self._leaders: dict[str, str] = {}
        self._shared: tuple[list[Tensor], bool, Tensor] | None = None  # the last prepared input
        self._checks = FiniteChecks()

    def run(self, label_seed: int | None) -> Losses:
        handles = [
            module.register_forward_hook(partial(self._called, layer), with_kwargs=True)
            for layer in self._of.layers
            for module in layer.modules
        ]
        try:
            logits = self._of.task.logits(self._of.model, self._batch)
            sums, supervised = self._loss(logits, label_seed)
            self._forward = False
            self._leaders = _leaders(self._of.layers, self._inputs)
            if not self._inputs or not sums.requires_grad:
                raise _detached()
            del logits
            sums.sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        by_name = {layer.name: layer for layer in self._of.layers}
        for name in list(self._gradients):  # a call whose output was not used has no gradient
            self._emit(by_name[name])
        self._checks.verify(sums.detach(), self._batch, [layer.name for layer in self._of.layers])
        batch = self._batch
        return Losses(
            batch.row_ids,
            batch.weights.cpu(),
            sums.detach().double().cpu(),
            supervised.sum(1).cpu(),
            self._real.sum(1).cpu(),
        )

    def _loss(self, logits: Tensor, label_seed: int | None) -> tuple[Tensor, Tensor]:
        """Summed loss of each row, and where it is supervised."""
        batch = self._batch
        targets = self._of.task.targets(batch)
        supervised = self._of.supervised(batch, targets)
        scores = logits[supervised]
        scores = scores.to(wide(scores.dtype))
        chosen = targets[supervised]
        rows = supervised.nonzero()[:, 0]
        if label_seed is not None:
            places = batch.positions[supervised].cpu().numpy()
            u = uniforms(label_seed, batch.row_ids, rows.cpu().numpy(), places)
            chosen = sample(scores.detach(), torch.from_numpy(u))
        each = functional.cross_entropy(scores, chosen, reduction="none")
        return each.new_zeros(len(batch.row_ids)).index_add(0, rows, each), supervised

    def _called(
        self, layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> Tensor | None:
        if not torch.is_grad_enabled():
            if self._forward:
                raise IdealmixError(
                    "it runs without autograd in the forward pass",
                    where=f"layer {layer.name}",
                    mend="gradient checkpointing needs use_reentrant=False; or switch it off",
                )
            return None
        source = args[0] if args else next(iter(kwargs.values()))
        fresh = None
        if not output.requires_grad:  # parameters are frozen: the graph begins here
            output = fresh = output.detach().requires_grad_()
        if self._forward:  # checkpointing runs the forward again inside the backward: that does not count
            calls = self._inputs.setdefault(layer.name, [])
            output.register_hook(partial(self._arrived, layer, len(calls)))
            calls.append(source)
            self._versions.setdefault(layer.name, []).append(source._version)
        # a copy: what follows may write into the output in place, which a leaf forbids
        return None if fresh is None else fresh.clone()

    def _arrived(self, layer: Layer, call: int, gradient: Tensor) -> None:
        got = self._gradients.setdefault(layer.name, [])
        got.append((call, gradient.detach()))
        if len(got) == len(self._inputs[layer.name]):
            self._emit(layer)

    def _emit(self, layer: Layer) -> None:
        """Hand a layer's complete signal to the visitors and forget it."""
        got = sorted(self._gradients.pop(layer.name), key=lambda item: item[0])
        calls = self._inputs.pop(layer.name)
        versions = self._versions.pop(layer.name)
        if any(calls[call]._version != versions[call] for call, _ in got):
            raise IdealmixError(
                "its input is overwritten in place after it was read",
                where=f"layer {layer.name}",
                mend="use the model without in-place operations, or leave this layer out",
            )
        with torch.no_grad():
            a = self._prepare([calls[call] for call, _ in got], layer)
            s = self._masked([self._by_row(gradient, layer, "output") for _, gradient in got])
            self._checks.gradient(layer.name, s)
            signal = Signal(layer, a, s, self._batch.weights, self._leaders[layer.name])
            for visit in self._visitors:
                visit(signal)

    def _prepare(self, calls: list[Tensor], layer: Layer) -> Tensor:
        """(B, M, d_in), once for layers that read the same tensors one after the other."""
        if self._shared is not None:
            before, bias, a = self._shared
            if bias == layer.bias and _same(before, calls):
                return a
        a = self._masked([self._by_row(x.detach(), layer, "input") for x in calls])
        self._checks.input(layer.name, a)
        if layer.bias:
            ones = a.new_ones(*a.shape[:2], 1)
            a = torch.cat([a, ones if self._all_real else ones * self._mask(a)], 2)
        self._shared = (calls, layer.bias, a)
        return a

    def _masked(self, calls: list[Tensor]) -> Tensor:
        x = calls[0] if len(calls) == 1 else torch.cat(calls, 1)
        # filled, not multiplied: what stands at a pad may be NaN
        return x if self._all_real else x.masked_fill(~self._mask(x), 0)

    def _mask(self, x: Tensor) -> Tensor:
        """(B, M, 1) bool."""
        return self._real.repeat(1, x.shape[1] // self._real.shape[1])[:, :, None]

    def _by_row(self, x: Tensor, layer: Layer, what: str) -> Tensor:
        rows, length = self._real.shape
        if x.shape[:2] == (rows, length) and x.dim() >= 3:
            # more dimensions between position and features are more positions: order them as the mask repeats
            return x if x.dim() == 3 else x.flatten(2, -2).transpose(1, 2).reshape(rows, -1, x.shape[-1])
        if x.dim() == 2 and x.shape[0] == rows * length:
            return x.view(rows, length, -1)
        raise IdealmixError(
            f"its {what} has shape {tuple(x.shape)} where ({rows}, {length}, features) is expected: which "
            "row a position belongs to cannot be told",
            where=f"layer {layer.name}",
            mend="leave this layer out with influence.layers",
        )


def _detached() -> IdealmixError:
    return IdealmixError(
        "the loss does not depend on any selected layer",
        where="influence.layers",
        mend="select layers that run in the forward pass",
    )


def _leaders(layers: Sequence[Layer], inputs: dict[str, list[Tensor]]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    return {
        layer.name: first.setdefault((layer.bias, *map(id, inputs[layer.name])), layer.name)
        for layer in layers
        if layer.name in inputs
    }


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(x is y for x, y in zip(one, other))


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
