"""JSON as RFC 8259 has it: no NaN, no key twice, no nesting without end.

Flows in: text. Flows out: plain data, or a ``ValueError`` that says what is wrong; Python's own reader takes the last of two
equal keys in silence, and NaN.
"""

from __future__ import annotations

import json
from typing import Any

#: Levels; what reads rows later (templates, encoders) recurses too.
DEEPEST = 64


def strict_json(text: str) -> Any:
    """The data in `text`.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: NaN or an infinity, a key twice in one object, a number too long, or more than `DEEPEST` levels.
    """
    try:
        data = json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST and _deeper_than(data, DEEPEST):
        raise ValueError(_TOO_DEEP)
    return data


_TOO_DEEP = f"nested more than {DEEPEST} levels deep"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON: write null or a number")


def _deeper_than(data: Any, levels: int) -> bool:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(levels):
        values = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [inner for inside in values for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
