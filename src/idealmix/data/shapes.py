"""A user's row, whichever of the accepted shapes it has, to messages or a raw text.

Flows in: one row as a dict of columns, and the place it came from (file and line). Flows out: a `Shaped` row.
Nothing is guessed: a missing, empty or non-string content is an error that names the place.

| columns | becomes |
|---|---|
| ``messages`` (+ ``tools``) | as it is: role and content, perhaps ``tool_calls`` |
| ``conversations`` (+ ``system``, ``tools``) | sharegpt: ``from``/``value`` |
| ``prompt``, ``completion`` | strings, or lists of messages, joined |
| ``prompt``, ``response``; ``query``, ``response`` | a user turn, an assistant turn |
| ``instruction``, ``output`` (+ ``input``) | alpaca: instruction, blank line, input; then an assistant turn |
| ``text`` | a raw text: the loss is on all of it |

``id``, ``system`` and ``tools`` may stand beside any of them but ``text``. The first shape of the table whose
columns are all there is taken, and columns that it does not use are reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from idealmix.data.strict_json import strict_json
from idealmix.errors import InputError

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

_ROLES = {"system", "developer", "user", "assistant", "tool"}
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
} | {role: role for role in _ROLES}


@dataclass(frozen=True)
class Shaped:
    """A row's content; `shape` and `unused` say which columns it was made of and which were left."""

    messages: Messages
    tools: list[Any] | None
    text: str | None
    shape: str
    unused: frozenset[str]


def shaped(row: Row, place: str) -> Shaped:
    """Read one row.

    Raises:
        InputError: no accepted set of columns, or a content that is null, empty or not a string.
    """
    name = next((name for name, shape in _SHAPES.items() if all(column in row for column in shape[0])), None)
    if name is None:
        raise InputError(
            f"no accepted columns; found: {', '.join(map(repr, row)) or 'none'}",
            where=place,
            mend="accepted are: " + "; ".join(_SHAPES) + " (with an optional id, system, tools)",
        )
    needed, optional, read = _SHAPES[name]
    unused = frozenset(map(str, row)) - {*needed, *optional, "id"}
    for column in unused:  # the report names them
        refuse_halves(column, f"the column {column!r}", place)
    if name == "text":
        return Shaped([], None, _text(row, "text", place), name, unused)
    messages = read(row, place)
    if name == "conversations":
        unused |= _unread_keys(row, place)
    if "system" in optional and row.get("system"):
        messages = [{"role": "system", "content": _text(row, "system", place)}, *messages]
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(
            "no assistant turn, so nothing to learn",
            where=place,
            mend="give each row an answer, or take the row out",
        )
    return Shaped(messages, _tools(row, place), None, name, unused)


def _text(row: Row, column: str, place: str, *, may_be_empty: bool = False) -> str:
    value = row.get(column)
    if value is None:
        raise InputError(f"{column!r} is null", where=place, mend="fill it in, or take the row out")
    if not isinstance(value, str):
        raise InputError(
            f"{column!r} is {_kind(value)}, not a string", where=place, mend="write it as a string"
        )
    if not value.strip() and not may_be_empty:
        raise InputError(f"{column!r} is empty", where=place, mend="fill it in, or take the row out")
    refuse_halves(value, repr(column), place)
    return value


def refuse_halves(text: str, what: str, place: str) -> None:
    """Refuse what an escape can make and no file can hold: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{what} holds half of a surrogate pair, which is not Unicode text",
            where=place,
            mend="write the data again as UTF-8",
        ) from None


def _pair(prompt: str, response: str) -> Callable[[Row, str], Messages]:
    def read(row: Row, place: str) -> Messages:
        sides = ((prompt, "user"), (response, "assistant"))
        return [
            message
            for column, role in sides
            for message in (
                _messages(row[column], f"{place}, {column}")
                if isinstance(row[column], list)
                else [{"role": role, "content": _text(row, column, place)}]
            )
        ]

    return read


def _alpaca(row: Row, place: str) -> Messages:
    question = _text(row, "instruction", place)
    if row.get("input") and (given := _text(row, "input", place, may_be_empty=True)).strip():
        question += "\n\n" + given
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": _text(row, "output", place)},
    ]


def _from_messages(row: Row, place: str) -> Messages:
    return _messages(_parsed(row["messages"], place), place)


def _from_sharegpt(row: Row, place: str) -> Messages:
    turns = _parsed(row["conversations"], place)
    if isinstance(turns, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        return _messages(turns, place)
    return _messages([_sharegpt(turn, place) for turn in _listed(turns, "conversations", place)], place)


def _sharegpt(turn: Any, place: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
        raise InputError(
            f"a turn of 'conversations' is {_kind(turn)}",
            where=place,
            mend="give each turn 'from' and 'value'",
        )
    role = _SHAREGPT.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise InputError(
            f"unknown speaker {turn['from']!r}", where=place, mend="accepted are: " + ", ".join(_SHAREGPT)
        )
    _refuse_weight(turn, role, place)
    value = _text(turn, "value", place, may_be_empty=role == "tool")
    if role == "function_call":
        calls = _parsed(value if value.lstrip().startswith("[") else f"[{value}]", place)
        return {"role": "assistant", "tool_calls": calls}
    return {"role": role, "content": value}


def _unread_keys(row: Row, place: str) -> set[str]:
    """What sharegpt turns hold beside their speaker and what they say, as the report names it."""
    turns = [turn for turn in _parsed(row["conversations"], place) if "from" in turn]
    keys = {key for turn in turns for key, value in turn.items() if value is not None}
    for key in keys:
        refuse_halves(str(key), f"the key {key!r}", place)
    return {f"conversations.{key}" for key in keys - {"from", "value", "weight"}}


def _refuse_weight(turn: Mapping[Any, Any], role: str, place: str) -> None:
    """Refuse a turn of the assistant that asks not to be trained on: every one is."""
    weight = turn.get("weight")
    if role in ("assistant", "function_call") and weight is not None and weight != 1:
        raise InputError(
            f"an assistant turn has the weight {weight!r}; the loss is on every assistant turn alike",
            where=place,
            mend="take the row out, or the key: the turn is then learned too",
        )


def _listed(value: Any, column: str, place: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{column!r} is {'an empty list' if value == [] else _kind(value)}, not a list of turns",
            where=place,
        )
    return value


def _messages(value: Any, place: str) -> Messages:
    return [
        _message(message, f"{place}, message {number}")
        for number, message in enumerate(_listed(value, "messages", place), 1)
    ]


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise InputError(
            f"a message is {_kind(message)}, not a mapping with 'role' and 'content'",
            where=place,
            mend="a list holds messages, such as {role: user, content: ...}; what is one text is given as text",
        )
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(
            f"unknown role {role!r}", where=place, mend="accepted are: " + ", ".join(sorted(_ROLES))
        )
    _refuse_weight(message, role, place)
    out = {key: value for key, value in message.items() if value is not None}
    for key in out.keys() - {"role", "content"}:  # templates may read any key, so none is left out in silence
        _storable({key: out[key]}, key, place)
    if isinstance(out.get("content"), list):
        out["content"] = "".join(_part(part, place) for part in out["content"])
    if calls := out.pop("tool_calls", None):
        out["tool_calls"] = [
            _call(call, place) for call in _listed(_parsed(calls, place), "tool_calls", place)
        ]
        if not out.get("content"):
            out.pop("content", None)  # a turn that only calls says nothing, and templates disagree on ""
            return out
    _text(out, "content", place, may_be_empty=role == "tool")
    return out


def _part(part: Any, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return _text(part, "text", place)
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise InputError(f"a content of type {kind!r}; only text can be trained on", where=place)


def _call(call: Any, place: str) -> dict[str, Any]:
    """OpenAI's form, with the arguments as an object, which is what chat templates expect."""
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        call = {"function": dict(call)}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(
            "a tool call without a function's name",
            where=place,
            mend='write it as {"type": "function", "function": {"name": ..., "arguments": {...}}}',
        )
    arguments = _parsed(function.get("arguments", {}), place)
    made = {"type": "function", **call, "function": {**function, "arguments": arguments}}
    _storable(made, "tool_calls", place)
    return made


def _tools(row: Row, place: str) -> list[Any] | None:
    tools = _parsed(row.get("tools"), place)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(
            f"'tools' is {_kind(tools)}, not a list of JSON schemas",
            where=place,
            mend="give a list of objects",
        )
    _storable(tools, "tools", place)
    return tools


def _storable(value: Any, key: str, place: str) -> None:
    """Refuse what JSON does not have, such as the dates and bytes of a Parquet file."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{key!r} cannot be written as JSON: {error}",
            where=place,
            mend="write it as text or a plain number, or leave the key out",
        ) from error


def _parsed(value: Any, place: str) -> Any:
    """A list or object that a flat format had to store as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return strict_json(value)
        except json.JSONDecodeError:
            return value
        except ValueError as error:
            raise InputError(f"JSON inside of it: {error}", where=place) from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


_BESIDE = ("system", "tools")
_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Row, str], Messages]]] = {
    "messages": (("messages",), ("tools",), _from_messages),
    "conversations": (("conversations",), _BESIDE, _from_sharegpt),
    "prompt, completion": (("prompt", "completion"), _BESIDE, _pair("prompt", "completion")),
    "prompt, response": (("prompt", "response"), _BESIDE, _pair("prompt", "response")),
    "query, response": (("query", "response"), _BESIDE, _pair("query", "response")),
    "instruction, output": (("instruction", "output"), ("input", *_BESIDE), _alpaca),
    "text": (("text",), (), lambda row, place: []),
}
