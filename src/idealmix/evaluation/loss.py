"""Supervised loss of a model on a set.

Flows in: a causal language model and a pool. Flows out: a `SetLoss`, nats and supervised tokens row by row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from idealmix.curvature.batch import Batch, make_batches
from idealmix.curvature.precision import wide
from idealmix.curvature.processes import Processes
from idealmix.curvature.task import CausalTask
from idealmix.errors import IdealmixError
from idealmix.evaluation.set_loss import SetLoss, paired_difference

if TYPE_CHECKING:
    from idealmix.data.pools import Pool

__all__ = ["SetLoss", "paired_difference", "reference_loss"]

Progress = Callable[[int, int], None]

# Logits upcast at a time: 64 MB in float32, whatever the vocabulary.
_CHUNK = 2**24


def reference_loss(
    model: Any,
    pool: Pool,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> SetLoss:
    """The model's loss on every row of a pool, without dropout and without gradients.

    Logits are computed in the model's dtype; log-softmax and sums are in float32 or better, sums over a row in
    float64. Batch size, padding and order change nothing but rounding.

    Args:
        model: a causal language model, on its device; its training mode is kept.
        pool: rows with `input_ids` and unshifted `labels` (-100: no loss).
        batch_tokens: padded tokens in one forward pass.
        progress: called with tokens done and tokens in total; of several processes, as if all were as far as this one.
        processes: who shares the batches, each with the same pool and the whole model; all get the same result. None: this
            process alone.

    Raises:
        IdealmixError: a row's loss is not finite, or the set has no supervised token.
    """
    rows = [pool.row(i) for i in range(len(pool))]
    batches = make_batches([(row.id, row.input_ids, row.labels, 1.0) for row in rows], batch_tokens)
    team = processes or Processes()
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    done, total = 0, sum(len(row.input_ids) for row in rows)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for batch in team.share(batches):
                loss, supervised = _row_losses(model, batch.to(device))
                sums |= zip(batch.row_ids, loss.tolist())
                counts |= zip(batch.row_ids, supervised.tolist())
                done += int(batch.attention_mask.sum())
                if progress:
                    progress(min(total, done * team.size), total)
    finally:
        model.train(training)
    for more_sums, more_counts in team.gather((sums, counts)):
        sums |= more_sums
        counts |= more_counts
    ids = tuple(row.id for row in rows)
    result = SetLoss(
        pool.name, ids, np.array([sums[i] for i in ids]), np.array([counts[i] for i in ids], dtype=np.int64)
    )
    _check(result)
    return result


def _row_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B,) float64 summed nats and (B,) supervised tokens."""
    targets = CausalTask().targets(batch)
    supervised = targets >= 0
    # The head is a large part of a small model: it is only applied where some row has a label.
    columns = supervised.any(0).nonzero().squeeze(1)
    if not len(columns):
        return torch.zeros(len(targets), dtype=torch.float64), supervised.sum(1)
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    selects = "logits_to_keep" in inspect.signature(model.forward).parameters
    if selects:
        arguments["logits_to_keep"] = columns
    logits = model(**arguments, use_cache=False).logits
    if not selects:
        logits = logits[:, columns]
    where = supervised[:, columns]
    rows, wanted = where.nonzero()[:, 0], targets[:, columns][where]
    losses = torch.zeros(len(targets), dtype=torch.float64, device="cpu")
    step = max(1, _CHUNK // logits.shape[-1])
    positions = where.nonzero()
    for start in range(0, len(wanted), step):
        part = slice(start, start + step)
        chosen = logits[positions[part, 0], positions[part, 1]]
        nats = nn.functional.cross_entropy(chosen.to(wide(chosen.dtype)), wanted[part], reduction="none")
        losses.index_add_(0, rows[part].cpu(), nats.double().cpu())
    return losses, supervised.sum(1)


def _check(loss: SetLoss) -> None:
    bad = [row_id for row_id, value in zip(loss.row_ids, loss.loss_sums) if not np.isfinite(value)]
    if bad:
        raise IdealmixError(
            f"the loss of {len(bad)} of {len(loss)} rows is not finite: {', '.join(bad[:5])}"
            + (", ..." if len(bad) > 5 else ""),
            where=loss.name,
            mend="the model has diverged or overflows: lower training.learning_rate, or use dtype float32",
        )
    if not loss.tokens:
        raise IdealmixError(
            "the set has no supervised token",
            where=loss.name,
            mend="every row needs an assistant turn inside max_length",
        )
