"""TRL: ``trl sft --config train.yaml``.

Flows in: a materialised mixture. Flows out: a Parquet file a domain, and ``train.yaml`` with the run's model and
training settings. The data sets are concatenated: `fraction`, which keeps first rows and never repeats any, is not
used. ``assistant_only_loss`` is set for conversations, since TRL trains on prompts without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idealmix.config import Training
from idealmix.export.files import stems_of, write_yaml
from idealmix.export.materialised import Materialised
from idealmix.export.parquet import columns, records, write_parquet

_COMMAND = "trl sft --config train.yaml"


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows and the configuration.

    Raises:
        InputError: the mixture has both conversations and raw texts.
    """
    kind, stems, features = mixture.kind("TRL"), stems_of(mixture), columns(mixture)
    used = [name for name in features if name in ("messages", "text", "tools")]
    files, datasets = [], []
    for domain in mixture.filled:
        file = write_parquet(output / f"{stems[domain.name]}.parquet", records(domain), features)
        files.append(file)
        datasets.append({"path": "parquet", "data_files": file.name, "split": "train", "columns": list(used)})
    settings: dict[str, Any] = {
        "model_name_or_path": mixture.model,
        "datasets": datasets,
        "assistant_only_loss": kind == "messages",
        "output_dir": "model",
        **(_training(mixture.training, mixture.seed) if mixture.training else {}),
    }
    return [*files, write_yaml(output / "train.yaml", settings, mixture, _COMMAND)], _COMMAND


def _training(training: Training, seed: int) -> dict[str, Any]:
    same = (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
        "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "gradient_checkpointing",
        "report_to",
    )  # fmt: skip
    settings = {name: getattr(training, name) for name in same}
    settings |= {"num_train_epochs": training.epochs, "seed": seed}
    if training.dtype != "auto":
        settings["bf16"] = training.dtype == "bfloat16"
    if lora := training.lora:
        modules = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
        settings |= {
            "use_peft": True,
            "lora_r": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_dropout": lora.lora_dropout,
            "lora_target_modules": modules,
        }
    return settings | training.extra_arguments
