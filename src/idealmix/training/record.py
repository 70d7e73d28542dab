"""What a training did, as ``record.json``: the facts that influence, allocation and the report rely on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from idealmix.errors import IdealmixError

PARAMETERS, MOMENTS = "parameters.safetensors", "second_moments.safetensors"
"""The files of a stage of the training, in ``segments/1``, ``2``, ..; the moments at the end lie beside the record."""


@dataclass(frozen=True)
class TrainingRecord:
    """One training.

    Attributes:
        backend: ``trl`` or ``command``.
        seed: order of rows, adapters' start, dropout.
        steps: optimiser steps; 0 where an outside trainer did not tell.
        rows, tokens, supervised_tokens: consumed over the whole training, epochs and repetitions counted.
        step_sizes: learning rate of every optimiser step, the one it was made with.
        step_weights: v_i, the domain's weight in what was optimised (DESIGN, the maths).
        token_shares: T_i / T.
        losses: nats per supervised token of each step's rows, before the step.
        gradient_norms: norm of every step's gradient over all trained parameters, before it was clipped.
        optimiser: name, betas, eps, weight_decay, max_grad_norm; null where an outside trainer did not tell.
        segments: steps after which ``segments/1``, ``2``, .. were kept for the unrolled response; empty: it was not asked for.
        trained: ``full`` or ``lora``.
        dtype: what the forward pass computed in; weights are kept and saved in float32 where trained.
        processes: how many processes shared each step.
        model_path: the checkpoint, relative to the record's folder where it lies inside.
        consumed: sha256 of the row ids that each step really consumed, equal to the plan's.
        seconds: wall time of the training itself.
        arguments: what idealmix set in the trainer.
        warnings: texts for the user.
    """

    backend: str
    seed: int
    steps: int
    rows: int
    tokens: int
    supervised_tokens: int
    step_weights: dict[str, float]
    token_shares: dict[str, float]
    model_path: str
    seconds: float
    step_sizes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    optimiser: dict[str, Any] | None = None
    segments: list[int] = field(default_factory=list)
    trained: str = "full"
    dtype: str | None = None
    processes: int = 1
    consumed: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def clipped_steps(self) -> list[float]:
        """Each step's size times the share of its gradient that clipping left: what an unclipped gradient was stepped by.

        Second moments are those of clipped gradients, so a response that divides by them must take these steps. Where no
        norm was recorded, the step sizes themselves.
        """
        most = (self.optimiser or {}).get("max_grad_norm")
        if not most or len(self.gradient_norms) != len(self.step_sizes):
            return self.step_sizes
        return [size * most / max(norm, most) for size, norm in zip(self.step_sizes, self.gradient_norms)]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        part = path.with_name(path.name + ".tmp")
        part.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> TrainingRecord:
        """Read what ``write`` wrote.

        Raises:
            IdealmixError: missing or not a training record.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise IdealmixError(
                f"not a training record: {error}", where=str(path), mend="train this round again"
            ) from error

    def model_folder(self, folder: Path) -> Path:
        """The checkpoint's folder; ``folder`` is where the record lies, wherever that was moved to."""
        return folder / self.model_path
