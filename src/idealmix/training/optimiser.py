"""What a training's optimiser knows and its checkpoint does not: AdamW's second moments and its constants.

Flows in: a model and its optimiser, anywhere in a training. Flows out: tensors by parameter name, plain facts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def second_moments(model: nn.Module, optimiser: Any) -> dict[str, torch.Tensor]:
    """AdamW's, bias-corrected, float32 on the CPU, by parameter name; empty for an optimiser that has none.

    Sharded ones are gathered, so every process has to call it.
    """
    optimiser = getattr(optimiser, "optimizer", optimiser)  # accelerate's wrapping
    group, moments = optimiser.param_groups[0], {}
    for name, parameter in model.named_parameters():
        state = optimiser.state.get(parameter, {})
        # Adafactor has the key too, without betas, and only for vectors
        if "exp_avg_sq" not in state or "betas" not in group:
            continue
        moment = state["exp_avg_sq"]
        if hasattr(moment, "full_tensor"):  # sharded by FSDP: every process takes part
            moment = moment.full_tensor()
        correction = 1.0 - group["betas"][1] ** float(state["step"])
        moments[name] = (moment.float() / correction).cpu().contiguous()
    return moments


def constants(optimiser: Any, args: Any) -> dict[str, Any]:
    """Name, betas, eps of an optimiser; weight decay and clipping of the trainer's arguments."""
    optimiser = getattr(optimiser, "optimizer", optimiser)
    group = optimiser.param_groups[0]
    eps = group.get("eps")  # Adafactor has two
    return {
        "name": type(optimiser).__name__,
        "betas": list(group["betas"]) if "betas" in group else None,
        "eps": eps if isinstance(eps, int | float) else None,
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
    }
