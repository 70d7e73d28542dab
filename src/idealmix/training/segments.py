"""What the unrolled response needs of a training: its parameters and second moments in the middle of every segment.

Flows in: a trainer that runs. Flows out: ``segments/1``, ``segments/2``, .. in the order of the training, each with
``parameters.safetensors`` (those that are trained) and ``second_moments.safetensors``, both by parameter name.

The steps are split into segments as equal as whole steps allow. The middle stands for its segment (SOURCE, arXiv 2405.12186,
averages several checkpoints of it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from idealmix.training.record import MOMENTS, PARAMETERS

State = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""The trained parameters and the optimiser's bias-corrected second moments, by parameter name."""


def middles(steps: int, segments: int) -> list[int]:
    """The number of steps done in the middle of each segment; fewer segments where there are fewer steps."""
    parts = np.array_split(np.arange(1, steps + 1), min(segments, steps))
    return [int(part[(len(part) - 1) // 2]) for part in parts]


class KeepSegments(TrainerCallback):
    """Writes each segment's middle.

    Args:
        steps: when, from `middles`.
        folder: that gets ``1``, ``2``, ..
        state: asked on every process.
        main: this process writes.
    """

    def __init__(self, steps: Sequence[int], folder: Path, state: State, main: bool) -> None:
        self._steps, self._folder, self._state, self._main = list(steps), folder, state, main

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write if a middle was reached."""
        if state.global_step not in self._steps:
            return
        parameters, moments = self._state()
        if self._main:
            folder = self._folder / str(self._steps.index(state.global_step) + 1)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(dict(parameters), folder / PARAMETERS)
            if moments:
                save_file(dict(moments), folder / MOMENTS)


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """By name, whole and on the CPU; sharded ones are gathered, so every process has to call it."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value: Any = parameter.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name] = value.cpu().clone().contiguous()
    return found
