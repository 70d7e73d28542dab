"""TRL's ``SFTConfig`` for a plan: every setting that matters is stated, none is left to a default.

Flows in: ``config.Training`` with the user's extra keys, and the plan. Flows out: keyword arguments for
``SFTConfig``. Extra keys are checked: unknown names and such as would change the objective, the order of rows
or the safety of the run are refused with the reason.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from idealmix import config
from idealmix.errors import InputError
from idealmix.training.order import StepPlan

# Checked in this order; an extra key that states the value idealmix sets anyway is accepted.
_REFUSED: dict[str, str] = {
    """
    label_smoothing_factor loss_type neftune_noise_alpha router_aux_loss_coef use_liger_kernel
    liger_kernel_config average_tokens_across_devices
    """: "it would change the objective that influence differentiates, the mean loss of the supervised tokens",
    """
    completion_only_loss assistant_only_loss dataset_* truncation_mode label_names chat_template_path
    eos_token pad_token remove_unused_columns
    """: "idealmix tokenises and masks the rows itself, so that training and influence see the same labels",
    """
    max_steps num_train_epochs dataloader_* shuffle_dataset train_sampling_strategy group_by_length
    length_column_name seed data_seed auto_find_batch_size ignore_data_skip accelerator_config
    packing_strategy padding_free parallelism_config
    """: "the rows of every step are planned before training (see training.epochs, packing and seed)",
    """
    eval_* per_device_eval_batch_size do_* load_best_model_at_end metric_for_best_model greater_is_better
    """: "idealmix evaluates the finished checkpoint itself",
    "trust_remote_code model_init_kwargs": "idealmix loads the models, and never runs a checkpoint's own code",
    "bf16* fp16*": "training.dtype decides the precision",
    "activation_checkpointing": "training.gradient_checkpointing decides this",
    """
    output_dir logging_* log_* disable_tqdm resume_from_checkpoint save_* push_to_hub* hub_*
    restore_callback_states_from_checkpoint enable_jit_checkpoint
    """: "idealmix keeps the run's folder, its checkpoints and its log",
}


def trainer_arguments(
    settings: config.Training, plan: StepPlan, *, seed: int, dtype: str, folder: Path
) -> dict[str, Any]:
    """Keyword arguments for ``SFTConfig``.

    Args:
        dtype: ``float32`` or ``bfloat16``, what the forward pass computes in.
        folder: for checkpoints inside the training.

    Raises:
        InputError: an extra key is unknown or refused.
    """
    check_extras(settings, dtype=dtype)
    return (
        _stated(settings, plan.micro_batches, dtype)
        | settings.extra_arguments
        | {"output_dir": str(folder), "seed": seed}
    )


def extra_problems(settings: config.Training, dtype: str | None = None) -> Iterator[tuple[str, str]]:
    """Every extra key that cannot be passed on, with a sentence that says why and how to mend it.

    Args:
        dtype: ``float32`` or ``bfloat16``; None before the model is known: keys of precision are not judged then.
    """
    from trl import SFTConfig

    stated = _stated(settings, settings.gradient_accumulation_steps, dtype or "float32")
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for key, value in settings.extra_arguments.items():
        if (key in stated and value == stated[key]) or (dtype is None and key.startswith(("bf16", "fp16"))):
            continue
        reasons = (
            reason
            for patterns, reason in _REFUSED.items()
            if any(fnmatchcase(key, pattern) for pattern in patterns.split())
        )
        if reason := next(reasons, None):
            yield key, f"{key} cannot be set: {reason}; remove the key"
        elif key not in known:
            own = set(config.Training.model_fields)
            near = difflib.get_close_matches(key, sorted(known | own), n=1)
            mend = f"did you mean {near[0]!r}?" if near else "see docs/config.md for the keys of training"
            yield key, f"neither idealmix nor TRL's SFTConfig knows the key {key!r}; {mend}"


def check_extras(settings: config.Training, *, dtype: str) -> None:
    """Refuse the first extra key that cannot be passed on.

    Raises:
        InputError: it is unknown or refused.
    """
    if problem := next(extra_problems(settings, dtype), None):
        raise InputError(problem[1], where=f"training.{problem[0]}")


def _stated(settings: config.Training, micro_batches: int, dtype: str) -> dict[str, Any]:
    return {
        # the plan's data loader is one epoch that holds all of the planned epochs
        "num_train_epochs": 1,
        "max_steps": -1,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "average_tokens_across_devices": True,
        "loss_type": "nll",
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "router_aux_loss_coef": 0.0,
        "use_liger_kernel": False,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "optim": settings.optim,
        "weight_decay": settings.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": dtype == "bfloat16",
        "fp16": False,
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "shuffle_dataset": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "trust_remote_code": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": None,  # checkpoints are removed by their step; the trainer would go by the clock
        "report_to": settings.report_to,
        "push_to_hub": False,
    }
