"""A whole project in a folder: a tiny model, two generated domains, a config; small enough to run in seconds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIGITS = [str(n) for n in range(10)]
WORDS = ["up", "down", "red", "blue", "cat", "dog"]
CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '> ' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' <end> ' }}{% endgeneration %}"
    "{% else %}{{ m.content + ' <end> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def save_model(folder: Path) -> Path:
    """A random two-layer Llama over words, with a chat template."""
    tokens = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>", *DIGITS, *WORDS, "next", "after", "swap"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, **{"unk_token": "<unk>"}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def count(a: int, b: int, c: int) -> tuple[str, str]:
    """Successors of three digits, modulo 10."""
    return f"next {a} {b} {c}", " ".join(str((n + 1) % 10) for n in (a, b, c))


def swap(a: str, b: str, c: str) -> tuple[str, str]:
    """Three words in reverse."""
    return f"swap {a} {b} {c}", f"{c} {b} {a}"


def write_rows(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{path.stem}-{i}", "prompt": p, "response": r} for i, (p, r) in enumerate(pairs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def project(folder: Path, **changes: Any) -> Path:
    """Write the project; returns its config.yaml. `changes`: top-level keys to replace."""
    rng = random.Random(0)
    digits = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    words = [(a, b, c) for a in WORDS for b in WORDS for c in WORDS]
    rng.shuffle(digits)
    rng.shuffle(words)
    counted, swapped = [count(*t) for t in digits], [swap(*t) for t in words]
    for name, pairs in (("count", counted), ("swap", swapped)):
        write_rows(folder / name / "reference.jsonl", pairs[:40])
        write_rows(folder / name / "test.jsonl", pairs[40:60])
        write_rows(folder / name / "train.jsonl", pairs[60:200])
    save_model(folder / "model")
    config = {
        "model": "./model",
        "domains": {name: f"{name}/train.jsonl" for name in ("count", "swap")},
        "references": {name: f"{name}/reference.jsonl" for name in ("count", "swap")},
        "tests": {name: f"{name}/test.jsonl" for name in ("count", "swap")},
        "scores": {"count": {"test": "count", "exact_match": "(.+)", "max_new_tokens": 6, "rows": 8}},
        "training": {
            "epochs": 2,
            "learning_rate": 0.01,
            "max_length": 32,
            "per_device_train_batch_size": 16,
            "dtype": "float32",
        },
        "influence": {"sample_fraction": 0.5, "damping": 0.1},
        "allocation": {
            "m": 0.5,
            "rounds": 2,
            "replicates": 1,
            "budget": {"unit": "tokens", "size": 1400},
            "max_repeats": 2,
        },
        "output": "run",
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def idealmix(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "idealmix", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **(env or {})},
    )
