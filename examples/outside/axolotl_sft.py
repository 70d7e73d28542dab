"""A training with Axolotl, for `training: {backend: command}`.

    command: "python examples/outside/axolotl_sft.py {model} {train_file} {output_dir}"

Writes what `axolotl train` takes, and starts it. Only assistant turns are learnt, their end-of-turn token included, as idealmix measures.
Change SETTINGS to yours, and keep `sequence_len` equal to `training.max_length`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "sequence_len": 512,
    "excess_length_strategy": "truncate",  # it drops long rows otherwise
    "sample_packing": False,
    "dataset_exact_deduplication": False,  # repeated rows are meant
    "val_set_size": 0,
    "num_epochs": 1,
    "micro_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-5,
    "optimizer": "adamw_torch",
    "lr_scheduler": "linear",
}
if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
    SETTINGS |= {"bf16": False, "fp16": False}  # on a CPU it takes float16 otherwise, and fails


def main(model: str, train_file: str, output_dir: str) -> int:
    output = Path(output_dir).resolve()
    mixture = {
        "path": str(Path(train_file).resolve()),
        "ds_type": "json",
        "split": "train",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    settings = {
        "base_model": model, "datasets": [mixture], "chat_template": "tokenizer_default", "output_dir": str(output),
        "dataset_prepared_path": str(output / "prepared"), **SETTINGS,
    }  # fmt: skip
    path = output / "train.yaml"  # JSON is YAML
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return subprocess.run(["axolotl", "train", str(path)]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
