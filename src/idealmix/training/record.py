"""What a training did, as ``record.json``: the facts that influence, allocation and the report rely on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from idealmix.errors import IdealmixError


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
        optimiser: name, betas, eps, weight_decay; null where an outside trainer did not tell.
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
    optimiser: dict[str, Any] | None = None
    trained: str = "full"
    dtype: str | None = None
    processes: int = 1
    consumed: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

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
