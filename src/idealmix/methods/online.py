"""The short training of a proxy whose domain weights change on the way: for DoReMi, DoGE, DynamixSFT and the like.

Flows in: a model, pools, a `Rule`. Flows out: the weights of every step, and how many tokens were passed. One process, AdamW
with the configuration's rate, schedule and clipping, adapters where it has them. The proxy is thrown away: only its weights
over domains are the result.

What a step trains on follows from what the rule measures. ``excess_loss`` and ``alignment``: the same number of rows of
every domain, and the loss sum_i p_i l_i (l_i: mean over the domain's tokens of the batch). ``look_ahead``: rows drawn by p,
and the mean over all their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from idealmix import config
from idealmix.curvature.batch import Batch, make_batches
from idealmix.curvature.precision import wide
from idealmix.curvature.task import CausalTask
from idealmix.data.pools import Pool
from idealmix.data.seeding import seeded_order
from idealmix.errors import IdealmixError, InputError
from idealmix.methods.protocol import Array, Rule

Progress = Callable[[int, int, str], None]


@dataclass
class OnlineResult:
    """What a proxy's training gave.

    Attributes:
        weights: (steps, D) that each step was trained with.
        trained_tokens, forward_tokens: passed forward and backward, and forward only; all tokens, prompts too.
    """

    weights: Array
    trained_tokens: int
    forward_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        tokens = {"trained_tokens": self.trained_tokens, "forward_tokens": self.forward_tokens}
        return {"weights": self.weights.tolist(), **tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OnlineResult:
        """The inverse of `to_json`."""
        return cls(np.array(data["weights"]), data["trained_tokens"], data["forward_tokens"])


def train_online(
    model: Any,
    pools: Mapping[str, Pool],
    rule: Rule,
    settings: config.Training,
    *,
    steps: int,
    rows: int,
    seed: int,
    reference: Any = None,
    targets: Mapping[str, tuple[Pool, float]] | None = None,
    progress: Progress | None = None,
) -> OnlineResult:
    """Train `model` in place while `rule` changes the weights of the domains.

    Args:
        model: a causal language model in float32, on its device.
        steps, rows: optimiser steps; rows in each (of at least one for every domain, or target).
        reference: the model that ``excess_loss`` is measured against.
        targets: reference sets with their weights in the objective, for ``alignment``; None: the other domains.

    Raises:
        IdealmixError: a loss is not finite.
    """
    torch.manual_seed(seed)
    loop = _Loop(_with_adapters(model, settings), pools, rule, settings, rows, seed, reference, targets or {})
    loop.optimiser, schedule = _optimiser(loop.parameters, settings, steps)
    step = {
        "excess_loss": loop.excess_step,
        "alignment": loop.alignment_step,
        "look_ahead": loop.look_ahead_step,
    }
    loop.model.train()
    history = []
    for number in range(steps):
        loop.optimiser.zero_grad(set_to_none=True)
        loss = step[rule.measures](number, float(schedule.get_last_lr()[0]))
        if not np.isfinite(loss):
            raise IdealmixError(
                f"the loss of the proxy's step {number + 1} is not finite",
                where="training",
                mend="lower training.learning_rate",
            )
        history.append(np.array(rule.weights))
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(loop.parameters, settings.max_grad_norm)
        loop.optimiser.step()
        schedule.step()
        if progress:
            progress(number + 1, steps, f"loss {loss:.3f}")
    return OnlineResult(np.array(history), loop.trained_tokens, loop.forward_tokens)


def _optimiser(parameters: Sequence[Tensor], settings: config.Training, steps: int) -> tuple[Any, Any]:
    extra = settings.extra_arguments
    betas = (float(extra.get("adam_beta1", 0.9)), float(extra.get("adam_beta2", 0.999)))
    optimiser = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=betas,
        eps=float(extra.get("adam_epsilon", 1e-8)),
        weight_decay=settings.weight_decay,
    )
    return optimiser, get_scheduler(
        settings.lr_scheduler_type,
        optimiser,
        num_warmup_steps=min(settings.warmup_steps, steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=extra.get("lr_scheduler_kwargs"),
    )


def _with_adapters(model: Any, settings: config.Training) -> Any:
    if settings.lora is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError(
            "LoRA needs peft", where="training.lora", mend="pip install 'idealmix[lora]'"
        ) from error
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings.lora.model_dump()))


class Stream:
    """Endless rows of one pool: a seeded permutation, begun anew when it is used up."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool, self._at = pool, 0
        self._order = seeded_order(pool.ids, seed, "online", pool.name)

    def take(self, count: int) -> list[Any]:
        """The next `count` rows."""
        rows = [self._pool.row(self._order[(self._at + k) % len(self._order)]) for k in range(count)]
        self._at += count
        return rows


@dataclass
class _Loop:
    """One proxy under way."""

    model: Any
    pools: Mapping[str, Pool]
    rule: Rule
    settings: config.Training
    rows: int
    seed: int
    reference: Any
    targets: Mapping[str, tuple[Pool, float]]
    optimiser: Any = None
    trained_tokens: int = 0
    forward_tokens: int = 0
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.streams = [Stream(pool, self.seed) for pool in self.pools.values()]
        self.each = max(1, round(self.rows / len(self.streams)))
        self.target_streams = [(Stream(pool, self.seed), weight) for pool, weight in self.targets.values()]
        self.generator = np.random.default_rng([self.seed, 1])

    def excess_step(self, number: int, rate: float) -> float:
        """DoReMi's: every domain's loss against the reference model's on the same tokens."""
        batches = [self._batch(stream.take(self.each)) for stream in self.streams]
        losses = [self._train_losses(batch)[0] for batch in batches]
        if number % self.rule.interval == 0:
            excess = []
            for batch, loss in zip(batches, losses):
                known = self._forward_losses(self.reference, batch)[0]
                excess.append(float((loss.detach() - known).clamp_min(0).mean()))
            self.rule.update(np.array(excess), rate)
        joined = torch.stack([loss.mean() for loss in losses]) @ self._weights().to(losses[0].dtype)
        joined.backward()
        return float(joined.detach())

    def alignment_step(self, number: int, rate: float) -> float:
        """DoGE's: every domain's gradient, clipped as the optimiser's would be, against the target's."""
        losses, gradients = [], []
        for stream in self.streams:
            loss = self._train_losses(self._batch(stream.take(self.each)))[0].mean()
            losses.append(float(loss.detach()))
            gradients.append(self._gradient(loss))
        G = torch.stack([_flat(gradient) for gradient in gradients])
        if number % self.rule.interval == 0:
            if self.target_streams:
                each = max(1, round(self.rows / len(self.target_streams)))
                wanted = torch.zeros_like(G[0])
                for stream, weight in self.target_streams:
                    loss = self._train_losses(self._batch(stream.take(each)))[0].mean()
                    wanted += weight * _flat(self._gradient(loss))
                dots = G @ wanted
            else:
                dots = G @ G.sum(0) - (G * G).sum(1)
            scores = dots / (G.norm(dim=1).mean() + 1e-6)
            self.rule.update(scores.double().cpu().numpy(), rate)
        weights = self._weights()
        for place, parameter in enumerate(self.parameters):
            parameter.grad = sum(w * g[place] for w, g in zip(weights, gradients))  # type: ignore[assignment]
        return float(np.dot(weights.cpu().numpy(), losses))

    def look_ahead_step(self, number: int, rate: float) -> float:
        """DynamixSFT's: now and then a step on each domain's rows is tried and taken back."""
        if number and number % self.rule.interval == 0:
            rewards = [self._look_ahead(self._batch(stream.take(self.each)), rate) for stream in self.streams]
            self.rule.update(np.array(rewards), rate)
        counts = self.generator.multinomial(self.rows, self.rule.weights)
        rows = [row for stream, count in zip(self.streams, counts) for row in stream.take(int(count))]
        loss = self._train_losses(self._batch(rows))[0].mean()
        loss.backward()
        return float(loss.detach())

    def _look_ahead(self, batch: Batch, rate: float) -> float:
        """Mean over rows of (L_before - L_after) / L_before for one gradient step on them (paper: equation 4)."""
        self.model.eval()  # dropout would hide a small fall
        losses, owner = self._train_losses(batch)
        gradient = torch.autograd.grad(losses.mean(), self.parameters, allow_unused=True)
        kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, part in zip(self.parameters, gradient):
                if part is not None:
                    parameter -= rate * part
            after, _ = self._forward_losses(self.model, batch)
            for parameter, old in zip(self.parameters, kept):
                parameter.copy_(old)
        self.model.train()
        first, second = (_by_row(part.detach(), owner, len(batch.row_ids)) for part in (losses, after))
        return float(((first - second) / (first + 1e-8)).mean())

    def _gradient(self, loss: Tensor) -> list[Tensor]:
        """d loss / d parameters, scaled down to ``max_grad_norm``."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found)]
        if self.settings.max_grad_norm:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in parts]))
            parts = [part * (self.settings.max_grad_norm / (norm + 1e-6)).clamp_max(1.0) for part in parts]
        return parts

    def _weights(self) -> Tensor:
        return torch.tensor(self.rule.weights, dtype=self.parameters[0].dtype, device=self.device)

    def _batch(self, rows: Sequence[Any]) -> Batch:
        every = [(str(k), row.input_ids, row.labels, 1.0) for k, row in enumerate(rows)]
        return make_batches(every, sum(len(row.input_ids) for row in rows) * len(rows))[0].to(self.device)

    def _train_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.trained_tokens += int(batch.attention_mask.sum())
        return token_losses(self.model, batch)

    def _forward_losses(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        self.forward_tokens += int(batch.attention_mask.sum())
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return token_losses(model, batch)
        finally:
            model.train(training)


def token_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(T,) nats of each supervised token, and (T,) the place of its row in the batch."""
    task = CausalTask()
    targets = task.targets(batch)
    where = targets >= 0
    logits = task.logits(model, batch)[where]
    losses = torch.nn.functional.cross_entropy(
        logits.to(wide(logits.dtype)), targets[where], reduction="none"
    )
    return losses, where.nonzero()[:, 0]


def _by_row(losses: Tensor, owner: Tensor, rows: int) -> Tensor:
    """(rows,) mean over each row's tokens; every row of a pool has one."""
    sums = torch.zeros(rows, dtype=losses.dtype, device=losses.device).index_add_(0, owner, losses)
    return sums / torch.bincount(owner, minlength=rows)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
