"""One forward and one backward of one batch, with hooks on the layers' output tensors.

Flows in: a model with frozen parameters, its layers, a batch. Flows out: at each layer a `Signal` to every visitor, as
soon as the backward pass reaches it, then forgotten; and the rows' losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idealmix.curvature.batch import Batch
from idealmix.curvature.finite import FiniteChecks
from idealmix.curvature.labels import sample, uniforms
from idealmix.curvature.layers import Layer
from idealmix.curvature.positions import Positions
from idealmix.curvature.precision import wide
from idealmix.curvature.signals import Losses, Signal, Visitor
from idealmix.errors import IdealmixError

if TYPE_CHECKING:
    from idealmix.curvature.collect import Collector


class Pass:
    """One batch's forward and backward.

    Args:
        collector: model, layers, task.
        batch: rows, on any device.
        visitors: each gets every signal.
        done: layers whose signals of these rows were handed out already, by a pass that ran out of memory.
        whole: the batch of which `batch` is a part, and the part's rows in it: signals have the whole batch's rows,
            the others at zero.

    Attributes:
        emitted: layers whose signals were handed out.
        adding: the layer whose signal is being handed out.
    """

    def __init__(
        self,
        collector: Collector,
        batch: Batch,
        visitors: Sequence[Visitor],
        done: frozenset[str] = frozenset(),
        whole: tuple[Batch, slice] | None = None,
    ) -> None:
        self._of, self._visitors, self._done = collector, visitors, done
        self.emitted: set[str] = set()
        self.adding: str | None = None
        device = next(collector.model.parameters()).device
        real = collector.real(batch)
        self._batch = batch.to(device)
        self._positions = Positions(real.to(device), bool(real.all()))
        self._whole = whole
        self._weights = whole[0].weights.to(device) if whole else self._batch.weights
        self._forward = True
        self._inputs: dict[str, list[Tensor]] = {}  # by layer, one entry for each call
        self._versions: dict[str, list[int]] = {}  # how often each had been written when it was read
        self._gradients: dict[str, list[tuple[int, Tensor]]] = {}  # by layer: call, gradient
        self._leaders: dict[str, str] = {}
        self._shared: tuple[list[Tensor], bool, Tensor] | None = None  # the last prepared input
        self._checks = FiniteChecks()

    def run(self, label_seed: int | None) -> Losses:
        """Go.

        Raises:
            RowsUnknown: in the forward pass, before anything was handed out.
            IdealmixError: something is not finite, or not covered.
        """
        handles = [
            module.register_forward_hook(partial(self._called, layer), with_kwargs=True)
            for layer in self._of.layers
            for module in layer.modules
        ]
        try:
            sums, supervised = self._loss(label_seed)
            self._forward = False
            self._leaders = _leaders(self._of.layers, self._inputs)
            if not self._inputs or not sums.requires_grad:
                raise _detached()
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
            self._positions.real.sum(1).cpu(),
        )

    def _loss(self, label_seed: int | None) -> tuple[Tensor, Tensor]:
        """Summed loss of each row, and where it is supervised."""
        batch, task, model = self._batch, self._of.task, self._of.model
        targets = task.targets(batch)
        supervised = self._of.supervised(batch, targets)
        if self._of.measures_head:  # its positions are then all of the batch's
            scores = task.logits(model, batch)[supervised]
        else:
            scores = task.scores(model, batch, supervised)
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
                raise _without_autograd(layer.name, self._of.model)
            return None
        source = args[0] if args else next(iter(kwargs.values()))
        fresh = None
        if not output.requires_grad:  # parameters are frozen: the graph begins here
            output = fresh = output.detach().requires_grad_()
        # a copy: what follows may write into the output in place, which a leaf forbids
        handed = output if fresh is None else fresh.clone()
        if self._forward:  # checkpointing runs the forward again inside the backward: that does not count
            self._positions.check(layer.name, source, output)
            self._positions.went_out(handed)
            calls = self._inputs.setdefault(layer.name, [])
            output.register_hook(partial(self._arrived, layer, len(calls)))
            calls.append(source)
            self._versions.setdefault(layer.name, []).append(source._version)
        return None if fresh is None else handed

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
        if layer.name in self._done:
            return
        with torch.no_grad():
            a = self._prepare([calls[call] for call, _ in got], layer)
            s = self._positions.masked([self._positions.by_row(gradient) for _, gradient in got])
            self._checks.gradient(layer.name, s)
            signal = Signal(layer, a, self._widened(s), self._weights, self._leaders[layer.name])
            self.adding = layer.name
            for visit in self._visitors:
                visit(signal)
            self.adding = None
            self.emitted.add(layer.name)

    def _prepare(self, calls: list[Tensor], layer: Layer) -> Tensor:
        """(B, M, d_in), once for layers that read the same tensors one after the other."""
        if self._shared is not None:
            before, bias, a = self._shared
            if bias == layer.bias and _same(before, calls):
                return a
        a = self._positions.masked([self._positions.by_row(x.detach()) for x in calls])
        self._checks.input(layer.name, a)
        if layer.bias:
            ones = a.new_ones(*a.shape[:2], 1)
            a = torch.cat([a, ones if self._positions.all_real else ones * self._positions.mask(a)], 2)
        a = self._widened(a)
        self._shared = (calls, layer.bias, a)
        return a

    def _widened(self, x: Tensor) -> Tensor:
        """A part's tensor among zeros for the whole batch's other rows."""
        if self._whole is None:
            return x
        batch, rows = self._whole
        wide = x.new_zeros(len(batch.row_ids), *x.shape[1:])
        wide[rows] = x
        return wide


def _without_autograd(layer: str, model: nn.Module) -> IdealmixError:
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        mend = "gradient checkpointing needs use_reentrant=False; or switch it off"
    else:
        mend = "it is called under torch.no_grad, where no gradient reaches it: leave it out with influence.layers"
    return IdealmixError("it runs without autograd in the forward pass", where=f"layer {layer}", mend=mend)


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
