"""What a run measures of a model: losses on the reference and test sets, and scores.

Flows in: the base model's name or a checkpoint with its record. Flows out: plain figures, the same on every process. One model is
loaded at a time; nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from idealmix.config import Config, Score
from idealmix.curvature import Processes
from idealmix.data.pools import Pool
from idealmix.evaluation.loss import reference_loss
from idealmix.evaluation.scores import score, written
from idealmix.evaluation.set_loss import SetLoss
from idealmix.rounds.inputs import Inputs
from idealmix.rounds.team import Team
from idealmix.rounds.watch import Watch
from idealmix.training.model import computing_dtype, load_model
from idealmix.training.record import TrainingRecord


class Models:
    """Loads models and measures them, by all processes of a run together."""

    def __init__(self, config: Config, inputs: Inputs, team: Team, watch: Watch) -> None:
        self._config, self._inputs, self._team, self._watch = config, inputs, team, watch
        self._loaded: tuple[str, Any] | None = None

    def of(self, path: str | Path, record: TrainingRecord | None = None) -> Any:
        """`load`, once for the phases that follow each other."""
        if self._loaded is None or self._loaded[0] != str(path):
            self._loaded = None
            self._loaded = (str(path), self.load(path, record))
        return self._loaded[1]

    def release(self) -> None:
        """Forget the model that `of` loaded last."""
        self._loaded = None

    def load(self, path: str | Path, record: TrainingRecord | None) -> Any:
        """A model on the device, in what it computes in: trained weights are kept in float32 whatever that was."""
        dtype = record.dtype if record else None
        wanted = dtype or computing_dtype(self._config.model, self._config.training.dtype)
        return load_model(path, wanted).to(device())

    def evaluation(self, model: Any) -> dict[str, Any]:
        """``{"deciding": {name: SetLoss}, "gradient": {...}}`` on both halves of the reference sets, ``scores``: the watched ones."""
        inputs, config = self._inputs, self._config
        halves = {"deciding": inputs.deciding_halves, "gradient": inputs.gradient_halves}
        losses = self._losses(
            model, [(half, pool) for half, pools in halves.items() for pool in pools.values()]
        )
        found: dict[str, Any] = {
            half: {loss.name: loss.to_json() for of, loss in losses if of == half} for half in halves
        }
        watched = {
            name: self._score(name, setting, model, inputs.deciding_halves[str(setting.reference)])
            for name, setting in config.watched_scores.items()
        }
        return found | ({"scores": watched} if watched else {})

    def tests(self, model: Any) -> dict[str, Any]:
        """``{"tests": {name: SetLoss}, "scores": {name: ScoreResult}}`` on the test sets."""
        losses = self._losses(model, list(self._inputs.tests.items()))
        scores = {
            name: self._score(name, setting, model, self._inputs.tests.get(setting.test or ""))
            for name, setting in self._config.final_scores.items()
        }
        return {"tests": {name: loss.to_json() for name, loss in losses}, "scores": scores}

    def _score(self, name: str, setting: Score, model: Any, pool: Pool | None) -> dict[str, Any]:
        """All processes write the answers, the first judges them."""
        tokenizer, progress = self._inputs.tokenizer, partial(self._rows, name)
        # generating keeps neither gradients nor the scores of more than one position
        tokens = 4 * self._config.influence.batch_tokens
        answers = written(model, tokenizer, pool, setting, progress, Processes.all(), tokens)
        return self._team.lead(
            lambda: score(name, model, tokenizer, pool, setting, progress=progress, answers=answers).to_json()
        )

    def _losses(self, model: Any, sets: Sequence[tuple[str, Pool]]) -> list[tuple[str, SetLoss]]:
        """The loss on each set under its label; progress counts tokens over all of them."""
        found, before, total = [], 0, sum(int(pool.tokens.sum()) for _, pool in sets)
        for label, pool in sets:
            advance = partial(self._tokens, before, total, f"loss on {pool.name}")
            tokens = self._config.influence.batch_tokens
            found.append((label, reference_loss(model, pool, tokens, advance, Processes.all())))
            before += int(pool.tokens.sum())
        return found

    def _tokens(self, before: int, total: int, detail: str, done: int, _of_this: int) -> None:
        self._watch.advance(before + done, total, detail)

    def _rows(self, score_name: str, done: int, total: int) -> None:
        self._watch.advance(done, total, f"generating for {score_name}")


def device() -> str:
    """Where evaluation and influence run: the accelerator of this process, if there is one."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"
