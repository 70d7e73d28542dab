"""A small byte-level BPE tokenizer with a real model's chat template, for the data room's tests."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from idealmix import config
from idealmix.data.pools import Pool, load_pool
from idealmix.data.tokenise import IGNORED, Encoded, Encoder

# Enough text for merges that cross words, digits and line ends: prefixes must not depend on their absence.
_CORPUS = [
    "What is 2 + 2? It is 4.\n\nThe weather in Paris is sunny.\n",
    "### User:\nHello.\n\n### Assistant:\n",
] * 50
_CONTROL = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜\s]+｜>|<(?:start|end)_of_turn>|<(?:bos|eos)>")


def template(name: str) -> str:
    """A chat template that trl ships, as text."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@functools.cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


def make_tokenizer(
    chat_template: str | None = None, eos: str = "<eos>", bos: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer; its control tokens are those that the template writes, and pad = eos."""
    marks = {eos, *([bos] if bos else []), *_CONTROL.findall(chat_template or "")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), eos_token=eos, bos_token=bos, pad_token=eos
    )
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
    tokenizer.chat_template = chat_template
    return tokenizer


def supervised_texts(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The decoded text of each supervised run."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def pool_from(path: Path, name: str = "math", max_length: int = 512, seed: int = 0, **source: object) -> Pool:
    """A pool of a file, tokenised by the plain template."""
    encoder = Encoder(make_tokenizer(), max_length)
    return load_pool(name, config.Source(path=str(path), **source), encoder, seed=seed)
