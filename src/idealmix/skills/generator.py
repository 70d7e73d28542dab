"""The built-in skills as rows: any number, seeded, with splits that share no prompt.

Flows in: a skill's name, a count, a seed, a split. Flows out: rows ``{"id", "prompt", "response"}``, or a suite of
JSON Lines files. Pure Python.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random

from idealmix.errors import InputError
from idealmix.skills.tasks import TASKS

SKILLS: tuple[str, ...] = tuple(TASKS)
REFERENCED: tuple[str, ...] = tuple(name for name in SKILLS if name != "chat")  # nobody asks for chat
SPLITS: tuple[str, ...] = ("train", "reference", "test")

Row = dict[str, str]


def split_of(skill: str, prompt: str) -> str:
    """The one split that a prompt can be in: 80% of all prompts train, 10% reference, 10% test, by their hash.

    Prompts that differ in case alone are in one split, since a leak check takes them for one.
    """
    bucket = int.from_bytes(hashlib.sha256(f"{skill}\n{prompt.casefold()}".encode()).digest()[:8], "big") % 10
    return {8: "reference", 9: "test"}.get(bucket, "train")


def generate(skill: str, count: int, seed: int, split: str = "train") -> list[Row]:
    """Rows of one skill; the same arguments give the same rows, a larger count the same rows and more.

    No prompt occurs twice in a list, and none occurs in two splits, whatever the seeds.

    Raises:
        InputError: unknown skill or split, negative count, or more rows than the skill has prompts for.
    """
    if skill not in TASKS:
        raise InputError(f"there is no built-in skill '{skill}'", mend=f"use one of {', '.join(SKILLS)}")
    if split not in SPLITS:
        raise InputError(f"there is no split '{split}'", mend=f"use one of {', '.join(SPLITS)}")
    if count < 0:
        raise InputError(f"cannot generate {count} rows of '{skill}'", mend="ask for 0 or more")
    rng = Random(f"{skill}/{split}/{seed}")
    rows: list[Row] = []
    seen: set[str] = set()
    rejected = 0
    while len(rows) < count:
        prompt, response = TASKS[skill](rng)
        if prompt.casefold() in seen or split_of(skill, prompt) != split:
            rejected += 1
            if rejected > 10_000 + 100 * count:
                raise InputError(
                    f"'{skill}' has too few different prompts for {count} {split} rows",
                    mend=f"ask for at most {len(rows)}",
                )
            continue
        seen.add(prompt.casefold())
        rows.append({"id": f"{skill}-{split}-{seed}-{len(rows)}", "prompt": prompt, "response": response})
    return rows


def write_suite(
    folder: Path | str,
    *,
    seed: int = 0,
    train: int = 6000,
    reference: int = 400,
    test: int = 200,
    skills: tuple[str, ...] = SKILLS,
) -> dict[str, dict[str, Path]]:
    """Write ``<folder>/<skill>/{train,reference,test}.jsonl``.

    Sizes are rows of each skill. Returns the paths as ``{skill: {split: path}}``.
    """
    paths: dict[str, dict[str, Path]] = {}
    sizes: Mapping[str, int] = {"train": train, "reference": reference, "test": test}
    for skill in skills:
        (Path(folder) / skill).mkdir(parents=True, exist_ok=True)
        paths[skill] = {}
        for split, size in sizes.items():
            path = Path(folder) / skill / f"{split}.jsonl"
            lines = (json.dumps(row) + "\n" for row in generate(skill, size, seed, split))
            path.write_text("".join(lines), encoding="utf-8")
            paths[skill][split] = path
    return paths
