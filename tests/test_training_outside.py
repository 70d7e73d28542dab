"""The examples for LLaMA-Factory and Axolotl as outside trainers: what they hand to the trainer, and that its checkpoint comes back.

The trainer itself is stood in for by a command of its name that checks what it is given and hands back the base model; where the real
package is installed, its own schema reads the settings too.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from training_helpers import save_tiny_model, tiny_mixture, tiny_pools

from idealmix.config import Training
from idealmix.errors import IdealmixError
from idealmix.training import train

EXAMPLES = Path(__file__).parent.parent / "examples" / "outside"
POOLS = tiny_pools({"math": 6, "code": 4})
STAND_IN = """#!{python}
import json, pathlib, shutil, sys
word, path = sys.argv[1:]
assert word == "train"
settings = json.loads(pathlib.Path(path).read_text())
shutil.copytree(settings[{model!r}], settings["output_dir"], dirs_exist_ok=True)
sys.exit({status})
"""


def outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str, command: str, model: str, status: int = 0
) -> dict[str, Any]:
    """Train by an example; the settings that the trainer was given."""
    program = tmp_path / "bin" / command
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable, model=model, status=status))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    words = f"{shlex.quote(sys.executable)} {EXAMPLES / example} {{model}} {{train_file}} {{output_dir}}"
    base = save_tiny_model(tmp_path / "base")
    settings = Training(backend="command", command=words)
    record = train(base, tiny_mixture(POOLS), POOLS, settings, seed=0, output=tmp_path / "out")
    assert record.model_folder(tmp_path / "out").joinpath("config.json").is_file()
    (found,) = (tmp_path / "out" / "command").glob("train.*")
    read: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return read


def test_llama_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = outside(
        tmp_path, monkeypatch, "llama_factory_sft.py", "llamafactory-cli", "model_name_or_path"
    )
    described = json.loads(Path(settings["dataset_dir"], "dataset_info.json").read_text(encoding="utf-8"))
    entry = described[settings["dataset"]]
    rows = [json.loads(line) for line in Path(entry["file_name"]).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10
    tags = entry["tags"]
    assert {turn[tags["role_tag"]] for row in rows for turn in row[entry["columns"]["messages"]]} == {
        tags["user_tag"],
        tags["assistant_tag"],
    }
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    pytest.importorskip("llamafactory")
    from llamafactory.hparams.data_args import DataArguments
    from llamafactory.hparams.finetuning_args import FinetuningArguments

    for kind in (DataArguments, FinetuningArguments):
        kind(**{key: value for key, value in settings.items() if key in kind.__dataclass_fields__})


def test_axolotl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = outside(tmp_path, monkeypatch, "axolotl_sft.py", "axolotl", "base_model")
    (entry,) = settings["datasets"]
    rows = [json.loads(line) for line in Path(entry["path"]).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10
    assert all(set(entry["message_property_mappings"].values()) <= set(row["messages"][0]) for row in rows)
    pytest.importorskip("axolotl")
    from axolotl.utils.schemas.config import AxolotlInputConfig
    from axolotl.utils.schemas.datasets import SFTDataset

    assert set(settings) <= set(AxolotlInputConfig.model_fields)
    assert SFTDataset.model_validate(entry).model_dump(exclude_unset=True) == entry


@pytest.mark.parametrize(
    ("example", "command", "model"),
    [
        ("llama_factory_sft.py", "llamafactory-cli", "model_name_or_path"),
        ("axolotl_sft.py", "axolotl", "base_model"),
    ],
)
def test_a_failing_trainer_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str, command: str, model: str
) -> None:
    with pytest.raises(IdealmixError, match="status 7"):
        outside(tmp_path, monkeypatch, example, command, model, status=7)
