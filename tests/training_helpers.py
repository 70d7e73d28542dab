"""Stand-ins for the data room and tiny models, for the training tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 40


@dataclass(frozen=True)
class TinyRow:
    id: str
    input_ids: list[int]
    labels: list[int]


class TinyPool:
    """The part of ``data.pools.Pool`` that training uses."""

    def __init__(self, name: str, rows: list[TinyRow]) -> None:
        self.name, self.rows = name, rows
        self.ids = [row.id for row in rows]
        self.index = {row_id: number for number, row_id in enumerate(self.ids)}
        self.tokens = np.array([len(row.input_ids) for row in rows])
        self.supervised = np.array([sum(label != -100 for label in row.labels[1:]) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> TinyRow:
        return self.rows[number]

    def conversation(self, number: int) -> SimpleNamespace:
        messages = [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": 'it\'s "so"'},
        ]
        return SimpleNamespace(id=self.ids[number], messages=messages, tools=None, text=None)


def tiny_pools(sizes: dict[str, int], seed: int = 0, longest: int = 24) -> dict[str, TinyPool]:
    """Random rows of very unequal length; the prompt's part is masked."""
    rng = np.random.default_rng(seed)
    pools = {}
    for name, size in sizes.items():
        rows = []
        for number in range(size):
            length = int(rng.integers(2, longest + 1))
            ids = rng.integers(2, VOCABULARY, length).tolist()
            prompt = int(rng.integers(0, length - 1)) if length > 2 else 0
            rows.append(TinyRow(f"{number:03d}", ids, [-100] * prompt + ids[prompt:]))
        pools[name] = TinyPool(name, rows)
    return pools


def tiny_mixture(pools: dict[str, TinyPool], repeats: int = 1) -> SimpleNamespace:
    return SimpleNamespace(seed=0, row_ids={name: pool.ids * repeats for name, pool in pools.items()})


def save_tiny_model(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes: int) -> Path:
    """A random Llama with its tokenizer (an end token, no pad token)."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    } | sizes
    config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, initializer_range=0.2)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, **{"unk_token": "w2"}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "w2"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return folder
