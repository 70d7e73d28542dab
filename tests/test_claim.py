"""What may change in the configuration of a run folder that is gone on with, and what is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from rounds_helpers import project

from idealmix import configfile
from idealmix.errors import IdealmixError, InputError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.loop import claim, run_rounds
from idealmix.rounds.phases import memory_errors
from idealmix.rounds.watch import Silent
from idealmix.training.sft import _out_of_memory


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("claim"), tests={}, scores={})


def claimed(path: Path, *overrides: str) -> dict[str, object]:
    """What the folder says after it was claimed with these."""
    config = configfile.load(path, list(overrides))
    with contextlib.ExitStack() as held:
        claim(RunFolder(Path(config.output)), config, held)
    return yaml.safe_load((Path(config.output) / "config.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["influence.batch_tokens=256"],
        ["influence.layers=mlp", "influence.damping=0.2"],
        ["training.save_steps=3", "training.report_to=[tensorboard]"],
        ["allocation.rounds=4", "influence.sample_fraction=1", "training.save_steps=5"],
    ],
)
def test_what_the_phases_keys_know_is_taken(path: Path, tmp_path: Path, overrides: list[str]) -> None:
    output = f"output={tmp_path / 'run'}"
    claimed(path, output)
    wanted = configfile.load(path, [output, *overrides]).model_dump(mode="json")
    assert claimed(path, output, *overrides) == wanted
    assert claimed(path, output, *overrides) == wanted


@pytest.mark.parametrize(
    "refused",
    [
        "training.per_device_train_batch_size=8",
        "training.gradient_checkpointing=true",
        "allocation.rounds=1",
        "allocation.m=0.4",
        "seed=1",
    ],
)
def test_all_else_is_refused_and_every_change_named(path: Path, tmp_path: Path, refused: str) -> None:
    output = f"output={tmp_path / 'run'}"
    before = claimed(path, output)
    with pytest.raises(InputError, match="another configuration") as told:
        claimed(path, output, "influence.batch_tokens=256", "training.save_steps=3", refused)
    for key in ("influence.batch_tokens", "training.save_steps", refused.partition("=")[0]):
        assert f"{key}: " in told.value.what
    assert claimed(path, output) == before


def test_a_run_measures_again_and_trains_nothing_twice(path: Path, tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    run_rounds(configfile.load(path, [output]), Silent())
    record, matrix = (tmp_path / "run" / "round-0" / name for name in ("train/record.json", "influence.json"))
    trained, measured = record.stat().st_mtime_ns, InfluenceMatrix.read(matrix)
    run_rounds(configfile.load(path, [output, "influence.damping=10"]), Silent())
    assert record.stat().st_mtime_ns == trained
    assert (abs(InfluenceMatrix.read(matrix).alpha) < abs(measured.alpha)).all()


def test_advice_on_memory_tells_what_needs_another_folder() -> None:
    """And the keys that it says can be changed in place are those that `claim` takes."""
    assert "another `output`" in str(_out_of_memory().mend)
    with pytest.raises(IdealmixError, match="run again") as told, memory_errors("round-0: evaluating"):
        raise torch.OutOfMemoryError
    in_place, _, elsewhere = str(told.value.mend).partition("run again")
    assert "training." not in in_place
    assert "another `output`" in elsewhere
