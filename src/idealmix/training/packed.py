"""Checks, before it trains, that a model keeps the rows of a packed batch apart.

Packing relies on positions that restart at every row; a model that ignores them (ALiBi, recurrent layers) would
let rows see each other in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from idealmix.errors import InputError
from idealmix.training.order import StepPlan

if TYPE_CHECKING:
    from idealmix.data.pools import Pool


@torch.no_grad()
def check_packing(model: Any, plan: StepPlan, pools: Mapping[str, Pool], pad_token_id: int) -> None:
    """Compares the logits of two rows, packed and alone.

    Raises:
        InputError: they differ by more than rounding.
    """
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    first = plan.steps[0]
    chosen = first[[0, -1]]
    rows = [pools[plan.domains[domain]].row(int(row)).input_ids for domain, row in chosen]
    batch = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)(
        [{"input_ids": ids} for ids in rows]
    )
    del batch["labels"]
    try:
        packed = model(**batch, use_cache=False).logits[0].float()
    except TypeError as error:
        raise InputError(
            f"this model takes no positions, so rows cannot be packed: {error}",
            where="training.packing",
            mend="set training.packing: false",
        ) from error
    alone = torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in rows])
    # Rounding of bfloat16 through many layers stays far below the spread of the logits; leaking does not.
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    if (packed - alone).abs().max() > tolerance * alone.std().clamp(min=1e-6):
        raise InputError(
            "this model lets the rows of a packed batch see each other",
            where="training.packing",
            mend="set training.packing: false",
        )
