"""The one tokenisation of the project: a conversation to ``input_ids`` and ``labels``.

Flows in: a conversation, the model's tokenizer with its chat template. Flows out: token ids, and labels that are
-100 outside of the assistant's turns. Training, influence and evaluation all read what is made here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from idealmix.data.conversation import Conversation
from idealmix.data.spans import assistant_spans, common_prefix
from idealmix.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100

#: For tokenizers without a chat template. ``bos`` stands in front only where the tokenizer itself would put it;
#: the tokenizer's end token ends every assistant turn.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ('system', 'developer', 'user', 'assistant') or message.tool_calls -%}
{{ raise_exception('The plain template has no tool calls: give the tokenizer a chat template that has.') }}
{%- endif -%}
{{ '### ' + message.role | capitalize + ':\\n' + message.content }}
{%- if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}
{{- '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif -%}
"""

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """Token ids and unshifted labels (``labels[t]`` is ``input_ids[t]`` or -100), equally long."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def supervised(self) -> int:
        """Labels that a loss sees: at positions >= 1, for nothing predicts the first token."""
        return sum(label != IGNORED for label in self.labels[1:])


class Encoder:
    """Encodes conversations by a tokenizer's chat template (or `PLAIN_TEMPLATE`), cut to a length.

    The loss is on every assistant turn: on what the model has to write after the generation prompt, its
    end-of-turn token included (also where that is the pad token, since labels are made here and not from padding).
    White space that a template puts behind the end-of-turn token is not supervised: no generation reaches it.
    A template's own ``{% generation %}`` markers are followed instead, and only extended by an end-of-turn token
    that they leave out. Raw texts are supervised whole, with the tokenizer's end token behind them.

    Args:
        tokenizer: the model's.
        max_length: tokens; what is longer is cut at the end.

    Attributes:
        warnings: what the template cannot show the model, once each, as it is met.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.warnings: list[str] = []
        self._template: str | None = None
        self._bos: list[int] = []
        if not tokenizer.chat_template:
            self._template = PLAIN_TEMPLATE
            empty = list(tokenizer("")["input_ids"])
            self._bos = empty[:1] if empty[:1] == [tokenizer.bos_token_id] else []
            self.warnings.append(
                "the tokenizer has no chat template; the plain template is used (see the docs)"
            )
        self._control = set(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()
        }
        self._blank: dict[int, bool] = {}
        self._seen: set[Any] = set()

    def encode(self, conversation: Conversation) -> Encoded:
        """One row.

        Raises:
            InputError: the template refuses the row, or does not show the model one of its messages.
        """
        if conversation.text is not None:
            ids = list(self.tokenizer(conversation.text)["input_ids"])
            end = self.tokenizer.eos_token_id
            ids += [end] if end is not None and ids[-1:] != [end] else []
            spans = [(0, len(ids))]
        else:
            ids, spans = self._marked(conversation) or self._by_prefixes(conversation)
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            labels[start:end] = ids[start:end]
        return Encoded(ids[: self.max_length], labels[: self.max_length], len(ids) > self.max_length)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids of all before the last assistant turn, with the generation prompt (a raw text: its start)."""
        if conversation.text is not None:
            return list(self.tokenizer("")["input_ids"])
        return self._tokens(conversation.prompt, conversation.tools, True)

    def _by_prefixes(self, conversation: Conversation) -> tuple[list[int], list[tuple[int, int]]]:
        messages, tools = conversation.messages, conversation.tools
        ids = self._tokens(messages, tools, False)
        self._require_shown(ids, conversation)
        spans = assistant_spans(
            ids, messages, lambda some, prompt: self._tokens(some, tools, prompt), self._control
        )
        return ids, [(start, self._without_blank_tail(ids, start, end)) for start, end in spans]

    def _marked(self, conversation: Conversation) -> tuple[list[int], list[tuple[int, int]]] | None:
        """By the template's markers; None where it has none."""
        if self._template is not None or not self.tokenizer.is_fast:
            return None
        if not _MARKERS.search(self.tokenizer.get_chat_template(tools=conversation.tools)):
            return None
        rendered = self._render(
            conversation.messages,
            conversation.tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = list(rendered["input_ids"]), list(rendered["assistant_masks"])
        self._require_shown(ids, conversation)
        closing = self._closing_tokens
        edges = [t for t in range(len(mask) + 1) if (t and mask[t - 1]) != (t < len(mask) and mask[t])]
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        return ids, [
            (
                start,
                end + (end < len(ids) and ids[end] in closing and ids[end - 1] not in closing),
            )
            for start, end in spans
        ]

    @cached_property
    def _closing_tokens(self) -> set[int]:
        """The control tokens that end an assistant turn: those that follow its content, whatever it is."""
        first, second = (
            self._tokens(
                [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}], None, False
            )
            for said in ("b", "c")
        )
        tail = first[len(first) - common_prefix(first[::-1], second[::-1]) :]
        return {token for token in tail if token in self._control}

    def _without_blank_tail(self, ids: list[int], start: int, end: int) -> int:
        """The end of a span without white space that follows a control token."""
        last = end
        while last > start and self._is_blank(ids[last - 1]):
            last -= 1
        return last if last > start and ids[last - 1] in self._control else end

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = (
                token not in self._control and not str(self.tokenizer.decode([token])).strip()
            )
        return self._blank[token]

    def _tokens(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, prompt: bool) -> list[int]:
        text = self._render(messages, tools, tokenize=False, add_generation_prompt=prompt)
        # The template writes bos itself where it wants it: adding special tokens here would double it.
        return self._bos + list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, **options: Any) -> Any:
        from jinja2.exceptions import TemplateError

        if not messages:
            raise InputError("the conversation begins with an assistant turn")
        options |= {"chat_template": self._template, "tools": tools}
        try:
            try:
                return self.tokenizer.apply_chat_template(list(messages), **options)
            except TypeError:  # some templates join the arguments of a call to their text, and want a string
                return self.tokenizer.apply_chat_template(_with_text_arguments(messages), **options)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the tokenizer's chat template refuses this conversation ({roles}): {error}",
                mend="change the rows to what the template accepts, or give the tokenizer another chat_template",
            ) from error

    def _require_shown(self, ids: list[int], conversation: Conversation) -> None:
        """Refuse what the template drops in silence; tested once for each kind of message."""
        messages, tools = conversation.messages, conversation.tools
        if "end" not in self._seen:
            self._seen.add("end")
            if not self._closing_tokens:
                self.warnings.append(
                    "the chat template writes no end token behind an assistant turn: no end is learnt"
                )
        if tools and "tools" not in self._seen:
            self._seen.add("tools")
            if self._tokens(messages, None, False) == ids:
                self.warnings.append("the chat template does not show the model the rows' tools")
        for number, message in enumerate(messages):
            content, calls = message.get("content"), message.get("tool_calls")
            kind = (message["role"], bool(content), bool(calls))
            if kind in self._seen:
                continue
            self._seen.add(kind)
            if content and self._unseen(
                ids, conversation, number, {**message, "content": "0" + content + "0"}
            ):
                if not calls:
                    raise InputError(
                        f"the chat template leaves out messages of role {message['role']!r}",
                        mend="take such messages out of the rows, or give the tokenizer another chat_template",
                    )
                self.warnings.append("the chat template drops the text of assistant turns that call tools")
            called = {key: value for key, value in message.items() if key != "tool_calls"}
            if calls and self._unseen(ids, conversation, number, {**called, "content": content or ""}):
                raise InputError(
                    "the chat template leaves out the assistant's tool calls",
                    mend="write such turns without content, or give the tokenizer another chat_template",
                )

    def _unseen(self, ids: list[int], conversation: Conversation, number: int, other: dict[str, Any]) -> bool:
        changed = [*conversation.messages[:number], other, *conversation.messages[number + 1 :]]
        try:
            return self._tokens(changed, conversation.tools, False) == ids
        except InputError:
            return False  # it looks at the message, or it would not mind


def _with_text_arguments(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with each tool call's arguments as JSON text."""
    out = copy.deepcopy(list(messages))
    for message in out:
        for call in message.get("tool_calls") or []:
            arguments = call["function"].get("arguments")
            if not isinstance(arguments, str):
                call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return out
