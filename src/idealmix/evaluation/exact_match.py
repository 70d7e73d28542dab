"""Whether a generated answer is the reference's: a regex takes the answer out of both, then they are compared.

Flows in: a pattern and texts. Flows out: answers, right or wrong. Pure Python.

What counts as the answer: of all matches of the pattern the last one that is not empty (a solution may mention
candidates before it concludes); of that match the first group, or the whole where the pattern has no group. What counts
as equal: the same text once white space is folded, and commas between digits and white space at the ends are gone
(``1,000`` is ``1000``). Case, signs, units and full stops count: put them outside of the group if they should not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from idealmix.errors import InputError

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def compile_pattern(pattern: str, where: str = "exact_match") -> re.Pattern[str]:
    """The compiled pattern.

    Raises:
        InputError: not a regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{pattern!r} is not a regular expression: {error}",
            where=where,
            mend="in YAML write it in single quotes, for example '#### (.+)'",
        ) from error


def answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The normalised answer in `text`; None where nothing matches or only nothing does."""
    found = None
    for match in pattern.finditer(text):
        taken = normalise((match.group(1) if pattern.groups else match.group(0)) or "")
        found = taken or found
    return found


def normalise(text: str) -> str:
    """White space folded, thousands' commas dropped."""
    return _THOUSANDS.sub("", " ".join(text.split()))


def reference_answers(pattern: re.Pattern[str], references: Mapping[str, str], where: str) -> dict[str, str]:
    """The answer that each reference text holds, by row id.

    Raises:
        InputError: the pattern finds no answer in some reference, so that row could never be right.
    """
    found = {row_id: answer(pattern, text) for row_id, text in references.items()}
    without = [row_id for row_id, text in found.items() if text is None]
    if without:
        raise InputError(
            f"{pattern.pattern!r} finds no answer in {len(without)} of {len(found)} reference answers: "
            + ", ".join(without[:5])
            + (", ..." if len(without) > 5 else ""),
            where=where,
            mend="change the pattern, or score a test set whose answers it fits",
        )
    return {row_id: text for row_id, text in found.items() if text is not None}


def is_right(pattern: re.Pattern[str], generated: str, wanted: str) -> bool:
    """Whether the generated text's answer is the wanted one; no answer is wrong."""
    return answer(pattern, generated) == wanted
