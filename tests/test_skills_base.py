"""The shipped base model, its tokenizer and the demo's configuration."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from idealmix.config import Config
from idealmix.skills import REFERENCED, SKILLS, base_model_path, demo_config, generate, write_suite


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_model_path())


def test_small_and_safe_to_load() -> None:
    files = list(base_model_path().iterdir())
    assert sum(f.stat().st_size for f in files) < 5e6
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".pkl", ".py"}]
    facts = json.loads((base_model_path() / "pretraining.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(base_model_path())
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("skill", SKILLS)
def test_every_character_has_a_token(tokenizer, skill: str) -> None:
    for row in generate(skill, 100, 5):
        text = row["prompt"] + row["response"]
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_template_marks_the_answer_and_its_end(tokenizer) -> None:
    messages = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "7"}]
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    asked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"]) if m]
    assert tokenizer.convert_ids_to_tokens(asked) == ["7", "<end>"]
    start = tokenizer.apply_chat_template(
        messages[:1], tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert encoded["input_ids"] == start + asked
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<end>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_base_knows_turns_but_not_the_skills(tokenizer) -> None:
    """It answers and stops, and is far from every reference set: there is something to fine-tune."""
    model = AutoModelForCausalLM.from_pretrained(base_model_path())
    for skill in REFERENCED:
        wrong = 0
        for row in generate(skill, 20, 0, "test"):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )["input_ids"]
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
            wrong += tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) != row["response"]
        assert wrong >= 8, skill


def test_demo_configuration_is_valid(tmp_path) -> None:
    write_suite(tmp_path, train=10, reference=5, test=5)
    config = Config.model_validate(demo_config(tmp_path))
    assert set(config.domains) == set(SKILLS)
    assert set(config.references) == set(config.tests) == set(config.scores) == set(REFERENCED)
    without = Config.model_validate(demo_config(tmp_path, skills=REFERENCED))
    assert "chat" not in without.domains


def test_pools_are_larger_than_the_budget(tmp_path) -> None:
    """Uniform rows at the budget leave unused rows in every pool: influence needs them for growth."""
    paths = write_suite(tmp_path, reference=1, test=1)
    lengths = {
        skill: [len(r["prompt"]) + len(r["response"]) + 3 for r in map(json.loads, files["train"].open())]
        for skill, files in paths.items()
    }
    budget = demo_config(tmp_path)["allocation"]["budget"]["size"]
    rows = budget / sum(sum(found) / len(found) for found in lengths.values())
    assert all(rows < 0.5 * len(found) for found in lengths.values())
