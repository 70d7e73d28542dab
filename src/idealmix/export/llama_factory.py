"""LLaMA-Factory: ``llamafactory-cli train train.yaml``.

Flows in: a materialised mixture. Flows out: a Parquet file a domain in its sharegpt form (roles as tags, tool
calls as a ``function_call`` turn), ``dataset_info.json`` and ``train.yaml``. No ``num_samples``: above a file's size
it draws with replacement. Conversations that do not alternate are refused here, because LLaMA-Factory drops them
with a warning.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from idealmix.config import Training
from idealmix.data.mixture import write_json
from idealmix.export.files import Row, UnfitError, converted, refuse_unknown, stems_of, write_yaml
from idealmix.export.materialised import Materialised
from idealmix.export.parquet import texts, turns, write_parquet

_COMMAND = "llamafactory-cli train train.yaml"

_CHAT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
_TEXT = {"formatting": "alpaca", "columns": {"prompt": "text"}}
# What LLaMA-Factory itself puts between the replies of calls made in one turn.
_BETWEEN_REPLIES = "\n</tool_response>\n<tool_response>\n"


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows, their description and the configuration.

    Raises:
        InputError: conversations and raw texts in one mixture, or turns that LLaMA-Factory would drop.
    """
    kind, stems = mixture.kind("LLaMA-Factory"), stems_of(mixture)
    files, described = [], {}
    for domain in mixture.filled:
        file = output / f"{stems[domain.name]}.parquet"
        if kind == "text":
            write_parquet(file, domain.records(), texts("id", "text"))
            entry: dict[str, Any] = dict(_TEXT)
        else:
            rows = converted([domain], partial(_row, tools=not domain.plain), "LLaMA-Factory")
            write_parquet(file, rows, turns(tools=not domain.plain))
            entry = {
                **_CHAT,
                "columns": {"messages": "messages", **({} if domain.plain else {"tools": "tools"})},
            }
        files.append(file)
        described[stems[domain.name]] = {"file_name": file.name, **entry}
    info = output / "dataset_info.json"
    write_json(info, described)
    settings: dict[str, Any] = {
        "stage": "sft" if kind == "messages" else "pt",
        "do_train": True,
        "model_name_or_path": mixture.model,
        "dataset_dir": ".",
        "dataset": ",".join(described),
        "mix_strategy": "concat",
        "val_size": 0,
        "output_dir": "model",
        **(_training(mixture.training, mixture.seed) if mixture.training else {}),
    }
    return [*files, info, write_yaml(output / "train.yaml", settings, mixture, _COMMAND)], _COMMAND


def _row(record: Row, tools: bool) -> Row:
    turns: list[Row] = []
    for message in record["messages"]:
        role, said = message["role"], message.get("content") or ""
        refuse_unknown(message, {"role", "content", "tool_calls", "tool_call_id", "name"})
        if calls := message.get("tool_calls"):
            if said:
                raise UnfitError("one turn says something and calls a tool, and what it says would be lost")
            functions = [{key: call["function"][key] for key in ("name", "arguments")} for call in calls]
            role, said = "function_call", json.dumps(functions, ensure_ascii=False)
        if role == "tool" and turns and turns[-1]["role"] == "tool":
            turns[-1]["content"] += _BETWEEN_REPLIES + said
        else:
            turns.append({"role": role, "content": said})
    speaking = turns[1:] if turns[0]["role"] == "system" else turns
    sides = (("user", "tool"), ("assistant", "function_call"))
    if len(speaking) % 2 or any(turn["role"] not in sides[k % 2] for k, turn in enumerate(speaking)):
        roles = ", ".join(turn["role"] for turn in turns)
        raise UnfitError(f"its turns are {roles}; after a system turn, user and assistant have to alternate")
    given = json.dumps(record["tools"], ensure_ascii=False) if "tools" in record else ""
    return {"id": record["id"], "messages": turns, **({"tools": given} if tools else {})}


def _training(training: Training, seed: int) -> dict[str, Any]:
    same = (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type",
        "warmup_steps", "weight_decay", "max_grad_norm", "optim", "gradient_checkpointing", "report_to",
    )  # fmt: skip
    settings = {name: getattr(training, name) for name in same}
    settings |= {"num_train_epochs": training.epochs, "cutoff_len": training.max_length, "seed": seed}
    if training.dtype != "auto":
        settings["bf16"] = training.dtype == "bfloat16"
    lora = training.lora
    if lora is None:
        return settings | {"finetuning_type": "full"}
    modules = lora.target_modules
    every = modules == "all-linear"
    return settings | {
        "finetuning_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": lora.lora_dropout,
        "lora_target": "all" if every else modules if isinstance(modules, str) else ",".join(modules),
    }
