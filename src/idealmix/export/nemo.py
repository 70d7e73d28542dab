"""NeMo: Automodel and Megatron-Bridge.

Flows in: a materialised mixture of conversations. Flows out: ``training.jsonl`` with every row (a folder with it is
Megatron-Bridge's ``dataset_root``; Automodel's ``ChatDataset`` takes the file), and the ``dataset`` block of either
configuration. A Megatron blend is not written: it holds shares, and shares do not keep counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idealmix.errors import InputError
from idealmix.export.files import Row, UnfitError, converted, write_yaml
from idealmix.export.materialised import Materialised

_COMMAND = "automodel YOUR_RECIPE.yaml --dataset.path_or_dataset_id training.jsonl"


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the rows and the two data set blocks.

    Raises:
        InputError: raw texts, or a role that Automodel refuses.
    """
    if "text" in mixture.kinds:
        raise InputError(
            "NeMo's chat data sets take conversations, and this mixture has raw texts",
            where="mixture",
            mend="export to trl, axolotl or hf-dataset",
        )
    # Automodel splits lines wherever Unicode does (U+2028, U+0085, ...): those must not stand in a row as they are
    rows = output / "training.jsonl"
    with rows.open("w", encoding="ascii", newline="\n") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in converted(mixture.filled, _row, "NeMo"))
    length = {"seq_length": mixture.training.max_length} if mixture.training else {}
    automodel: dict[str, Any] = {
        "_target_": "nemo_automodel.components.datasets.llm.chat_dataset.ChatDataset",
        "path_or_dataset_id": rows.name,
        **length,
        **({"truncation": True} if length else {}),
    }
    bridge: dict[str, Any] = {
        "dataset_root": ".",
        **length,
        "do_validation": False,
        "do_test": False,
        "dataset_kwargs": {"chat": True, "use_hf_tokenizer_chat_template": True},
    }
    merge = "merge this block into a recipe; paths are relative to this folder"
    return [
        rows,
        write_yaml(output / "automodel.yaml", {"dataset": automodel}, mixture, merge),
        write_yaml(output / "megatron_bridge.yaml", {"dataset": bridge}, mixture, merge),
    ], _COMMAND


def _row(record: Row) -> Row:
    messages = []
    for message in record["messages"]:
        if message["role"] not in ("system", "user", "assistant", "tool"):
            raise UnfitError(f"it does not know the role {message['role']!r}")
        messages.append({"content": "", **message})  # a missing content would be read as the word None
    return {**record, "messages": messages}
