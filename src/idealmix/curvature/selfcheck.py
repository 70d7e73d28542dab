"""Our sums against autograd's own weight gradients, on two rows: what is not covered cannot give a silent wrong number.

Flows in: a collector and batches. Flows out: nothing, or an error that names the layers. Found out in this way: a weight
that is used without its module being called, or beside it; a forward that is not x W' + b; pads that reach the loss.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idealmix.curvature.batch import IGNORED, Batch
from idealmix.curvature.layers import Layer
from idealmix.curvature.memory import cut, ran_out
from idealmix.curvature.passes import Pass
from idealmix.curvature.positions import RowsUnknown
from idealmix.curvature.precision import product
from idealmix.curvature.signals import Signal
from idealmix.errors import Doubt, IdealmixError

if TYPE_CHECKING:
    from idealmix.curvature.collect import Collector

# Of a layer's gradient, relative. Both sides have the same a and s: only the rounding of their product differs.
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}


def verify_layers(collector: Collector, batches: Sequence[Batch]) -> None:
    """Compare sum_t s_t a_t' of each layer with autograd's gradient of its weight and bias, on the shortest rows.

    One layer's gradient is held at a time.

    Raises:
        IdealmixError: they differ; the layers are named.
    """
    batch = _shortest(batches)
    try:
        try:
            wrong = _compared(collector, batch)
        except RowsUnknown:
            try:
                wrong = _compared(collector, cut(batch, slice(0, 1), trim=True))
            except RowsUnknown:
                return  # the sweep tells it
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        warnings.warn(
            "the layers' sums were not compared with autograd's: too little memory", Doubt, stacklevel=4
        )
        return
    if wrong:
        raise IdealmixError(
            f"what flows through {len(wrong)} selected layers does not make their weights' gradient: the weight is also "
            f"used without calling the module, or the module is not x W' + b: {', '.join(wrong[:5])}",
            where="influence.layers",
            mend="select other layers, with patterns that do not match these",
        )


def _compared(collector: Collector, batch: Batch) -> list[str]:
    """Names of layers whose sums are not autograd's."""
    comparisons = {layer.name: _Comparison(layer) for layer in collector.layers}

    def visit(signal: Signal) -> None:
        comparisons[signal.layer.name].ours(signal)

    with _trainable(comparisons.values()):
        Pass(collector, batch, (visit,)).run(None)
    return [name for name, comparison in comparisons.items() if comparison.differs()]


class _Comparison:
    """Of one layer. Autograd's gradients come parameter by parameter, usually right after our signal."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        module: Any = layer.modules[0]
        self.parameters: dict[str, Tensor] = {f"{layer.name}.weight": module.weight}
        if layer.bias:
            self.parameters[f"{layer.name}.bias"] = module.bias
        self._ours: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._error = self._size = 0.0  # squared

    def ours(self, signal: Signal) -> None:
        self._ours = self.layer.parameters(product(signal.s, signal.a))
        for name in list(self._theirs):
            self._compare(name, self._theirs.pop(name))

    def theirs(self, name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if name in self._ours:
            self._compare(name, gradient)
        else:
            self._theirs[name] = gradient

    def differs(self) -> bool:
        for gradient in self._theirs.values():  # it has no signal
            self._add(torch.zeros_like(gradient), gradient)
        for mine in self._ours.values():  # it has no gradient
            self._add(mine, torch.zeros_like(mine))
        # what is not finite is named by the sweep, with its rows
        tolerance = _TOLERANCE[next(iter(self.parameters.values())).dtype]
        return math.isfinite(self._error) and self._error > tolerance**2 * self._size

    def _compare(self, name: str, gradient: Tensor) -> None:
        self._add(self._ours.pop(name), gradient)

    def _add(self, mine: Tensor, gradient: Tensor) -> None:
        mine, gradient = mine.double(), gradient.double()
        self._error += float((mine - gradient).square().sum())
        self._size += max(float(mine.square().sum()), float(gradient.square().sum()))


def _shortest(batches: Sequence[Batch]) -> Batch:
    """The last two rows of a batch (one where there is one) that both have a loss, from the end: the shortest."""
    for batch in reversed(batches):
        rows = slice(max(0, len(batch.row_ids) - 2), len(batch.row_ids))
        if bool((batch.labels[rows, 1:] != IGNORED).any(1).all()):
            pair = cut(batch, rows, trim=True)
            # a square batch could not be told from its transpose
            return pair if len(set(pair.input_ids.shape[:2])) == 2 else cut(pair, slice(0, 1), trim=True)
    return cut(batches[-1], slice(0, 1), trim=True)


@contextmanager
def _trainable(comparisons: Iterable[_Comparison]) -> Iterator[None]:
    """The layers' parameters need gradients; what stood there is put back."""
    parameters = [(c, name, p) for c in comparisons for name, p in c.parameters.items()]
    before = [(p, p.grad) for _, _, p in parameters]
    handles = []
    try:
        for comparison, name, parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(partial(comparison.theirs, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before:
            parameter.requires_grad_(False)
            parameter.grad = gradient
