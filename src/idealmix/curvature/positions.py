"""Which row a position belongs to, as a layer sees it.

Flows in: a batch's real positions and the tensors that reach a layer. Flows out: the same as (B, M, d) with pads at
zero, or `RowsUnknown`: then the batch has to be measured row by row, where every position is the one row's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What works on each element by itself, so position by position.
_ELEMENTWISE = {
    f"{kind}Backward{version}"
    for kind in (
        *("Add", "Sub", "Mul", "Div", "Pow", "Clone", "ToCopy", "NativeDropout", "Relu", "Gelu", "Silu"),
        *("Sigmoid", "Tanh", "Mish", "Softplus"),
    )
    for version in (0, 1)
}


class RowsUnknown(Exception):  # noqa: N818
    """A layer's positions cannot be told apart by row: tokens were routed to it, or moved."""

    def __init__(self, layer: str, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
        self.layer, self.shape, self.expected = layer, shape, expected
        super().__init__(layer)


class Positions:
    """Of one batch, which is not square: (L, B) cannot be taken for (B, L).

    Args:
        real: (B, L) bool, on the model's device: positions that count.
        all_real: every one does.
    """

    def __init__(self, real: Tensor, all_real: bool) -> None:
        self.real, self.all_real = real, all_real
        self._pads: dict[int, Tensor] = {}  # places of pads among all rows' positions, by positions in a row
        self._in_order: set[Any] = (
            set()
        )  # nodes of the graph whose (B * L, d) results are rows one after the other

    def check(self, layer: str, x: Tensor, output: Tensor) -> None:
        """Is it known which row each position of a layer's input is from? The output has the same positions.

        Three proofs: the tensor begins with (B, L); it is the memory of one that does; or it was computed element by
        element from a layer's output of which it is known. Or there is one row, without pads.

        Raises:
            RowsUnknown: none of them holds.
        """
        rows, length = self.real.shape
        good = x.shape[:-1] == output.shape[:-1] and (
            (rows == 1 and self.all_real)
            or (x.dim() >= 3 and x.shape[:2] == (rows, length))
            or (x.dim() == 2 and len(x) == rows * length and (self._viewed(x) or self._follows(x)))
        )
        if not good:
            raise RowsUnknown(layer, tuple(x.shape), (rows, length))

    def went_out(self, output: Tensor) -> None:
        """Note what a checked layer hands on."""
        if output.dim() == 2 and output.grad_fn is not None:
            self._in_order.add(output.grad_fn)

    def by_row(self, x: Tensor) -> Tensor:
        """A checked tensor as (B, M, d)."""
        rows, length = self.real.shape
        if x.dim() == 2 or x.shape[:2] != (rows, length):
            return x.reshape(rows, -1, x.shape[-1])
        # more dimensions between position and features are more positions: order them as the mask repeats
        return x if x.dim() == 3 else x.flatten(2, -2).transpose(1, 2).reshape(rows, -1, x.shape[-1])

    def masked(self, calls: list[Tensor]) -> Tensor:
        """(B, M, d) of all calls one after the other, zero at pads."""
        x = calls[0] if len(calls) == 1 else torch.cat(calls, 1)
        if self.all_real:
            return x
        length = x.shape[1]
        if length not in self._pads:
            self._pads[length] = (~self.mask(x)).flatten().nonzero()[:, 0]
        # a copy with holes is three times as fast as a masked fill; not multiplied: what stands at a pad may be NaN
        whole = x.clone(memory_format=torch.contiguous_format)
        whole.view(-1, x.shape[2]).index_fill_(0, self._pads[length], 0)
        return whole

    def mask(self, x: Tensor) -> Tensor:
        """(B, M, 1) bool: real positions of a (B, M, d) tensor."""
        return self.real.repeat(1, x.shape[1] // self.real.shape[1])[:, :, None]

    def _viewed(self, x: Tensor) -> bool:
        base = x._base
        return (
            base is not None
            and base.shape[:2] == self.real.shape
            and base.is_contiguous()
            and x.is_contiguous()
            and x.numel() == base.numel()
            and x.data_ptr() == base.data_ptr()
        )

    def _follows(self, x: Tensor) -> bool:
        found, nodes = False, [x.grad_fn]
        while nodes:
            node = nodes.pop()
            if node in self._in_order:
                found = True
            elif node is None or node.name() not in _ELEMENTWISE:
                return False
            else:
                nodes += [before for before, _ in node.next_functions if before is not None]
        return found
