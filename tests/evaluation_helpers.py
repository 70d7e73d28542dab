"""A tiny causal model with a chat tokenizer, and a stand-in for the data room's pools, for the evaluation tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from idealmix.data.conversation import Conversation

SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<end>", "<unk>")
VOCABULARY = 48
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: special tokens, then w7, w8, ...; turns end with <end>, which is not the eos token."""
    words = {token: number for number, token in enumerate(SPECIAL)}
    words |= {f"w{number}": number for number in range(len(SPECIAL), VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        additional_special_tokens=["<user>", "<assistant>", "<end>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0):
    """Random weights, wide enough that greedy answers differ; `gpt2` has learned positions."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.6
        )
        config.bos_token_id, config.eos_token_id = 1, 2
        return GPT2LMHeadModel(config).to(dtype).eval()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.6,
        attention_dropout=0.3,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


class TinyPool:
    """What evaluation asks of a pool."""

    def __init__(
        self, name: str, rows: list[SimpleNamespace], conversations: list[Conversation] | None = None
    ):
        self.name, self.rows, self.conversations = name, rows, conversations or []

    def __len__(self) -> int:
        return len(self.rows) or len(self.conversations)

    def row(self, number: int) -> SimpleNamespace:
        return self.rows[number]

    def conversation(self, number: int) -> Conversation:
        return self.conversations[number]


def token_pool(size: int = 9, seed: int = 0) -> TinyPool:
    """Rows of very unequal length, some with two supervised stretches, one with a label at position 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(size):
        length = int(rng.integers(3, 30))
        ids = rng.integers(len(SPECIAL), VOCABULARY, length)
        masked = rng.random(length) < 0.5
        masked[-1] = False
        masked[0] = number != 0
        rows.append(
            SimpleNamespace(
                id=f"row-{number}", input_ids=ids.tolist(), labels=np.where(masked, -100, ids).tolist()
            )
        )
    return TinyPool("set", rows)


def chat(row_id: str, prompt: str, response: str) -> Conversation:
    return Conversation(
        row_id, [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    )
