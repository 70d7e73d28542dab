"""The page of a run whose files come and go while they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_view import Going, ask, served  # noqa: F401 (a fixture)
from whatif_helpers import Run

from idealmix.errors import InputError
from idealmix.view import progress
from idealmix.view.server import page, state


@pytest.fixture
def going(tmp_path: Path) -> Going:
    made = Going(Run(tmp_path / "run", 1))
    made.phase("base/evaluation.json", made.losses(3.0))
    made.folder.begin("round-0/mixture.json", {})
    return made


def test_a_marker_that_vanishes_between_being_listed_and_looked_at(
    going: Going, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real = state(going.run), Path.stat

    def gone(path: Path, **how: Any) -> os.stat_result:
        if path.name == "evaluation.json.done":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", gone)
    assert state(going.run) != whole
    assert progress.finished(going.run) == {}


def test_a_folder_that_vanishes_while_it_is_walked(going: Going, monkeypatch: pytest.MonkeyPatch) -> None:
    (going.run / "aside").mkdir()
    real = os.scandir

    def gone(path: Any = ".") -> Any:
        if Path(path).name == "aside":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert progress.current(going.run) == ["round-0/mixture.json"]


def test_parts_are_not_walked(going: Going, monkeypatch: pytest.MonkeyPatch) -> None:
    (going.run / "round-0" / "train.part" / "checkpoints").mkdir(parents=True)
    walked, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": (walked.append(str(path)), real(path))[1])
    progress.current(going.run)
    assert str(going.run / "round-0") in walked
    assert not any(".part" in path for path in walked)


def test_a_file_that_cannot_be_read_now_is_a_page_too(
    going: Going,
    served: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(run: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(run / "x"))

    monkeypatch.setattr(progress, "partial", gone)
    with pytest.raises(InputError, match="cannot be read now: No such file"):
        page(going.run, "now")
    status, html, _ = ask(served(going.run), "/")
    assert status == 200
    assert "look again" in html


def test_a_configuration_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(InputError, match="not the configuration of a run"):
        progress.read_config(tmp_path)
