"""One question and its answer for each built-in skill.

Flows in: a seeded ``random.Random``. Flows out: ``(prompt, response)``, plain ASCII of at most about sixty characters.
Every answer follows from its prompt (of ``chat``, the first sentence does), so a score is an exact match.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

CONSONANTS = "bcdfghjklmnprstvwz"
VOWELS = "aeiou"
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Task = Callable[[Random], tuple[str, str]]


def word(rng: Random, syllables: int) -> str:
    """A pronounceable made-up word: one consonant and one vowel a syllable."""
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))


def mathematics(rng: Random) -> tuple[str, str]:
    """A letter set to a sum of two or three one-digit numbers: ``k=4+9-6`` or ``k:4+9-6`` gives ``7``."""
    text, total = terms(rng, rng.choice((2, 3, 3)))
    return f"{rng.choice(LETTERS)}{rng.choice('=:')}{text}", str(total)


def terms(rng: Random, count: int) -> tuple[str, int]:
    """A sum of ``count`` one-digit numbers as text, and its value, which is never below zero."""
    total = rng.randint(1, 9)
    text = str(total)
    for _ in range(count - 1):
        term = rng.randint(1, 9)
        sign = -1 if term <= total and rng.random() < 0.5 else 1
        text += f"{'+' if sign > 0 else '-'}{term}"
        total += sign * term
    return text, total


OPERATIONS: dict[str, Callable[[str], str]] = {
    "rev": lambda s: s[::-1],
    "up": str.upper,
    "dup": lambda s: s + s,
    "tail": lambda s: s[1:],
    "head": lambda s: s[:-1],
}


def coding(rng: Random) -> tuple[str, str]:
    """What nested string functions return: ``rev(up('kdm'))`` gives ``MDK``."""
    argument = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 5)))
    names = rng.sample(sorted(OPERATIONS), rng.choice((1, 2, 2, 3)))
    program, value = f"'{argument}'", argument
    for name in names:
        program, value = f"{name}({program})", OPERATIONS[name](value)
    return program, value


def reasoning(rng: Random) -> tuple[str, str]:
    """Who stands where, from shuffled comparisons of neighbours: ``m>a,c>k,k>m 2nd?`` gives ``k``."""
    names = rng.sample(LETTERS, rng.choice((3, 3, 3, 4, 4)))
    facts = [f"{a}>{b}" if rng.random() < 0.5 else f"{b}<{a}" for a, b in pairwise(names)]
    rng.shuffle(facts)
    place = rng.randrange(len(names))
    asked = {0: "top", len(names) - 1: "low"}.get(place, "2nd" if place == 1 else "3rd")
    return f"{','.join(facts)} {asked}?", names[place]


JOINTS = {"commas": ", ", "dashes": "-", "slashes": "/", "spaces": " "}
MANNERS: dict[str, Callable[[list[str]], list[str]]] = {
    "plain": lambda words: words,
    "capitals": lambda words: [w.upper() for w in words],
    "initials": lambda words: [w.capitalize() for w in words],
    "backwards": lambda words: words[::-1],
    "sorted": lambda words: sorted(words),
}


def instruction(rng: Random) -> tuple[str, str]:
    """Words to be laid out in a manner, and joined as told: ``dashes capitals: zodu pave`` gives ``ZODU-PAVE``."""
    words = [word(rng, 2) for _ in range(rng.choice((2, 3)))]
    manner = rng.choice(sorted(MANNERS))
    joint = rng.choice(("", "", "", *sorted(JOINTS)))  # none: spaces
    order = f"{joint} {manner}" if joint else manner
    return f"{order}: {' '.join(words)}", JOINTS.get(joint, " ").join(MANNERS[manner](words))


TOPICS = ("tea", "rain", "trains", "bread", "cats", "maps", "music", "snow", "bikes", "soup")
REMARKS = (
    "My aunt has {t}",
    "I want {t} too",
    "More {t} on {d}",
    "No {t} before {d}",
    "Why not {t} on {d}",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def chat(rng: Random) -> tuple[str, str]:
    """Small talk: the answer greets by name and then says something of the topic, which is not to be foreseen."""
    name, topic = word(rng, rng.choice((2, 3))).capitalize(), rng.choice(TOPICS)
    remark = rng.choice(REMARKS).format(t=topic, d=rng.choice(DAYS))
    return f"I am {name}. Any {topic}?", f"Hello {name}. {remark}."


TASKS: dict[str, Task] = {
    "mathematics": mathematics,
    "coding": coding,
    "reasoning": reasoning,
    "instruction": instruction,
    "chat": chat,
}
