"""Pre-train the small base model of the built-in skills and write it to src/idealmix/skills/base.

Flows in: nothing but a seed. Flows out: a LlamaForCausalLM and its character tokenizer. It reads lines that are
related to the skills and never prompts of theirs: fewer terms, functions and names, one instruction at a time, in
other words. So fine-tuning has the parts to build on and has to learn to put them together.

    python scripts/train_base_model.py [--steps 4500] [--output FOLDER]

Deterministic for one thread and one version of torch.
"""

from __future__ import annotations

import argparse
import json
import math
import string
import time
from itertools import count, pairwise
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from idealmix.skills.tasks import DAYS, JOINTS, LETTERS, MANNERS, OPERATIONS, REMARKS, TOPICS, terms, word

SPECIAL = ("<pad>", "<end>", "<unknown>", "<system>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<assistant>{% generation %}{{ message['content'] }}<end>{% endgeneration %}"
    "{% else %}<{{ message['role'] }}>{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, special tokens for turns and their end."""
    characters = [c for c in string.printable if c.isprintable()] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106
        eos_token="<end>",  # noqa: S106
        unk_token="<unknown>",  # noqa: S106
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        model_max_length=256,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def arithmetic_line(rng: Random) -> tuple[str, str]:
    """``sum 4+9`` ``13``, of two terms or three."""
    text, total = terms(rng, rng.choice((2, 2, 3)))
    return f"sum {text}", str(total)


def string_line(rng: Random) -> tuple[str, str]:
    """``run rev('kdm')`` ``mdk``, of one function or two."""
    value = "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 6)))
    program = f"'{value}'"
    for name in rng.sample(sorted(OPERATIONS), rng.choice((1, 1, 1, 2))):
        program, value = f"{name}({program})", OPERATIONS[name](value)
    return f"run {program}", value


def order_line(rng: Random) -> tuple[str, str]:
    """``k>m,m>a top`` ``k``, of two to four names."""
    names = rng.sample(LETTERS, rng.choice((2, 3, 3, 4)))
    facts = [f"{a}>{b}" if rng.random() < 0.5 else f"{b}<{a}" for a, b in pairwise(names)]
    rng.shuffle(facts)
    i = rng.randrange(len(names))
    asked = rng.choice((("top", names[0]), ("low", names[-1]), (f"at {i + 1}", names[i])))
    return f"{','.join(facts)} {asked[0]}", asked[1]


def words_line(rng: Random) -> tuple[str, str]:
    """``capitals zodu pave`` ``ZODU PAVE``: a manner or a joint, never both."""
    words = [word(rng, rng.randint(1, 3)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.4:
        joint = rng.choice(sorted(JOINTS))
        return f"{joint} {' '.join(words)}", JOINTS[joint].join(words)
    manner = rng.choice(sorted(MANNERS))
    return f"{manner} {' '.join(words)}", " ".join(MANNERS[manner](words))


def prose_line(rng: Random) -> tuple[str, str]:
    """A sentence or two, all of it to be predicted."""
    remarks = [rng.choice(REMARKS).format(t=rng.choice(TOPICS), d=rng.choice(DAYS)) for _ in range(2)]
    return "", f"{word(rng, 2).capitalize()} said: {'. '.join(remarks[: rng.randint(1, 2)])}."


def echo_line(rng: Random) -> tuple[str, str]:
    """Letters and the same letters again: the densest lesson in looking things up in the prompt."""
    text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(6, 16)))
    return text, text


# Echoes alone for the first steps: with them the model copies after 300 steps, without them not after 2,000.
ECHO_STEPS = 800
LINES = ((arithmetic_line, 6), (string_line, 6), (order_line, 6), (words_line, 4), (prose_line, 1))


def batches(rng: Random, tokenizer: PreTrainedTokenizerFast, rows: int):
    """Endless padded batches of lines; rows of similar length go together."""
    makers, weights = zip(*LINES)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for chunk_index in count():
        early = chunk_index * 16 < ECHO_STEPS
        chosen = [echo_line] * (rows * 16) if early else rng.choices(makers, weights, k=rows * 16)
        lines = [make(rng) for make in chosen]
        encoded = [(tokenizer.encode(f"<user>{q}<assistant>"), [*tokenizer.encode(a), end]) for q, a in lines]
        encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        chunks = [encoded[i : i + rows] for i in range(0, len(encoded), rows)]
        rng.shuffle(chunks)
        for chunk in chunks:
            width = max(len(q) + len(a) for q, a in chunk)
            ids = torch.full((rows, width), pad)
            weight = torch.zeros(rows, width)
            for i, (q, a) in enumerate(chunk):
                ids[i, : len(q) + len(a)] = torch.tensor(q + a)
                weight[i, : len(q)] = (
                    0.05  # the question: mostly noise, but it teaches which characters there are
                )
                weight[i, len(q) : len(q) + len(a)] = 1.0
            yield ids, weight


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--rows", type=int, default=64, help="lines a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=128, help="hidden size; the shipped model's is 128")
    parser.add_argument("--snapshots", type=int, default=0, help="also keep the model every so many steps")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parents[1] / "src" / "idealmix" / "skills" / "base"
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.width,
            intermediate_size=2 * options.width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    stream = batches(Random(options.seed), tokenizer, options.rows)
    started, running, tokens = time.time(), 0.0, 0
    for step in range(options.steps):
        ramp = min(1.0, (step + 1) / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        optimiser.param_groups[0]["lr"] = options.learning_rate * ramp * max(0.02, cosine)
        ids, weight = next(stream)
        tokens += int((weight > 0).sum())
        logits = model(input_ids=ids[:, :-1]).logits
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (each * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {running:.4f}  {time.time() - started:.0f} s", flush=True)
        if options.snapshots and (step + 1) % options.snapshots == 0:
            save(model, tokenizer, options.output.parent / f"{options.output.name}-{step + 1}", {})
    save(
        model,
        tokenizer,
        options.output,
        {
            "script": "scripts/train_base_model.py",
            "seed": options.seed,
            "steps": options.steps,
            "rows_per_step": options.rows,
            "tokens": tokens,
            "parameters": sum(p.numel() for p in model.parameters()),
            "final_loss": round(running, 4),
            "seconds_on_one_core": round(time.time() - started),
            "torch": torch.__version__,
        },
    )


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, facts: dict[str, object]
) -> None:
    """Write model, tokenizer and, where there are any, the facts of the training."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    if facts:
        (folder / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
