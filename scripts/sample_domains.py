"""Make a small, fair sample of a folder of domains, for runs on a small machine.

Flows in: a folder with `<domain>/{train,reference,test}.jsonl`. Flows out: the same layout with fewer rows, and
`sample.json`, which says how many rows stood in every file, how many were short enough, and how many were taken.

    python scripts/sample_domains.py data sample --model models/smollm2-135m-instruct \
        --domains mathematics coding --train 600 --reference 64 --test 64 --max-tokens 256 --seed 0

The recipe, the same for every file: rows of more than `--max-tokens` tokens (whole conversation through the model's
chat template) are left out, whole and never cut; of the others a seeded sample without replacement is taken, in the
file's order. What is left out is only a matter of length, so the sample is a fair one of the short rows; what share they
are is in `sample.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

SPLITS = ("train", "reference", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder that holds a folder for each domain")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--model", required=True, help="whose tokenizer counts: a hub name or a folder")
    parser.add_argument("--domains", nargs="+", help="default: every folder of the source")
    for split, rows in zip(SPLITS, (600, 64, 64)):
        parser.add_argument(
            f"--{split}", type=int, default=rows, help=f"rows of {split}.jsonl (default {rows})"
        )
    parser.add_argument("--max-tokens", type=int, default=256, help="longest row (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    from idealmix.training.model import load_tokenizer

    tokenizer = load_tokenizer(asked.model)
    domains = asked.domains or sorted(path.parent.name for path in asked.source.glob("*/train.jsonl"))
    facts: dict[str, Any] = {"max_tokens": asked.max_tokens, "seed": asked.seed, "files": {}}
    for domain in domains:
        for split in SPLITS:
            source, name = asked.source / domain / f"{split}.jsonl", f"{domain}/{split}"
            if not source.is_file():
                if split == "train":
                    sys.exit(f"{source} is missing")
                continue
            wanted = getattr(asked, split)
            facts["files"][name] = sample(
                source, asked.output / f"{name}.jsonl", wanted, asked, tokenizer, name
            )
            print(name, facts["files"][name])
    (asked.output / "sample.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def sample(
    source: Path, output: Path, wanted: int, asked: argparse.Namespace, tokenizer: Any, name: str
) -> dict[str, int]:
    """Write the sample of one file; returns its counts of rows and tokens."""
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    lengths = [count_tokens(json.loads(line), tokenizer) for line in lines]
    short = [n for n, length in enumerate(lengths) if length <= asked.max_tokens]
    taken = sorted(Random(f"{asked.seed}/{name}").sample(short, min(wanted, len(short))))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines[n] + "\n" for n in taken), encoding="utf-8")
    return {
        "rows": len(lines),
        "short": len(short),
        "taken": len(taken),
        "tokens": sum(lengths[n] for n in taken),
    }


def count_tokens(row: dict[str, Any], tokenizer: Any) -> int:
    """Tokens of the whole conversation: `messages`, or `prompt` and `response` as two turns."""
    messages = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))


if __name__ == "__main__":
    main()
