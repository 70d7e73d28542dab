"""Run folders with a materialised mixture, made without training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

HOSTILE = [
    "a b.c",
    "Mäth, v1#2:[x]",
    "数学",
    "A B.C",
    "名前",
]  # case and non-ASCII fold to the same plain names


def chat(row_id: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]
    return {"id": row_id, "messages": messages}


def tool_row(row_id: str) -> dict[str, Any]:
    """Two calls in one turn, two replies, heterogeneous arguments."""
    calls = [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2, 3]}}},
        {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}},
    ]
    return {
        "id": row_id,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+2 and the time?"},
            {"role": "assistant", "tool_calls": calls},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "noon"},
            {"role": "assistant", "content": "3, noon."},
        ],
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    }


def run_folder(folder: Path, domains: dict[str, list[dict[str, Any]]], **config: Any) -> Path:
    """A finished run's `mixture/` and `config.yaml`."""
    mixture = folder / "mixture"
    mixture.mkdir(parents=True)
    entries = {}
    for name, rows in domains.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path = mixture / f"{quote(name, safe=' ')}.jsonl"
        path.write_bytes(content)
        entries[name] = {
            "file": path.name, "sha256": hashlib.sha256(content).hexdigest(), "rows": len(rows), "tokens": 9,
            "supervised_tokens": 4, "pool_rows": 5, "unique_rows": len(rows), "repeats": 1, "pool_digest": "d",
            "source": {"path": "p", "files": {}},
        }  # fmt: skip
    total = sum(map(len, domains.values()))
    manifest = {
        "format": 1, "idealmix": "0.1.0", "seed": 7, "rows": total, "tokens": 9, "supervised_tokens": 4,
        "domains": entries,
    }  # fmt: skip
    (mixture / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    content = {
        "model": "some/model",
        "training": {"max_length": 64, "learning_rate": 1e-5},
        "seed": 7,
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def plain_run(folder: Path, **config: Any) -> Path:
    """Hostile names, a repetition, separators of every sort; one domain is empty."""
    domains = {
        name: [chat(f"{k}-{i}", f"next {i}\u2028\x85 ü", f"{i} 'x', \"y\"\n") for i in range(3 + k)]
        for k, name in enumerate(HOSTILE)
    }
    domains["a b.c"].append({**domains["a b.c"][0], "id": "0-0#2"})
    domains["empty"] = []
    return run_folder(folder, domains, **config)


def tool_run(folder: Path, **config: Any) -> Path:
    """One domain of plain rows, one whose rows call tools."""
    tools = [tool_row("t-1"), chat("t-2", "hi", "ho")]
    return run_folder(folder, {"plain": [chat("p-1", "2020-01-01", "2021-01-01")], "calls": tools}, **config)


def text_run(folder: Path, **config: Any) -> Path:
    """Raw texts."""
    return run_folder(
        folder, {"raw": [{"id": "r-1", "text": "one two"}, {"id": "r-2", "text": "=cmd()"}]}, **config
    )
