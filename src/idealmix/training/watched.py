"""A callback for a training of the user's own: it records what idealmix needs to know of it.

Flows in: any transformers or TRL trainer. Flows out: ``<output_dir>/idealmix/`` with ``record.json``, AdamW's second moments and, if
asked for, the stages that the unrolled response needs. `training.command` takes it from there::

    from idealmix.training.watched import RecordTraining
    SFTTrainer(..., callbacks=[RecordTraining()]).train()

With ``backend: command`` idealmix then knows the optimiser's steps, and ``response: finite`` and ``unrolled`` can be asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainerCallback

from idealmix.training.optimiser import constants, second_moments
from idealmix.training.record import MOMENTS
from idealmix.training.segments import KeepSegments, middles, trained_parameters

FOLDER, RECORD = "idealmix", "record.json"
_IGNORED = -100


class RecordTraining(TrainerCallback):
    """Counts tokens, step sizes and gradient norms; keeps second moments.

    Tokens are counted where the model reads them, on this process; pads, and labels that no loss sees, are left out. The gradient's
    norm is what the trainer logs: with ``logging_steps`` above 1 it is not known of every step, and clipping is then not modelled.

    Args:
        segments: stages of the training to keep for ``response: unrolled``; 3 is what idealmix itself keeps.
    """

    def __init__(self, segments: int = 0) -> None:
        self._segments = segments
        self._kept: list[int] = []
        self._keeper: KeepSegments | None = None
        self._hook: Any = None
        self._counts = {"rows": 0, "tokens": 0, "supervised_tokens": 0}
        self._sizes: list[float] = []
        self._norms: list[float] = []
        self._losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count from here on."""
        model, optimiser = kwargs["model"], kwargs["optimizer"]
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)
        if self._segments:
            self._kept = middles(state.max_steps, self._segments)

            def stage() -> Any:
                return trained_parameters(model), second_moments(model, optimiser)

            folder = Path(args.output_dir) / FOLDER / "segments"
            self._keeper = KeepSegments(self._kept, folder, stage, state.is_world_process_zero)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The size of the step that comes."""
        self._sizes.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep a stage where it is due."""
        if self._keeper is not None:
            self._keeper.on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Losses and norms of single steps."""
        if logs and "grad_norm" in logs:
            self._norms.append(float(logs["grad_norm"]))
        if logs and "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write everything."""
        self._hook.remove()
        moments = second_moments(kwargs["model"], kwargs["optimizer"])
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if moments:
            save_file(moments, folder / MOMENTS)
        every = len(self._norms) == len(self._sizes)
        content = {
            "steps": state.global_step,
            **self._counts,
            "step_sizes": self._sizes,
            "gradient_norms": self._norms if every else [],
            "losses": self._losses if len(self._losses) == len(self._sizes) else [],
            "optimiser": constants(kwargs["optimizer"], args),
            "segments": self._kept,
        }
        (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _count(self, model: Any, _args: Any, given: dict[str, Any]) -> None:
        ids, labels, mask = (given.get(name) for name in ("input_ids", "labels", "attention_mask"))
        if ids is None or not model.training:
            return
        self._counts["rows"] += ids.shape[0]
        self._counts["tokens"] += int(mask.sum()) if mask is not None else ids.numel()
        if labels is not None:
            self._counts["supervised_tokens"] += int((labels[:, 1:] != _IGNORED).sum())
