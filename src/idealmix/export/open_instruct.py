"""open-instruct: ``python open_instruct/finetune.py train.yaml``.

Flows in: a materialised mixture of conversations. Flows out: a Parquet file a domain, and ``train.yaml`` with
``dataset_mixer_list``. Counts are written as whole numbers in quotes: there "1" is one row and "1.0" is every row.
Uploading and evaluation jobs, on by default, are switched off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idealmix.config import Training
from idealmix.errors import InputError
from idealmix.export.files import stems_of, write_yaml
from idealmix.export.materialised import Materialised
from idealmix.export.parquet import turns, write_parquet

_COMMAND = "python PATH_TO/open_instruct/finetune.py train.yaml"


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows and the configuration.

    Raises:
        InputError: raw texts, tools, or a part of an epoch.
    """
    _check(mixture)
    stems, files, mixer = stems_of(mixture), [], []
    for domain in mixture.filled:
        file = output / f"{stems[domain.name]}.parquet"
        write_parquet(file, domain.records(), turns(tools=False))
        files.append(file)
        mixer += [file.name, str(domain.rows)]
    settings: dict[str, Any] = {
        "model_name_or_path": mixture.model,
        "dataset_mixer_list": mixer,
        "dataset_mixer_list_splits": ["train"],
        "push_to_hub": False,
        "try_launch_beaker_eval_jobs": False,
        "output_dir": "model",
        **(_training(mixture.training, mixture.seed) if mixture.training else {}),
    }
    return [*files, write_yaml(output / "train.yaml", settings, mixture, _COMMAND)], _COMMAND


def _check(mixture: Materialised) -> None:
    if "text" in mixture.kinds:
        raise InputError("open-instruct takes conversations, and this mixture has raw texts", where="mixture")
    if not mixture.plain:
        having = ", ".join(repr(domain.name) for domain in mixture.domains if not domain.plain)
        raise InputError(
            f"open-instruct takes messages of a role and a content; there are tools or more in {having}",
            where="mixture",
            mend="export to trl or hf-dataset",
        )
    if mixture.training and mixture.training.epochs != int(mixture.training.epochs):
        raise InputError("open-instruct trains whole epochs", where="training.epochs")


def _training(training: Training, seed: int) -> dict[str, Any]:
    same = (
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type",
        "weight_decay", "gradient_checkpointing",
    )  # fmt: skip
    settings = {name: getattr(training, name) for name in same}
    settings |= {
        "num_train_epochs": int(training.epochs),
        "max_seq_length": training.max_length,
        "seed": seed,
        # negative: none
        "clip_grad_norm": training.max_grad_norm or -1,
    }
    if not training.warmup_steps:
        settings["warmup_ratio"] = 0.0
    if lora := training.lora:
        settings |= {
            "use_lora": True,
            "lora_rank": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_dropout": lora.lora_dropout,
        }
    return settings
