"""How a model is asked for logits, and which logit answers for which label.

Flows in: a module and a batch. Flows out: logits (B, L, V) and targets (B, L). Another kind of model needs another
`Task`; everything else in this room stays the same.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from idealmix.curvature.batch import IGNORED, Batch


class Task(Protocol):
    """A prediction for each position."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, L, V) scores before softmax."""
        ...

    def targets(self, batch: Batch) -> Tensor:
        """(B, L) class for each position's logits; -100 where there is no loss."""
        ...

    def scores(self, model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
        """``logits(model, batch)[where]``, (N, V), perhaps without making the others; where: (B, L) bool."""
        ...


class CausalTask:
    """A causal language model with transformers' call: position t predicts the token at t + 1."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, L, V)."""
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits

    def targets(self, batch: Batch) -> Tensor:
        """Labels moved one to the left; the last position has none."""
        ignored = torch.full_like(batch.labels[:, :1], IGNORED)
        return torch.cat([batch.labels[:, 1:], ignored], 1)

    def scores(self, model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
        """(N, V). The head is a large part of a small model: it is applied where some row has a label, if it can be."""
        columns = where.any(0).nonzero()[:, 0]
        if not len(columns) or not selects_positions(model):
            return self.logits(model, batch)[where]
        asked = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        logits = model(**asked, use_cache=False, logits_to_keep=columns).logits
        return logits[where[:, columns]]


class LabelTask:
    """Any module that maps ``batch.input_ids`` to (B, L, V) scores for the labels as they stand (no shift)."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, L, V)."""
        return model(batch.input_ids)

    def targets(self, batch: Batch) -> Tensor:
        """The labels themselves."""
        return batch.labels

    def scores(self, model: nn.Module, batch: Batch, where: Tensor) -> Tensor:
        """(N, V)."""
        return self.logits(model, batch)[where]


def selects_positions(model: nn.Module) -> bool:
    """Its forward takes the positions whose logits are wanted, as most of transformers' do."""
    inside: Any = getattr(model, "get_base_model", None)  # peft hands the argument on
    forward = inside().forward if callable(inside) else model.forward
    return "logits_to_keep" in inspect.signature(forward).parameters
