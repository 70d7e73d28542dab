"""One row as the whole project sees it: a conversation, or a raw text.

Flows in: what ``shapes`` made of a user's row. Flows out: its canonical JSON (storage and export), and the folded
prompt by which leaks and duplicates are found.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conversation:
    """A conversation in Hugging Face's chat format, or a raw text.

    Attributes:
        id: unique within its pool.
        messages: dicts with ``role``, ``content`` and perhaps ``tool_calls``; empty for a raw text.
        tools: JSON schemas of the tools that the assistant may call, or None.
        text: a raw text to continue, or None.
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    text: str | None = None

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """All that stands before the last assistant turn (of a raw text: nothing)."""
        turns = [k for k, message in enumerate(self.messages) if message["role"] == "assistant"]
        return self.messages[: turns[-1]] if turns else self.messages

    @property
    def answer(self) -> dict[str, Any] | None:
        """The last assistant turn; None for a raw text."""
        turns = [message for message in self.messages if message["role"] == "assistant"]
        return turns[-1] if turns else None

    def record(self) -> dict[str, Any]:
        """The row in the ``messages`` format (or ``text``), as it is exported."""
        if self.text is not None:
            return {"id": self.id, "text": self.text}
        tools = {"tools": self.tools} if self.tools else {}
        return {"id": self.id, "messages": self.messages, **tools}

    def to_json(self) -> str:
        """The row without its id, as one line of canonical JSON."""
        row = self.record()
        del row["id"]
        return canonical_json(row)

    @classmethod
    def from_json(cls, row_id: str, text: str) -> Conversation:
        """The inverse of `to_json`."""
        row = json.loads(text)
        return cls(row_id, row.get("messages", []), row.get("tools"), row.get("text"))

    def prompt_key(self) -> str:
        """A hash of the folded prompt (of a raw text: of the whole text): case and white space do not count."""
        if self.text is not None:
            parts = [self.text]
        else:
            parts = [
                part
                for message in self.prompt
                for part in (message["role"], message.get("content") or "", _calls(message))
            ]
        folded = "\0".join(" ".join(part.casefold().split()) for part in parts)
        return hashlib.blake2b(folded.encode(), digest_size=16).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _calls(message: dict[str, Any]) -> str:
    return canonical_json(message["tool_calls"]) if message.get("tool_calls") else ""
