"""RecordTraining in a training of the user's own, started by `backend: command`: what it tells against the mixture's plan."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from rounds_helpers import idealmix, project
from safetensors.torch import load_file

from idealmix.errors import IdealmixError
from idealmix.training.command import take_record

SCRIPT = Path(__file__).parent.parent / "examples" / "outside" / "trl_sft.py"


def test_an_outside_training_tells_its_steps(tmp_path: Path) -> None:
    command = f"{sys.executable} {SCRIPT} {{model}} {{train_file}} {{output_dir}}"
    path = project(
        tmp_path,
        training={"backend": "command", "command": command, "max_length": 512, "dtype": "float32"},
        influence={"response": "unrolled", "sample_fraction": 0.5},
        allocation={"rounds": 2, "replicates": 0, "m": 0.5, "budget": {"size": 1400}, "gate": False},
        scores={},
    )
    done = idealmix("run", str(path), "--json")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "run" / "round-0"
    record = json.loads((first / "train" / "record.json").read_text(encoding="utf-8"))
    mixture = json.loads((first / "mixture.json").read_text(encoding="utf-8"))
    rows, steps = mixture["rows"], math.ceil(mixture["rows"] / 16)
    # one epoch, tokenised by TRL: the same tokens with a loss on the same ones
    assert [record[key] for key in ("rows", "tokens", "supervised_tokens")] == [
        rows, mixture["tokens"], mixture["supervised_tokens"],
    ]  # fmt: skip
    assert record["steps"] == len(record["step_sizes"]) == len(record["gradient_norms"]) == steps
    assert record["step_sizes"][0] == pytest.approx(1e-3)
    assert record["step_sizes"][-1] == pytest.approx(1e-3 / steps)  # linear, to zero after the last
    assert record["optimiser"]["name"] == "AdamW"
    moments = load_file(first / "train" / "second_moments.safetensors")
    assert all((value >= 0).all() for value in moments.values())
    assert any(value.abs().sum() > 0 for value in moments.values())
    assert sorted(p.name for p in (first / "train" / "segments").iterdir()) == ["1", "2", "3"]
    matrix = json.loads((first / "influence.json").read_text(encoding="utf-8"))
    assert '"response": "unrolled"' in json.dumps(matrix)


def test_a_record_that_was_cut_off_is_told(tmp_path: Path) -> None:
    assert take_record(tmp_path, tmp_path) == {}
    (tmp_path / "idealmix").mkdir()
    (tmp_path / "idealmix" / "record.json").write_text('{"steps": 3', encoding="utf-8")
    with pytest.raises(IdealmixError, match="record of RecordTraining cannot be read"):
        take_record(tmp_path, tmp_path)
