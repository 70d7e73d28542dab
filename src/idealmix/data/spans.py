"""Where the assistant's turns lie among a conversation's tokens, from differences of tokenised renderings.

Flows in: messages, their token ids, and a function that renders and tokenises any messages by the same template.
Flows out: one span a turn: what the model has to write after the generation prompt, up to the turn's end.
The text is never searched: a content may repeat in the prompt, be trimmed, or be wrapped by the template.

A turn begins where the rendering of all before it, with the generation prompt, ends; and ends where the rendering
up to and with it ends. Three real templates make that harder, and are handled:

* the generation prompt holds more than the finished turn does (DeepSeek-R1 opens ``<think>``): the turn begins
  where the two part;
* something stands at the end of every rendering (Phi-3's end-of-text), or the last turn is rendered differently
  from earlier ones (Qwen3's empty think block): the turn's end is found by exchanging its content for a
  placeholder, which leaves the same tail in both (gpt-oss closes the last turn by a token of its own);
* prefixes are refused, or rendered differently once more turns follow (a system text that moves to the last user
  turn): the turn's beginning is found by the same exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from idealmix.errors import InputError

Messages = Sequence[dict[str, Any]]
#: (messages, with the generation prompt) -> token ids; raises InputError where the template refuses them.
Tokens = Callable[[Messages, bool], list[int]]


def assistant_spans(
    ids: list[int], messages: Messages, tokens: Tokens, control: Container[int]
) -> list[tuple[int, int]]:
    """Half-open token spans of the assistant's turns, in order.

    Args:
        ids: ``tokens(messages, False)``.
        control: the tokens that only a template writes.

    Raises:
        InputError: the template leaves a turn out, or refuses what is needed to find it.
    """
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _start(ids, messages, turn, tokens)
            end = _end(ids, messages, turn, tokens, control)
            if not (spans[-1][1] if spans else 0) <= start < end:
                raise InputError(
                    f"the chat template does not let message {turn + 1} be told apart from the others",
                    mend="use a template with {% generation %} markers around the assistant's turns",
                )
            spans.append((start, end))
    return spans


def _start(ids: list[int], messages: Messages, turn: int, tokens: Tokens) -> int:
    said = None
    if turn > 0:
        try:
            prompt = tokens(messages[:turn], True)
            shared = common_prefix(ids, prompt)
            if shared == len(prompt):
                return shared
            # Parting inside of the generation prompt is harmless; parting in the history is not.
            said = shared if shared >= common_prefix(tokens(messages[:turn], False), prompt) > 0 else None
        except InputError:
            pass  # the template refuses a conversation that ends there
    exchanged = common_prefix(ids, tokens(_exchanged(messages, turn), False))
    # a content that happens to begin as the rest of the generation prompt does still belongs to the turn
    return exchanged if said is None else min(said, exchanged)


def _end(ids: list[int], messages: Messages, turn: int, tokens: Tokens, control: Container[int]) -> int:
    if turn == len(messages) - 1:
        return len(ids)
    upto = messages[: turn + 1]
    closed = tokens(upto, False)
    if common_prefix(ids, closed) == len(closed):
        return len(closed)
    # Both exchanges leave the same tail: once with what follows, once with the turn's closing alone.
    said = len(ids) - _common_suffix(ids, tokens(_exchanged(messages, turn), False))
    closing = closed[len(closed) - _common_suffix(closed, tokens(_exchanged(upto, turn), False)) :]
    same = common_prefix(ids[said:], closing)
    if not same and closing and closing[0] in control and said < len(ids) and ids[said] in control:
        return said + 1  # a last turn is closed by another control token than this one
    return said + same


def _exchanged(messages: Messages, turn: int) -> list[dict[str, Any]]:
    """The same messages, with a placeholder for what the assistant says in one turn.

    The placeholder differs from the content in its first and last character, so that what both renderings
    share stops at the content's ends.
    """
    said = (messages[turn].get("content") or "").strip()
    first = next(letter for letter in "0x" if not said.startswith(letter))
    last = next(letter for letter in "0x" if not said.endswith(letter))
    return [*messages[:turn], {"role": "assistant", "content": first + last}, *messages[turn + 1 :]]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = min(len(left), len(right))
    differs = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(np.argmax(differs)) if differs.any() else length


def _common_suffix(left: Sequence[int], right: Sequence[int]) -> int:
    return common_prefix(left[::-1], right[::-1])
