"""Folders of adapters as a base model; what an interrupted outside training left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idealmix.errors import InputError
from idealmix.training.command import take_record
from idealmix.training.model import load_model, positions, refuse_adapters


def adapters(folder: Path, base: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_adapters_are_no_base_to_train(tmp_path: Path) -> None:
    folder = adapters(tmp_path / "adapters", tmp_path)
    with pytest.raises(InputError, match="merge them into their base first"):
        refuse_adapters(folder)
    refuse_adapters(tmp_path)
    refuse_adapters("some/model")


@pytest.mark.parametrize("read", [positions, load_model])
@pytest.mark.parametrize("length", [1, 2])
def test_adapters_that_lead_back_to_themselves(tmp_path: Path, read, length: int) -> None:
    for number in range(length):
        adapters(tmp_path / str(number), tmp_path / str((number + 1) % length))
    with pytest.raises(InputError, match="these adapters are their own base"):
        read(tmp_path / "0")


def test_segments_take_the_place_of_those_of_an_interrupted_attempt(tmp_path: Path) -> None:
    (tmp_path / "segments" / "old").mkdir(parents=True)
    left = tmp_path / "command" / "idealmix"
    (left / "segments" / "1").mkdir(parents=True)
    (left / "record.json").write_text("{}")
    take_record(tmp_path / "command", tmp_path)
    assert [path.name for path in (tmp_path / "segments").iterdir()] == ["1"]
