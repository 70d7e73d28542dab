"""Where an export is put together and what it may remove: nothing that it did not make."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from export_helpers import plain_run

from idealmix.errors import InputError
from idealmix.export import export


def test_a_folder_of_the_users_beside_the_output_stays(tmp_path: Path) -> None:
    kept = tmp_path / "out.part" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    exported = export(plain_run(tmp_path / "run"), "csv", tmp_path / "out")
    assert kept.read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "out" / "mixture.csv") in exported.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.part", "run"]


def test_the_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folder = export(plain_run(tmp_path / "run"), "csv", tmp_path / "out").folder
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("idealmix.export.write_provenance", interrupted)
    run = plain_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        export(run, "csv", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    exported = export(plain_run(tmp_path / "run"), "csv", ".")
    assert exported.folder == tmp_path / "here"
    assert all(file.is_file() for file in exported.files)


def test_a_configuration_nested_without_end(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run")
    (run / "config.yaml").write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(InputError, match="not a run's configuration"):
        export(run, "csv")
