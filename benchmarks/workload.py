"""What the engine's benchmarks measure on: SmolLM2-shaped models with random weights, and rows of unequal length.

Flows in: a size and a seed. Flows out: a model, and pools with the part of `idealmix.data.pools.Pool` that measuring
uses. Times and memory do not depend on what the weights and the tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """Of a model like SmolLM2: grouped-query attention, gated feed-forward, tied embeddings."""

    width: int
    depth: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(64, 2, 2, 1, 160, 512),
    "5M": Shape(192, 8, 3, 1, 512, 8192),
    "26M": Shape(384, 12, 6, 2, 1024, 12288),
    "135M": Shape(576, 30, 9, 3, 1536, 49152),  # SmolLM2-135M
    "8B": Shape(4096, 32, 32, 8, 14336, 128256, tied=False),  # Llama-3.1-8B
}


def build(shape: Shape, seed: int = 0) -> LlamaForCausalLM:
    """The model, float32, in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.inner,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


class RowPool:
    """Generated rows with ids, input ids and labels; the prompt half has no loss."""

    def __init__(self, name: str, count: int, tokens: int, vocabulary: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.name = name
        # lengths spread by about a half around the wanted mean, as those of real answers do
        lengths = np.clip(rng.lognormal(np.log(tokens) - 0.125, 0.5, count).round(), 8, 4 * tokens).astype(
            int
        )
        self._rows = []
        for number, length in enumerate(lengths):
            ids = rng.integers(0, vocabulary, length).tolist()
            labels = [IGNORED] * (length // 2) + ids[length // 2 :]
            self._rows.append(SimpleNamespace(id=f"r{number}", input_ids=ids, labels=labels))
        self.ids = [row.id for row in self._rows]
        self.index = {row_id: i for i, row_id in enumerate(self.ids)}
        self.supervised = np.array([sum(label != IGNORED for label in row.labels[1:]) for row in self._rows])
        self.tokens = lengths

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> SimpleNamespace:
        return self._rows[number]


def pools(kind: str, sets: int, rows: int, tokens: int, vocabulary: int, seed: int) -> dict[str, RowPool]:
    """`sets` pools of `rows` rows each."""
    return {
        f"{kind}-{i}": RowPool(f"{kind}-{i}", rows, tokens, vocabulary, seed * 1000 + i) for i in range(sets)
    }


def whole(domains: dict[str, RowPool]) -> SimpleNamespace:
    """The mixture that holds every row once."""
    return SimpleNamespace(row_ids={name: pool.ids for name, pool in domains.items()})


DOMAINS = REFERENCES = 4


def four_and_four(size: str, rows: int, tokens: int, reference_rows: int) -> tuple[Any, Any, Any]:
    """A model of that size, four domains of `rows` rows and four references of `reference_rows`."""
    vocabulary = SHAPES[size].vocabulary
    return (
        build(SHAPES[size]),
        pools("domain", DOMAINS, rows, tokens, vocabulary, seed=1),
        pools("reference", REFERENCES, reference_rows, tokens, vocabulary, seed=2),
    )
