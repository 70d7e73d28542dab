"""Out of memory: how it is recognised, how a batch is cut, and what is said.

Flows in: an error, a batch. Flows out: smaller batches, or an error that names the row and the setting.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from idealmix.curvature.batch import Batch
from idealmix.errors import IdealmixError

_WORDS = ("not enough memory", "out of memory", "can't allocate memory")


class DoesNotFitError(IdealmixError):
    """What is measured does not fit, whatever the batch: fewer layers at once may."""


def ran_out(error: BaseException) -> bool:
    """An accelerator or the CPU has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, DoesNotFitError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()  # an error's traceback and its tensors refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halves(rows: slice) -> tuple[slice, slice]:
    """The first half of two or more rows, and the rest."""
    middle = (rows.start + rows.stop + 1) // 2
    return slice(rows.start, middle), slice(middle, rows.stop)


def cut(batch: Batch, rows: slice, *, trim: bool = False) -> Batch:
    """Some rows of a batch, as wide as before, or `trim`: without columns at the end that are pads in all of them."""
    width = batch.input_ids.shape[1]
    if trim:
        used = batch.attention_mask[rows].bool().any(0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 1
    return replace(
        batch,
        input_ids=batch.input_ids[rows, :width],
        attention_mask=batch.attention_mask[rows, :width],
        labels=batch.labels[rows, :width],
        row_ids=batch.row_ids[rows],
        weights=batch.weights[rows],
    )


def too_large(batch: Batch) -> DoesNotFitError:
    """One row does not fit."""
    return DoesNotFitError(
        f"row {batch.row_ids[0]} of {int(batch.real.sum())} tokens does not fit in memory, although it is measured alone",
        where=f"batch {batch.index}",
        mend="lower training.max_length, where rows are cut; or select fewer layers with influence.layers",
    )


def while_adding(layer: str, batch: Batch) -> DoesNotFitError:
    """Memory ran out inside a sum, which cannot be repeated without counting twice."""
    return DoesNotFitError(
        f"memory ran out while batch {batch.index} was added to the sums",
        where=f"layer {layer}",
        mend=f"lower influence.batch_tokens below {batch.input_ids.numel()}, or select fewer layers with influence.layers",
    )


def sharded(batch: Batch) -> IdealmixError:
    """The processes of a sharded model have to make the same passes: none can repeat one alone."""
    return IdealmixError(
        f"batch {batch.index} has to be cut into fewer rows, which a model sharded over processes does not allow",
        where="influence.batch_tokens",
        mend=f"lower it below {batch.input_ids.numel()}; at 1 every row is measured alone",
    )
