"""Two processes (gloo, CPU): the same run as one, and a run that survives the death of either.

Started by torchrun; ``accelerate launch --cpu`` starts several CPU processes by MPI only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import idealmix, project

pytestmark = pytest.mark.slow

TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "idealmix"]
HALF = ["--set", "training.per_device_train_batch_size=8"]  # of the rows that one process takes at once


def two(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TWO, *arguments], capture_output=True, text=True, check=False, timeout=500, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def rank(launcher: int, number: int) -> int:
    """The process of a rank below a launcher."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            try:
                parent = (
                    (entry / "stat").read_text().rpartition(")")[2].split()[1] if entry.name.isdigit() else ""
                )
                if (
                    parent == str(launcher)
                    and f"\0RANK={number}\0".encode() in b"\0" + (entry / "environ").read_bytes()
                ):
                    return int(entry.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no process of rank {number}")


def wait_for(path: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Until a file is there; the run must not end before."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert launcher.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A project, and the undisturbed result of two processes."""
    config = project(tmp_path_factory.mktemp("pair"))
    ended = two("run", str(config), "--json", *HALF)
    assert ended.returncode == 0, ended.stderr
    return config, json.loads(ended.stdout)


def test_a_comparison_by_two_processes_agrees_with_one(tmp_path: Path) -> None:
    config = project(tmp_path, methods={"random": {"k": 2}})
    asked = ["compare", str(config), "--methods", "uniform,random,doremi", "--seeds", "1", "--json"]
    found = []
    for call, extra in ((two, HALF), (idealmix, ["--set", f"output={tmp_path / 'alone'}"])):
        ended = call(*asked, *extra)
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout)["methods"])
    together, alone = found
    assert together.keys() == alone.keys() == {"base", "joint", "uniform", "random", "doremi"}
    for name, method in together.items():
        figures, others = method["figures"]["objective"], alone[name]["figures"]["objective"]
        assert figures["mean"] == pytest.approx(others["mean"], abs=2e-3), name
        for one, other in zip(method["runs"][0]["mixtures"], alone[name]["runs"][0]["mixtures"]):
            assert one["steps"] == other["steps"]
            for domain, count in one["counts"].items():
                assert abs(count - other["counts"][domain]) <= (2 if name == "doremi" else 0), name


def test_counts_agree_with_one_process_to_a_row_a_domain(
    pair: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, together = pair
    ended = idealmix("run", str(config), "--json", "--set", f"output={tmp_path / 'alone'}")
    assert ended.returncode == 0, ended.stderr
    alone = json.loads(ended.stdout)
    assert together["facts"]["processes"] == 2
    assert len(together["rounds"]) == len(alone["rounds"]) == 2
    for one, other in zip(alone["rounds"], together["rounds"], strict=True):
        assert (one["steps"], one["tokens"]) == (other["steps"], other["tokens"])
        assert one["counts"].keys() == other["counts"].keys()
        for name, count in one["counts"].items():
            assert abs(count - other["counts"][name]) <= 1
    moved = [one["counts"] != alone["rounds"][0]["counts"] for one in alone["rounds"]]
    assert moved == [False, True]  # else the counts could not differ


def test_influence_of_one_checkpoint_agrees_to_a_hundred_thousandth(
    pair: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    config, _ = pair
    run = config.parent / "run"
    asked = ["influence", str(config), "--model", str(run / "round-0/train/model"), "--mixture", str(run / "round-0/mixture.json")]  # fmt: skip
    found = []
    for name, start in (("one", idealmix), ("two", two)):
        ended = start(*asked, "--output", str(tmp_path / f"{name}.json"))
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")))
    largest = max(abs(value) for row in found[0]["alpha"] for value in row)
    for one, other in zip(found[0]["alpha"], found[1]["alpha"], strict=True):
        assert other == pytest.approx(one, abs=1e-5 * largest)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "phase", ["round-0/train.part/checkpoints/checkpoint-3", "round-0/influence.json.part.key"]
)
def test_a_rank_that_dies_ends_the_run_and_it_goes_on(
    pair: tuple[Path, dict[str, Any]], tmp_path: Path, victim: int, phase: str
) -> None:
    config, undisturbed = pair
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = [
        "run",
        str(config),
        "--json",
        *HALF,
        "--set",
        f"output={folder}",
        "--set",
        "training.save_steps=3",
    ]
    with log.open("w") as stream:
        launcher = subprocess.Popen([*TWO, *arguments], stdout=stream, stderr=stream, env=environment())
        doomed = rank(launcher.pid, victim)
        wait_for(folder / phase, launcher)
        os.kill(doomed, signal.SIGKILL)
        killed = time.monotonic()
        status = launcher.wait(120)
    seconds = time.monotonic() - killed
    text = log.read_text()
    assert status == 1
    assert seconds < 60
    message = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(message) == 1
    assert "go on with: idealmix run" in message[0]
    assert text.count("Traceback (most recent call last)") == 1  # the launcher's own story
    resumed = two(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert {key: value for key, value in found.items() if key not in ("timing", "name")} == {
        key: value for key, value in undisturbed.items() if key not in ("timing", "name")
    }


def test_sigterm_saves_at_the_same_step_on_both(pair: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Sent to the launcher, which passes it on to each process in its own time."""
    config, undisturbed = pair
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = ["run", str(config), "--json", *HALF, "--set", f"output={folder}"]
    with log.open("w") as stream:
        launcher = subprocess.Popen([*TWO, *arguments], stdout=stream, stderr=stream, env=environment())
        part = folder / "round-0" / "train.part" / "checkpoints" / "key.txt"
        wait_for(part, launcher)
        launcher.send_signal(signal.SIGTERM)
        began = time.monotonic()
        status = launcher.wait(120)
    assert status != 0
    assert time.monotonic() - began < 60  # the launcher itself kills after 30 s, and has its own end
    checkpoints = list(part.parent.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert {path.name for path in checkpoints[0].iterdir()} >= {
        "seal.json",
        "consumed-0.npz",
        "consumed-1.npz",
    }
    assert log.read_text().count("error: stopped. Everything finished is kept; go on with: idealmix run") == 1
    resumed = two(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert {key: value for key, value in found.items() if key not in ("timing", "name")} == {
        key: value for key, value in undisturbed.items() if key not in ("timing", "name")
    }
