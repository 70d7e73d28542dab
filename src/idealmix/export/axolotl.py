"""Axolotl: ``axolotl train train.yaml``.

Flows in: a materialised mixture. Flows out: a Parquet file a domain, and ``train.yaml``. Stated against its
defaults: long rows are cut, not dropped; nothing is held out, deduplicated or packed. Raw texts longer than
``sequence_len`` become several rows there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idealmix.config import Training
from idealmix.export.files import stems_of, write_yaml
from idealmix.export.materialised import Domain, Materialised
from idealmix.export.parquet import records, texts, turns, write_parquet

_COMMAND = "axolotl train train.yaml"


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows and the configuration.

    Raises:
        InputError: one mixture with both conversations and raw texts.
    """
    kind, stems = mixture.kind("Axolotl"), stems_of(mixture)
    files, datasets = [], []
    for domain in mixture.filled:
        file = _write_rows(output / f"{stems[domain.name]}.parquet", domain)
        files.append(file)
        entry: dict[str, Any] = {"path": file.name, "ds_type": "parquet", "split": "train"}
        if kind == "text":
            entry |= {"type": "completion", "field": "text"}
        else:
            entry |= {
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
            }
            if not domain.plain:
                entry["field_tools"] = "tools"
        datasets.append(entry)
    settings: dict[str, Any] = {
        "base_model": mixture.model,
        "datasets": datasets,
        **({"chat_template": "tokenizer_default"} if kind == "messages" else {}),
        "train_on_inputs": False,
        "val_set_size": 0,
        "dataset_exact_deduplication": False,
        "excess_length_strategy": "truncate",
        "sample_packing": False,
        "output_dir": "model",
        **(_training(mixture.training, mixture.seed) if mixture.training else {}),
    }
    return [*files, write_yaml(output / "train.yaml", settings, mixture, _COMMAND)], _COMMAND


def _write_rows(path: Path, domain: Domain) -> Path:
    if domain.plain:
        return write_parquet(
            path, domain.records(), turns(tools=False) if "messages" in domain.kinds else texts("text")
        )
    # messages as JSON text, which Axolotl reads: their types differ from row to row
    rows = ({**row, "messages": json.dumps(row["messages"], ensure_ascii=False)} for row in records(domain))
    return write_parquet(path, rows, texts("id", "messages", "tools"))


def _training(training: Training, seed: int) -> dict[str, Any]:
    same = (
        "learning_rate", "gradient_accumulation_steps", "warmup_steps", "weight_decay", "max_grad_norm",
        "gradient_checkpointing",
    )  # fmt: skip
    settings = {name: getattr(training, name) for name in same}
    settings |= {
        "num_epochs": training.epochs,
        "micro_batch_size": training.per_device_train_batch_size,
        "sequence_len": training.max_length,
        "lr_scheduler": training.lr_scheduler_type,
        "optimizer": training.optim,
        "seed": seed,
    }
    if training.dtype != "auto":
        settings["bf16"] = training.dtype == "bfloat16"
    lora = training.lora
    if lora is None:
        return settings
    modules = lora.target_modules
    every = modules == "all-linear"
    return settings | {
        "adapter": "lora",
        "lora_r": lora.r,
        "lora_alpha": int(lora.lora_alpha),
        "lora_dropout": lora.lora_dropout,
        **({"lora_target_linear": True} if every else {"lora_target_modules": modules}),
    }
