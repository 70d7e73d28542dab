"""A training with LLaMA-Factory, for `training: {backend: command}`.

    command: "python examples/outside/llama_factory_sft.py {model} {train_file} {output_dir}"

Writes what `llamafactory-cli train` takes, and starts it. idealmix's rows are its sharegpt form with other names; it learns assistant turns
only, as idealmix measures. Change SETTINGS to yours, and keep `cutoff_len` equal to `training.max_length`.
"""

import json
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "template": "llama3",  # your model's
    "cutoff_len": 512,
    "num_train_epochs": 1.0,
    "learning_rate": 1e-5,
    "per_device_train_batch_size": 16,
    "save_strategy": "no",
    "report_to": "none",
}
MIXTURE = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def main(model: str, train_file: str, output_dir: str) -> int:
    output = Path(output_dir).resolve()
    described = {"mixture": {"file_name": str(Path(train_file).resolve()), **MIXTURE}}
    (output / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    settings = {
        "model_name_or_path": model, "dataset_dir": str(output), "dataset": "mixture", "output_dir": str(output), **SETTINGS,
    }  # fmt: skip
    path = output / "train.yaml"  # JSON is YAML; its own way of reading a .json file fails (0.9.5)
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return subprocess.run(["llamafactory-cli", "train", str(path)]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
