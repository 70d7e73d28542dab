"""Training a mixture from the base model: the backend is TRL, or a command of the user's.

Flows in: a model's name or folder, a mixture, the pools it was drawn from, settings, a seed.
Flows out: ``output/model/`` (checkpoint), ``output/record.json``, ``output/second_moments.safetensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idealmix import config
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool
    from idealmix.training.record import TrainingRecord

SEGMENTS = 3
"""Into how many a training is split for the unrolled response."""

Progress = Callable[[int, int, dict[str, Any]], None]


def train(
    model: str | Path,
    mixture: Mixture,
    pools: Mapping[str, Pool],
    settings: config.Training,
    *,
    seed: int,
    output: Path,
    steps: int | None = None,
    segments: int = 0,
    progress: Progress | None = None,
) -> TrainingRecord:
    """Train ``model`` on ``mixture``, always from the given model, by the configured backend.

    Args:
        model: hub name or local folder of the base model.
        seed: decides the order of rows, the adapters' start and dropout.
        output: folder that receives the checkpoint and the record; a training that was stopped inside it
            goes on from its last checkpoint (``training.save_steps``).
        steps: fixed number of optimiser steps (TRL backend); null: from epochs and rows a step.
        segments: for the unrolled response, how many of the training's stages to keep in ``output/segments`` (TRL backend).
        progress: called after each optimiser step with (done, total, {"loss", "learning_rate"}).

    Raises:
        InputError: the model or a setting is wrong.
        IdealmixError: the training failed: not finite, out of memory, the command's own failure.
    """
    if settings.backend == "command":
        from idealmix.training.command import train_by_command

        return train_by_command(model, mixture, pools, settings, seed=seed, output=output)
    from idealmix.training.sft import train_by_trl

    return train_by_trl(
        model,
        mixture,
        pools,
        settings,
        seed=seed,
        output=output,
        steps=steps,
        segments=segments,
        progress=progress,
    )
