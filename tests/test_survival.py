"""A run that cannot be lost: whatever ends it, the same command goes on to the result of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import project
from survival_helpers import Ended, Server

from idealmix.rounds.folder import RunFolder

SEED = 5
STEPS = 16  # of each of the three trainings: round 0, its replicate, round 1


@dataclass(frozen=True)
class Ground:
    """A server, a project, and how its undisturbed run ended."""

    server: Server
    config: Path
    ended: Ended

    def run(self, folder: Path, *arguments: str, **fault: Any) -> Ended:
        """``idealmix run`` with the run folder at `folder`."""
        output = ("--set", f"output={folder}", "--json")
        return self.server.run("run", str(self.config), *output, *arguments, folder=folder, **fault)

    def assert_same(self, folder: Path, ended: Ended) -> None:
        """The command succeeded, and its result is the undisturbed one's but for its timing and the folder's name."""
        assert ended.code == 0, ended.err
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert json.loads(ended.out) == found
        assert untimed(found) == untimed(json.loads(self.ended.out))
        assert (folder / "report.html").is_file()
        left = [path.name for path in folder.rglob("*") if ".part" in path.name or path.name.endswith(".tmp")]
        assert left == []


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    assert result["timing"]["total_s"] >= 0
    return {key: value for key, value in result.items() if key not in ("timing", "name")}


def finished(folder: Path) -> dict[str, tuple[int, str]]:
    """When each finished phase was marked, and as what."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob(".phases/**/*.done"))
    }


def under_way(folder: Path) -> str:
    """The phase that was being written."""
    claims = [path.relative_to(folder).as_posix() for path in folder.rglob("*.part.key")]
    return claims[0].removesuffix(".part.key") if claims else "between phases"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    root = tmp_path_factory.mktemp("survival")
    training = {
        "epochs": 2, "learning_rate": 0.01, "max_length": 32, "per_device_train_batch_size": 16,
        "dtype": "float32", "save_steps": 3,
    }  # fmt: skip
    config = project(root, training=training)
    with Server() as server:
        ended = server.run("run", str(config), "--json", folder=root / "run")
        assert ended.code == 0, ended.err
        assert ended.steps == 3 * STEPS
        yield Ground(server, config, ended)


def survives(ground: Ground, folder: Path, *faults: dict[str, Any]) -> tuple[list[str], Ended]:
    """End a run by each fault in turn, then let it go on; returns the phases that were hit, and how it ended."""
    hit = []
    for fault in faults:
        ended = ground.run(folder, **fault)
        if ended.code == 0:  # it was over before
            hit.append("after the end")
            continue
        assert ended.code == -signal.SIGKILL, ended.err
        hit.append(under_way(folder))
    before = finished(folder)
    ended = ground.run(folder)
    ground.assert_same(folder, ended)
    after = finished(folder)
    assert {name: after[name] for name in before} == before, "a finished phase was done twice"
    return hit, ended


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_killed_at_a_write_it_goes_on_to_the_same_result(
    ground: Ground, tmp_path: Path, share: float
) -> None:
    at = round(share * ground.ended.writes)
    survives(ground, tmp_path / "run", {"kill_at": at, "kill_when": "before" if at % 2 else "after"})


def test_killed_inside_a_training_it_goes_on_inside_it(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = ground.run(folder, signal_at_step=STEPS + 9, signal=signal.SIGKILL)
    assert (killed.code, under_way(folder)) == (-signal.SIGKILL, "round-0/replicate-1")
    resumed = ground.run(folder)
    ground.assert_same(folder, resumed)
    # checkpoints lie at every third step: the sixth was the last of the replicate's
    assert resumed.steps == (STEPS - 6) + STEPS


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_signal_inside_a_training_saves_and_ends(ground: Ground, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    stopped = ground.run(folder, signal_at_step=8, signal=number)
    assert stopped.code == 1
    assert stopped.seconds < 30
    assert stopped.steps == 8
    assert "Traceback" not in stopped.err
    assert "stopped. Everything finished is kept; go on with: idealmix run " in stopped.err
    assert (folder / "round-0/train.part/checkpoints/checkpoint-8/seal.json").is_file()
    resumed = ground.run(folder)
    ground.assert_same(folder, resumed)
    assert resumed.steps == ground.ended.steps - 8


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.15, 0.6, 0.95])
def test_a_signal_at_any_time_ends_the_run(ground: Ground, tmp_path: Path, share: float) -> None:
    folder = tmp_path / "run"
    stopped = ground.run(folder, signal_after=share * ground.ended.seconds, signal=signal.SIGTERM)
    assert stopped.code in (0, 1)  # 0: it was over before
    assert stopped.seconds < 30 + ground.ended.seconds
    assert "Traceback" not in stopped.err
    ground.assert_same(folder, ground.run(folder))


DAMAGED = {
    "base/evaluation.json": "truncate",
    "round-0/mixture.json": "flip",
    "round-0/train/model/model.safetensors": "flip",
    "round-0/influence.json": "truncate",
    "round-0/replicate-1/evaluation.json": "delete",
    "round-1/train/second_moments.safetensors": "truncate",
    "mixture/swap.jsonl": "flip",
}


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes(content)


def test_damage_is_found_told_and_only_that_phase_is_done_again(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ground.config.parent / "run", folder)
    before = finished(folder)
    for name, how in DAMAGED.items():
        damage(folder / name, how)
    ended = ground.run(folder)
    ground.assert_same(folder, ended)
    phases = ["base/evaluation.json", "round-0/mixture.json", "round-0/train", "round-0/influence.json",
              "round-0/replicate-1", "round-1/train", "mixture"]  # fmt: skip
    for phase in phases:
        assert (
            f"warning: {phase}: the file on disk is damaged or was changed; doing this phase again"
            in ended.err
        )
    after = finished(folder)
    redone = [name for name, (when, _) in after.items() if when != before[name][0]]
    assert sorted(redone) == sorted(f".phases/{phase}.done" for phase in phases)
    assert ended.steps == 3 * STEPS


def test_a_clock_that_jumps_changes_nothing(ground: Ground, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = ground.run(folder, clock=True, signal_at_step=STEPS + 9, signal=signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    resumed = ground.run(folder, clock=True)
    ground.assert_same(folder, resumed)
    assert resumed.steps == (STEPS - 6) + STEPS
    seconds = json.loads((folder / "result.json").read_text(encoding="utf-8"))["timing"]["phases"].values()
    assert all(0 <= each < 600 for each in seconds)


def test_a_moved_run_folder_goes_on_where_it_was(ground: Ground, tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "other place" / "again"
    assert ground.run(folder, signal_at_step=STEPS + 9, signal=signal.SIGKILL).code == -signal.SIGKILL
    before = finished(folder)
    moved.parent.mkdir()
    folder.rename(moved)
    resumed = ground.run(moved)
    ground.assert_same(moved, resumed)
    assert resumed.steps == (STEPS - 6) + STEPS
    assert {name: finished(moved)[name] for name in before} == before


def test_a_second_process_on_the_same_folder_is_refused(ground: Ground, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked():
        refused = ground.run(tmp_path / "run")
    assert refused.code == 1
    assert f"another process (pid {os.getpid()}) is working on this run" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("limit", [20_000, 60_000], ids=["data", "weights"])
def test_a_file_that_cannot_grow_is_one_message(ground: Ground, tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "run"
    failed = ground.run(folder, limit=limit)
    assert failed.code == 1
    assert (
        "the disk is full" in failed.err
        or "could not be written" in failed.err
        or "cannot be written" in failed.err
    )
    assert "To mend:" in failed.err
    assert "Traceback" not in failed.err
    before = finished(folder)
    ground.assert_same(folder, ground.run(folder))
    assert {name: finished(folder)[name] for name in before} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where this test may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_more_space_lets_it_go_on(ground: Ground, small_disk: Path) -> None:
    folder, phases = small_disk / "run", []
    for size in range(1, 80):
        resize(small_disk, f"size={size * 48}k")
        ended = ground.run(folder)
        if ended.code == 0:
            break
        assert ended.code == 1
        assert "the disk is full" in ended.err
        assert "To mend: free" in ended.err
        assert "Traceback" not in ended.err
        phases.append(under_way(folder))
    ground.assert_same(folder, ended)
    assert {"round-0/train", "round-0/replicate-1"} <= set(phases)


def test_a_full_disk_for_temporary_files_is_one_message(
    ground: Ground, small_disk: Path, tmp_path: Path
) -> None:
    failed = ground.run(tmp_path / "run", env={"TMPDIR": str(small_disk)})
    assert failed.code == 1
    assert "To mend: free some space, or set TMPDIR to a larger disk" in failed.err
    assert "Traceback" not in failed.err


def test_a_read_only_disk_is_one_message(ground: Ground, small_disk: Path) -> None:
    resize(small_disk, "size=8m")
    folder = small_disk / "run"
    assert ground.run(folder, signal_at_step=9, signal=signal.SIGKILL).code == -signal.SIGKILL
    resize(small_disk, "ro")
    refused = ground.run(folder)
    assert refused.code == 1
    assert "this folder cannot be written" in refused.err
    assert "change its permissions or set another `output`" in refused.err
    assert "Traceback" not in refused.err
    resize(small_disk, "rw")
    ground.assert_same(folder, ground.run(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_message(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    refused = ground.run(tmp_path / "closed" / "run")
    assert refused.code == 1
    assert "this folder cannot be written" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_killed_at_random_moments(ground: Ground, tmp_path: Path, part: int) -> None:
    """Half at a random time after one of its writes, half right before or after one; every fifth is killed three times."""
    chance, hits = random.Random(SEED + part), Counter[str]()
    for number in range(5):
        faults: list[dict[str, Any]] = []
        for _ in range(3 if number % 5 == 4 else 1):
            when = chance.uniform(0, 0.3) if number % 2 else chance.choice(("before", "after"))
            faults.append({"kill_at": chance.randint(1, ground.ended.writes), "kill_when": when})
        hit, ended = survives(ground, tmp_path / "run", *faults)
        hits.update(hit)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        print(
            f"part {part}, run {number}: killed in {', '.join(hit)}; {ended.steps} steps to the end",
            flush=True,
        )
    print(f"part {part}: {sum(hits.values())} kills, {dict(hits.most_common())}", flush=True)
    assert len(hits) >= 2


PHASES = [
    "config.yaml", "base/evaluation.json", "round-0/mixture.json", "round-0/train", "round-0/evaluation.json",
    "round-0/replicate-1-draw", "round-0/replicate-1.", "round-0/influence.json", "round-0/allocation.json",
    "round-1/mixture.json", "round-1/train", "round-1/evaluation.json", "base/tests.json", "round-0/tests.json",
    "run/mixture", "result.json", "report.html", "manifest.json",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_killed_in_every_phase(ground: Ground, tmp_path: Path, part: int) -> None:
    """Before or after one of the first three writes that each phase makes."""
    chance = random.Random(SEED + part)
    for phase in PHASES[part::3]:
        fault = {
            "kill_in": phase,
            "kill_at": chance.randint(1, 3),
            "kill_when": chance.choice(("before", "after")),
        }
        hit, ended = survives(ground, tmp_path / "run", fault)
        assert hit != ["after the end"], phase
        shutil.rmtree(tmp_path / "run")
        print(
            f"{phase}: {fault['kill_when']} write {fault['kill_at']}; {ended.steps} steps to the end",
            flush=True,
        )
