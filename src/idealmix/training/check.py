"""Refuses training settings that cannot work, before any data is read.

Flows in: ``config.Training`` and the base model's name or folder. Flows out: nothing, or an error that names the key.
"""

from __future__ import annotations

import difflib
import os

from idealmix import config
from idealmix.errors import InputError
from idealmix.training.arguments import check_extras
from idealmix.training.model import computing_dtype, positions, refuse_adapters


def check_training(settings: config.Training, model: str) -> None:
    """Check the block as a whole.

    Raises:
        InputError: an unknown or refused key, schedule or optimiser; adapters as the base; a command in several processes; rows longer than the model has positions.
    """
    if settings.backend == "command":
        _check_command(settings)
    else:
        refuse_adapters(model)
        check_extras(settings, dtype=computing_dtype(model, settings.dtype))
        _check_names(settings)
    most = positions(model)
    if most is not None and settings.max_length > most:
        raise InputError(
            f"{settings.max_length} tokens a row, and the model has {most} positions (max_position_embeddings)",
            where="training.max_length",
            mend=f"set it to {most} or less, or extend the model's positions in its config.json first",
        )


def _check_names(settings: config.Training) -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for key, given, known in (
        ("lr_scheduler_type", settings.lr_scheduler_type, [str(kind.value) for kind in SchedulerType]),
        ("optim", settings.optim, [str(kind.value) for kind in OptimizerNames]),
    ):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            raise InputError(
                f"transformers knows no {given!r}",
                where=f"training.{key}",
                mend=f"did you mean {near[0]!r}?" if near else "there are: " + ", ".join(known),
            )


def _check_command(settings: config.Training) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "with backend: command every process would run the command",
            where="training.backend",
            mend="start the run as one process; your command may start as many as it likes",
        )
