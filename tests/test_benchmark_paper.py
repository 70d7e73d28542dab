"""The paper's primary figure from a comparison's folder: by hand on three rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import paper
from benchmarks.paper import figures
from idealmix.evaluation.set_loss import SetLoss


def written(path: Path, losses: dict[str, list[float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sets = {
        name: SetLoss(name, tuple("abc"), np.array(sums) * 2, np.full(3, 2)).to_json()
        for name, sums in losses.items()
    }
    path.write_text(json.dumps({"tests": sets, "scores": {}}), encoding="utf-8")


def test_gain_beyond_joints(tmp_path: Path) -> None:
    """Two capabilities, two seeds; joint gains 2 and 1 nats over base."""
    written(tmp_path / "base" / "tests.json", {"maths": [5, 6, 7], "code": [3, 3, 3]})
    runs: dict[str, list[dict[str, object]]] = {"joint": [], "ideal": []}
    for seed, more in ((0, 0.2), (1, 0.4)):
        written(tmp_path / f"j{seed}" / "tests.json", {"maths": [3, 4, 5], "code": [2, 2, 2]})
        # every row of maths by `more` lower; code by 0, 0.1 and 0.2 higher
        written(
            tmp_path / f"i{seed}" / "tests.json",
            {"maths": [3 - more, 4 - more, 5 - more], "code": [2, 2.1, 2.2]},
        )
        for name in runs:
            runs[name].append({"seed": seed, "mixtures": [{"folder": f"{name[0]}{seed}"}]})
    methods = {name: {"runs": each, "search_epochs": 3.0} for name, each in runs.items()}
    content = {"seeds": [0, 1], "budget": {}, "methods": methods}
    (tmp_path / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    found = figures(tmp_path)["methods"]
    assert list(found) == ["ideal"]
    first, second = found["ideal"]["runs"]
    assert first["by_capability"]["maths"]["more"] == pytest.approx(0.1)
    assert first["by_capability"]["maths"]["se"] == pytest.approx(0.0, abs=1e-12)
    assert first["by_capability"]["code"]["more"] == pytest.approx(-0.1)
    assert first["more"] == pytest.approx(0.0)
    assert second["more"] == pytest.approx(0.05)
    assert found["ideal"]["more"] == pytest.approx(0.025)
    assert found["ideal"]["se_seeds"] == pytest.approx(0.025)
    assert found["ideal"]["se_rows"] == pytest.approx(first["se_rows"] / 2**0.5)
    assert found["ideal"]["detectable"] == pytest.approx(1.96 * 0.025)


def test_a_step_that_was_undone_is_measured_on_its_own_training(tmp_path: Path, monkeypatch) -> None:
    """Two trainings on other rows and another seed stand beside it."""
    written(tmp_path / "base" / "tests.json", {"maths": [5, 6, 7]})
    written(tmp_path / "j" / "tests.json", {"maths": [3, 4, 5]})
    run = {"seed": 7, "mixtures": [{"folder": "j"}]}
    content = {"methods": {"joint": {"runs": [run]}}}
    (tmp_path / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    allocation = tmp_path / "searches" / "ideal-seed-7" / "round-0" / "allocation.json"
    allocation.parent.mkdir(parents=True)
    allocation.write_text(json.dumps({"moves": {"a": {"after": 3}, "b": {"after": 9}}}), encoding="utf-8")
    drawn = {"same": ({"a": 3, "b": 9}, 7), "rows": ({"a": 9, "b": 3}, 7), "seed": ({"a": 3, "b": 9}, 8)}
    for name in drawn:
        place = tmp_path / "trainings" / name
        (place / "4-steps" / "train").mkdir(parents=True)
        (place / "mixture.json").touch()
        (place / "4-steps" / "train" / "record.json").touch()
    lower = {name: SetLoss("maths", tuple("abc"), np.array([3, 4, 5]) * 2 - by, np.full(3, 2))
             for name, by in (("same", 1.0), ("rows", 9.0), ("seed", 9.0))}  # fmt: skip
    monkeypatch.setattr(paper, "drawn", lambda path: drawn[path.parent.name])
    monkeypatch.setattr(paper.configfile, "load", lambda path: None)
    monkeypatch.setattr(paper, "load_inputs", lambda *_: SimpleNamespace(tests={"maths": "pool"}))
    reading = SimpleNamespace(
        read=lambda path: SimpleNamespace(model_folder=lambda at: at.parent.parent.name)
    )
    monkeypatch.setattr(paper, "TrainingRecord", reading)
    monkeypatch.setattr(paper, "load_model", lambda name, dtype: name)
    monkeypatch.setattr(paper, "reference_loss", lambda model, pool, tokens: lower[model])
    (found,) = paper.steps(tmp_path)
    assert found["counts"] == {"a": 3, "b": 9}
    assert found["more"] == pytest.approx(0.5 / 2)  # half a nat a token lower, of joint's two
