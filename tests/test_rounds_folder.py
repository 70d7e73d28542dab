"""The run folder: a phase is there whole or not at all, done once, and never believed when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from idealmix.disk import hash_json, write_json
from idealmix.errors import IdealmixError
from idealmix.rounds import folder as folder_module
from idealmix.rounds.folder import RunFolder


def counter(calls: list[str], text: str = "x") -> Any:
    def produce(part: Path) -> None:
        calls.append(text)
        write_json(part, {"text": text})

    return produce


def test_phase_is_done_once_and_again_when_inputs_change(tmp_path: Path) -> None:
    told: list[str] = []
    folder, calls = RunFolder(tmp_path, told.append), []
    first = folder.phase("round-0/a.json", {"n": 1}, counter(calls))
    again = RunFolder(tmp_path).phase("round-0/a.json", {"n": 1}, counter(calls))
    assert (first.fresh, again.fresh, calls) == (True, False, ["x"])
    assert again.json() == {"text": "x"}
    folder.phase("round-0/a.json", {"n": 2}, counter(calls))
    assert calls == ["x", "x"]
    assert "inputs have changed" in told[0]
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "marker"])
def test_damage_is_found_and_the_phase_done_again(tmp_path: Path, damage: str) -> None:
    told: list[str] = []
    folder, calls = RunFolder(tmp_path, told.append), []
    artifact = folder.phase("a.json", {}, counter(calls)).path
    if damage == "truncate":
        artifact.write_bytes(artifact.read_bytes()[:-3])
    elif damage == "flip":
        data = bytearray(artifact.read_bytes())
        data[5] ^= 1
        artifact.write_bytes(bytes(data))
    elif damage == "delete":
        artifact.unlink()
    else:
        (tmp_path / ".phases" / "a.json.done").write_text("{", encoding="utf-8")
    assert folder.phase("a.json", {}, counter(calls)).fresh
    assert len(calls) == 2
    assert "doing this phase again" in told[0]


def test_failure_leaves_nothing_that_looks_finished_but_keeps_the_part(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def fails(part: Path) -> None:
        (part / "checkpoint").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.phase("train", {"n": 1}, fails)
    assert not (tmp_path / "train").exists()
    seen: list[list[str]] = []

    def resumes(part: Path) -> None:
        seen.append(sorted(p.name for p in part.iterdir()))
        (part / "model").write_text("whole", encoding="utf-8")

    folder.phase("train", {"n": 1}, resumes)
    assert seen == [["checkpoint"]]  # the same key may go on from what was left
    with pytest.raises(KeyboardInterrupt):
        folder.phase("train", {"n": 2}, fails)
    folder.phase("train", {"n": 3}, resumes)
    assert seen[-1] == []  # another key may not


class Killed(BaseException):
    """Ends a process as SIGKILL would: nothing is tidied up."""


@pytest.mark.parametrize("at", ["settle", "_hashes", "write_json", "_promote"])
@pytest.mark.parametrize("name", ["a.json", "train"])
def test_a_kill_between_the_writes_behind_a_phase_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, name: str
) -> None:
    """The part is whole: only before that is known for certain may the work be done again."""
    calls: list[str] = []

    def produce(part: Path) -> None:
        calls.append("x")
        (part if name == "a.json" else part / "b.json").write_text("{}", encoding="utf-8")

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(folder_module if at in ("settle", "write_json") else RunFolder, at, killed)
        RunFolder(tmp_path).phase(name, {}, produce)
    told: list[str] = []
    again = RunFolder(tmp_path, told.append).phase(name, {}, produce)
    assert calls == (["x", "x"] if at == "settle" else ["x"])
    assert told == []
    assert (again.path if name == "a.json" else again.path / "b.json").is_file()
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name or path.name.endswith(".tmp")]
    assert not RunFolder(tmp_path).phase(name, {}, produce).fresh


def test_a_part_that_changed_after_it_was_marked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    calls: list[str] = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "_promote", killed)
        RunFolder(tmp_path).phase("a.json", {}, counter(calls))
    (tmp_path / "a.json.part").write_text('{"text": "y"}', encoding="utf-8")
    told: list[str] = []
    assert RunFolder(tmp_path, told.append).phase("a.json", {}, counter(calls)).json() == {"text": "x"}
    assert len(calls) == 2
    assert "damaged" in told[0]


def test_a_file_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls, read = RunFolder(tmp_path), [], []
    digest = hashlib.file_digest

    def counted(handle: Any, kind: str) -> Any:
        read.append(handle.name)
        return digest(handle, kind)

    monkeypatch.setattr(folder_module.hashlib, "file_digest", counted)
    for _ in range(3):
        folder.phase("a.json", {}, counter(calls))
    assert (len(calls), len(read)) == (1, 1)
    (tmp_path / "a.json").write_text('{"text": "y"}', encoding="utf-8")
    assert folder.phase("a.json", {}, counter(calls)).json() == {"text": "x"}
    assert len(calls) == 2


def test_damage_does_not_cost_what_the_second_attempt_has_done(tmp_path: Path) -> None:
    folder, seen = RunFolder(tmp_path), []

    def produce(part: Path) -> None:
        seen.append(sorted(path.name for path in part.iterdir()))
        (part / "checkpoint").write_text("half", encoding="utf-8")
        if len(seen) == 2:
            raise Killed

    folder.phase("train", {}, produce)
    (tmp_path / "train" / "checkpoint").write_text("broken", encoding="utf-8")
    with pytest.raises(Killed):
        folder.phase("train", {}, produce)
    folder.phase("train", {}, produce)
    assert seen == [[], [], ["checkpoint"]]


def test_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    def full(part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(part))

    with pytest.raises(IdealmixError, match="disk is full") as error:
        RunFolder(tmp_path).phase("a.json", {}, full)
    assert error.value.exit_code == 1


def test_output_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(IdealmixError, match="a file stands"), RunFolder(tmp_path / "file").locked():
        pass


def _hold(path: str, ready: Any, release: Any) -> None:
    with RunFolder(Path(path)).locked():
        ready.set()
        release.wait(20)


def test_second_process_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, release))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(IdealmixError, match=rf"pid {other.pid}"), RunFolder(tmp_path).locked():
            pass
    finally:
        release.set()
        other.join(20)
    with RunFolder(tmp_path).locked():
        pass


def test_hash_ignores_key_order_and_refuses_nan() -> None:
    assert hash_json({"a": 1, "b": 2}) == hash_json(json.loads('{"b": 2, "a": 1}'))
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_json(float("nan"))
