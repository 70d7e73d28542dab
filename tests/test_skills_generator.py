"""The built-in skills: right answers, seeded rows, splits that share no prompt."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idealmix.errors import InputError
from idealmix.skills import REFERENCED, SKILLS, SPLITS, generate, split_of, write_suite


def solve_mathematics(prompt: str) -> str:
    assert re.fullmatch(r"[a-z][=:][0-9+-]+", prompt)
    return str(eval(prompt[2:]))  # noqa: S307


def solve_coding(prompt: str) -> str:
    functions = {
        "rev": lambda s: "".join(reversed(s)),
        "up": lambda s: s.upper(),
        "dup": lambda s: s * 2,
        "tail": lambda s: s[1:],
        "head": lambda s: s[: len(s) - 1],
    }
    return eval(prompt, {"__builtins__": {}}, functions)  # noqa: S307


def solve_reasoning(prompt: str) -> str:
    facts, question = prompt.rstrip("?").split(" ")
    above = {}
    for fact in facts.split(","):
        left, sign, right = fact
        above[left if sign == ">" else right] = right if sign == ">" else left
    (place,) = set(above) - set(above.values())
    steps = {"top": 0, "2nd": 1, "3rd": 2, "low": len(above)}[question]
    for _ in range(steps):
        place = above[place]
    return place


def solve_instruction(prompt: str) -> str:
    order, words_text = prompt.split(": ")
    joint, manner = order.split(" ") if " " in order else ("spaces", order)
    words = words_text.split(" ")
    if manner == "capitals":
        words = [w.upper() for w in words]
    elif manner == "initials":
        words = [w[0].upper() + w[1:] for w in words]
    elif manner == "backwards":
        words = list(reversed(words))
    elif manner == "sorted":
        words = sorted(words)
    return {"commas": ", ", "dashes": "-", "slashes": "/", "spaces": " "}[joint].join(words)


def greeting(text: str) -> str:
    return text.split(".")[0]


SOLVERS = {
    "mathematics": solve_mathematics,
    "coding": solve_coding,
    "reasoning": solve_reasoning,
    "instruction": solve_instruction,
}


@pytest.mark.parametrize("skill", REFERENCED)
def test_answers_follow_from_prompts(skill: str) -> None:
    for row in generate(skill, 500, 1):
        assert SOLVERS[skill](row["prompt"]) == row["response"], row


def test_chat_greets_by_name() -> None:
    for row in generate("chat", 200, 1):
        name = re.match(r"I am (\w+)\.", row["prompt"]).group(1)
        assert greeting(row["response"]) == f"Hello {name}"


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_share_no_prompt_whatever_the_seed(skill: str) -> None:
    prompts = {
        split: {row["prompt"].casefold() for seed in (0, 1) for row in generate(skill, 300, seed, split)}
        for split in SPLITS
    }
    assert not prompts["train"] & prompts["reference"]
    assert not prompts["train"] & prompts["test"]
    assert not prompts["reference"] & prompts["test"]
    for split, found in prompts.items():
        assert {split_of(skill, prompt) for prompt in found} == {split}


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(SKILLS),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 10_000),
    st.sampled_from(SPLITS),
)
def test_seeded_and_prefix_stable(skill: str, few: int, more: int, seed: int, split: str) -> None:
    few, more = sorted((few, more))
    rows = generate(skill, more, seed, split)
    assert len(rows) == more
    assert rows[:few] == generate(skill, few, seed, split)
    assert len({row["id"] for row in rows}) == len({row["prompt"].casefold() for row in rows}) == more
    assert all(set(row) == {"id", "prompt", "response"} for row in rows)


def test_seeds_differ() -> None:
    assert generate("coding", 20, 0) != generate("coding", 20, 1)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="no built-in skill 'maths'"):
        generate("maths", 1, 0)
    with pytest.raises(InputError, match="no split 'dev'"):
        generate("coding", 1, 0, "dev")
    with pytest.raises(InputError, match="-1"):
        generate("coding", -1, 0)


def test_suite_on_disk(tmp_path) -> None:
    paths = write_suite(tmp_path, seed=3, train=20, reference=10, test=5)
    assert set(paths) == set(SKILLS)
    for skill, files in paths.items():
        for split, count in (("train", 20), ("reference", 10), ("test", 5)):
            assert files[split] == tmp_path / skill / f"{split}.jsonl"
            rows = [json.loads(line) for line in files[split].read_text().splitlines()]
            assert rows == generate(skill, count, 3, split)
