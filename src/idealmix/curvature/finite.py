"""Finite or not: where a batch first went wrong, told by layer and row.

Flows in: what passes through the layers in one batch. Flows out: nothing, or an error that names the layer, the batch
and the rows. Sums for each row are kept on the device and looked at once, at the end of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from idealmix.curvature.batch import Batch
from idealmix.curvature.precision import wide
from idealmix.errors import IdealmixError


class FiniteChecks:
    """Of one batch."""

    def __init__(self) -> None:
        self._inputs: list[tuple[str, Tensor]] = []
        self._gradients: list[tuple[str, Tensor]] = []

    def input(self, layer: str, a: Tensor) -> None:
        """Note a layer's input, (B, M, d)."""
        self._inputs.append((layer, _by_row(a)))

    def gradient(self, layer: str, s: Tensor) -> None:
        """Note the gradient at a layer's output, (B, M, d); in the order of the backward pass."""
        self._gradients.append((layer, _by_row(s)))

    def verify(self, losses: Tensor, batch: Batch, order: Sequence[str]) -> None:
        """Look at everything that was noted.

        Args:
            losses: (B,) of the rows.
            batch: for its index and row ids.
            order: layer names in the model's order.

        Raises:
            IdealmixError: something is not finite.
        """
        # A bad input comes from below: blame the first layer that read one. A bad gradient comes from above: blame
        # the first that the backward pass met.
        inputs = sorted(self._inputs, key=lambda noted: order.index(noted[0]))
        noted = [
            *((f"layer {name}", "its input", sums) for name, sums in inputs),
            ("loss", "the loss", losses),
            *((f"layer {name}", "the gradient at its output", sums) for name, sums in self._gradients),
        ]
        good = torch.stack([torch.isfinite(sums) for _, _, sums in noted]).cpu()
        if bool(good.all()):
            return
        where, what, fine = next((w, x, row) for (w, x, _), row in zip(noted, good) if not row.all())
        rows = [row for row, is_fine in zip(batch.row_ids, fine.tolist()) if not is_fine]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        raise IdealmixError(
            f"{what} is not finite in batch {batch.index}, rows {shown}",
            where=where,
            mend="look at these rows; if the model computes in float16, load it in float32 or bfloat16",
        )


def _by_row(x: Tensor) -> Tensor:
    return x.sum((1, 2), dtype=wide(x.dtype))
