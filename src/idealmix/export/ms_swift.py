"""ms-swift: ``swift sft train.yaml`` (raw texts: ``swift pt train.yaml``).

Flows in: a materialised mixture. Flows out: a Parquet file a domain in its own roles (``tool_call``,
``tool_response``), and ``train.yaml`` whose data sets name their exact counts (``file.parquet#1500``). Stated against
its defaults: ``strict``, so that an unreadable row is an error, and long rows are cut, not dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idealmix.config import Training
from idealmix.export.files import Row, UnfitError, converted, refuse_unknown, stems_of, write_yaml
from idealmix.export.materialised import Materialised
from idealmix.export.parquet import texts, turns, write_parquet

_COMMANDS = {"messages": "swift sft train.yaml", "text": "swift pt train.yaml"}


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows and the configuration.

    Raises:
        InputError: one mixture with both conversations and raw texts, or a role that ms-swift does not know.
    """
    kind, stems = mixture.kind("ms-swift"), stems_of(mixture)
    files, datasets = [], []
    for domain in mixture.filled:
        file = output / f"{stems[domain.name]}.parquet"
        if kind == "text":
            write_parquet(file, domain.records(), texts("id", "text"))
        else:
            write_parquet(file, converted([domain], _row, "ms-swift"), turns(tools=not domain.plain))
        files.append(file)
        datasets.append(f"{file.name}#{domain.rows}")
    settings: dict[str, Any] = {
        "model": mixture.model,
        "dataset": datasets,
        "split_dataset_ratio": 0,
        "strict": True,
        "truncation_strategy": "right",
        "output_dir": "model",
        **(_training(mixture.training, mixture.seed) if mixture.training else {}),
    }
    command = _COMMANDS[kind]
    return [*files, write_yaml(output / "train.yaml", settings, mixture, command)], command


def _row(record: Row) -> Row:
    turns: list[Row] = []
    for message in record["messages"]:
        role, said = message["role"], message.get("content") or ""
        refuse_unknown(message, {"role", "content", "tool_calls", "tool_call_id", "name"})
        if role not in ("system", "user", "assistant", "tool"):
            raise UnfitError(f"it does not know the role {role!r}")
        calls = message.get("tool_calls") or []
        if said or not calls:
            turns.append({"role": "tool_response" if role == "tool" else role, "content": said})
        for call in calls:
            function = {key: call["function"][key] for key in ("name", "arguments")}
            turns.append({"role": "tool_call", "content": json.dumps(function, ensure_ascii=False)})
    tools = {"tools": json.dumps(record["tools"], ensure_ascii=False)} if "tools" in record else {}
    return {"id": record["id"], "messages": turns, **tools}


def _training(training: Training, seed: int) -> dict[str, Any]:
    same = (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "gradient_checkpointing",
        "report_to",
    )  # fmt: skip
    settings = {name: getattr(training, name) for name in same}
    settings |= {"num_train_epochs": training.epochs, "seed": seed}
    if training.dtype != "auto":
        settings["torch_dtype"] = training.dtype
    lora = training.lora
    if lora is None:
        return settings | {"tuner_type": "full"}
    modules = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    return settings | {
        "tuner_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": lora.lora_dropout,
        "target_modules": modules,
    }
