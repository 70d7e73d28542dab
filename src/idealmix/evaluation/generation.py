"""Answers of a model to conversations: greedy, in batches.

Flows in: a causal language model, its tokenizer, conversations. Flows out: for each the text of the assistant's next
turn. A prompt is everything before a conversation's last assistant turn, through the chat template.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from idealmix.curvature import Processes
from idealmix.data.conversation import Conversation
from idealmix.data.tokenise import IGNORED, Encoder
from idealmix.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]

_ANY_LENGTH = sys.maxsize


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    max_new_tokens: int = 256,
    batch_tokens: int = 16384,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> list[str]:
    """The assistant's next turn after each conversation's prompt, greedily, without special tokens.

    Whatever sampling settings the checkpoint carries are left aside. An answer ends before an end token
    (`end_tokens`), at `max_new_tokens`, or where the model's context is full.

    Args:
        model: a causal language model with `generate`, on its device.
        tokenizer: the model's.
        conversations: what follows their prompt (all before the last assistant turn) is not looked at.
        max_new_tokens: the longest answer.
        batch_tokens: prompt and answer tokens, pads included, of one batch.
        progress: called with prompts done and prompts in total; of several processes, as if all were as far as this one.
        processes: who shares the batches, each with the same conversations and the whole model; all get all answers. None: this
            process alone.

    Raises:
        InputError: a prompt that leaves no room for an answer in the model's context.
    """
    encoder = Encoder(tokenizer, _ANY_LENGTH)
    prompts = [encoder.prompt(conversation) for conversation in conversations]
    context = getattr(model.config, "max_position_embeddings", None)
    full = [row.id for row, ids in zip(conversations, prompts) if context is not None and len(ids) >= context]
    if full:
        raise InputError(
            f"{len(full)} prompts fill the model's context of {context} tokens: {', '.join(full[:5])}",
            mend="shorten these rows, or leave them out of the score",
        )
    ends = end_tokens(model, tokenizer, conversations[0]) if conversations else set()
    team = processes or Processes()
    answers: dict[int, str] = {}
    for batch in team.share(
        list(_batches([len(ids) for ids in prompts], max_new_tokens, batch_tokens, context))
    ):
        new_tokens = _continue(
            model, tokenizer, [prompts[i] for i in batch], max_new_tokens, sorted(ends), context
        )
        for i, tokens in zip(batch, new_tokens):
            end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
            answers[i] = str(tokenizer.decode(tokens[:end], skip_special_tokens=True))
        if progress:
            progress(min(len(prompts), len(answers) * team.size), len(prompts))
    for found in team.gather(answers):
        answers |= found
    return [answers[i] for i in range(len(prompts))]


def answer_text(conversation: Conversation) -> str:
    """The text of the last assistant turn: the reference answer.

    Raises:
        InputError: a raw-text row, or no assistant turn after some other one.
    """
    if not conversation.prompt or conversation.answer is None:
        raise InputError(
            "no assistant turn that answers something, so there is nothing to ask for",
            where=f"row {conversation.id}",
            mend="scores need rows with a prompt and an answer",
        )
    return conversation.answer.get("content") or ""


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> set[int]:
    """Ids that end an answer: the tokenizer's and the checkpoint's end tokens, and what ends this row's last turn in training."""
    found: set[int] = set()
    for ids in (tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)):
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    labels = Encoder(tokenizer, _ANY_LENGTH).encode(conversation).labels
    last = next((label for label in reversed(labels) if label != IGNORED), None)
    if last is not None and (last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder):
        found.add(last)
    return found


def _batches(lengths: Sequence[int], new: int, batch_tokens: int, context: int | None) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first; all of a batch may have as many new tokens as its longest prompt."""
    batch: list[int] = []

    def room(i: int) -> int:
        return new if context is None else min(new, context - lengths[i])

    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batch and (len(batch) + 1) * (lengths[batch[0]] + new) > batch_tokens
        if full or (batch and room(i) != room(batch[0])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _continue(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    ends: list[int],
    context: int | None,
) -> list[list[int]]:
    """New tokens of one batch. Pads stand on the left, so that every prompt's next token comes right after it."""
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    device = next(model.parameters()).device
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    new = max_new_tokens if context is None else min(max_new_tokens, context - width)
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=ends, pad_token_id=pad)
    with _without_own_settings(model), torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return [row[width:] for row in out.tolist()]


@contextlib.contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """A blank generation config and eval mode: `generate` would fill in the checkpoint's own temperature and penalties."""
    from transformers import GenerationConfig

    own, training = model.generation_config, model.training
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)
