"""`idealmix influence` finds what a checkpoint was trained on and computed in; a search's result is of the full size."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds_helpers import project
from whatif_helpers import Run

from idealmix import cli, configfile
from idealmix.api import Result, measure_checkpoint
from idealmix.comparison.single import run_any
from idealmix.data.mixture import Mixture
from idealmix.errors import IdealmixError
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.rounds import folder as folders
from idealmix.rounds.watch import Silent


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another method, computed in bfloat16: trainings lie where their content says."""
    path = project(tmp_path_factory.mktemp("random"), tests={}, scores={})
    chosen = ["method=random", "methods={random: {k: 1}}", "allocation.replicates=0"]
    run_any(configfile.load(path, [*chosen, "training.dtype=bfloat16"]), Silent())
    return path


def chosen(path: Path) -> tuple[Path, Mixture]:
    """The training of the method's mixture, and that mixture."""
    result = Result.read(path.parent / "run")
    assert result.counts != result["rounds"][0]["counts"]
    for place in result.folder.glob("trainings/*/*/train"):
        mixture = Mixture.read(place.parents[1] / "mixture.json")
        if mixture.counts == result.counts:
            return place, mixture
    raise AssertionError("it was not trained")


def test_a_training_by_content_has_its_mixture_one_folder_higher(
    random: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, mixture = chosen(random)
    asked: dict[str, Any] = {}

    def measured(model: Any, drawn: Mixture, *_: Any, **rest: Any) -> None:
        asked.update(rest, drawn=drawn, dtype=next(model.parameters()).dtype)

    monkeypatch.setattr("idealmix.influence_stage.measure", measured)
    config = configfile.load(random, ["training.dtype=float32"])  # of the record, not of now
    measure_checkpoint(config, str(place / "model"), None, Silent())
    assert asked["drawn"].counts == mixture.counts
    assert asked["folder"] == place
    assert asked["record"].dtype == "bfloat16"
    assert asked["dtype"] == torch.bfloat16
    # from inside of the folder too
    monkeypatch.chdir(place)
    measure_checkpoint(config, "model", None, Silent())
    assert asked["drawn"].counts == mixture.counts


def test_a_result_by_another_method_gives_its_mixture(random: Path) -> None:
    result = Result.read(random.parent / "run")
    assert result.mixture.counts == result.counts == chosen(random)[1].counts
    assert result.mixture_of(0).counts == result["rounds"][0]["counts"]


def test_a_result_with_a_search_is_of_the_full_size(tmp_path: Path) -> None:
    path = project(tmp_path, search={"fraction": 0.5}, tests={}, scores={})
    run_any(configfile.load(path, ["allocation.replicates=0"]), Silent())
    result = Result.read(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "mixture" / "manifest.json").read_text(encoding="utf-8"))
    assert result.counts == {name: part["rows"] for name, part in manifest["domains"].items()}
    assert result.mixture.counts == result.counts
    small = result["rounds"][result.best]["counts"]
    assert result.mixture_of(result.best).counts == small
    assert sum(small.values()) < 0.6 * sum(result.counts.values())
    page = result._repr_html_()
    for name, count in small.items():
        assert f"<td>{count:,}</td><td>{result.counts[name]:,}</td></tr>" in page
    assert "rows at the full size" in page


def test_a_folder_is_refused_before_the_measurement(
    random: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, output = str(random.parent / "model"), str(random.parent)
    asked = ["idealmix", "influence", str(random), "--model", model, "--output", output]
    monkeypatch.setattr(sys, "argv", asked)
    monkeypatch.setattr("idealmix.api.measure_checkpoint", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "this is a folder, and one file is written" in capfd.readouterr().err


def test_a_matrix_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, path = Run(tmp_path / "run", 31, domains=4, references=3).matrix, tmp_path / "influence.json"
    matrix.write(path)
    assert InfluenceMatrix.read(path).to_json() == matrix.to_json()
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(IdealmixError, match="the disk is full"):
        matrix.write(path)
    assert path.read_bytes() == before
