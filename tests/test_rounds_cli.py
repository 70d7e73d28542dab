"""`idealmix run` as a user meets it: the whole loop, resume, refusals, the other commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rounds_helpers import idealmix, project


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished run: (its project folder, the command's outcome)."""
    folder = tmp_path_factory.mktemp("project")
    finished = idealmix("run", str(project(folder)), "--json")
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def without_timing(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("timing", "name")}


def test_whole_loop_leaves_every_file(done: tuple[Path, Any]) -> None:
    run = done[0] / "run"
    for name in (
        "config.yaml", "manifest.json", "result.json", "report.html", "base/evaluation.json",
        "round-0/mixture.json", "round-0/train/record.json", "round-0/train/model/model.safetensors",
        "round-0/evaluation.json", "round-0/influence.json", "round-0/allocation.json", "round-1/mixture.json",
        "round-1/evaluation.json", "mixture/count.jsonl", "mixture/swap.jsonl", "mixture/manifest.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob("*.part*"))


def test_result_says_what_was_trained_and_why_it_ended(done: tuple[Path, Any]) -> None:
    result = json.loads((done[0] / "run" / "result.json").read_text(encoding="utf-8"))
    assert json.loads(done[1].stdout) == result
    first, second = result["rounds"]
    assert first["decision"] == "start"
    assert second["decision"] in ("better", "leaning", "worse", "undecided")
    assert second["steps"] == first["steps"]
    assert abs(second["tokens"] - first["tokens"]) <= 0.01 * first["tokens"]
    assert result["ended"]
    assert result["replicates"]["count"] == 1
    assert first["objective"]["value"] < result["base"]["objective"]["value"]  # it learned something
    assert {"rows", "tokens", "supervised_tokens", "steps", "tests", "scores"} <= set(
        result["final"]["joint"]
    )
    # a domain's volume moves the way that its slope says
    for move in first["allocation"]["moves"].values():
        other = "trades" in move["note"] or "less than of the others" in move["note"]
        if not move["gated"] and move["after"] != move["before"] and not other:
            assert (move["after"] - move["before"]) * move["slope"] < 0


def test_materialised_mixture_has_the_chosen_counts(done: tuple[Path, Any]) -> None:
    run = done[0] / "run"
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    counts = result["rounds"][result["best"]]["counts"]
    for name, count in counts.items():
        assert len((run / "mixture" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()) == count


def test_the_same_run_again_gives_the_same_result(done: tuple[Path, Any], tmp_path: Path) -> None:
    project(tmp_path)
    again = idealmix("run", str(tmp_path / "config.yaml"), "--json")
    one, other = json.loads(done[1].stdout), json.loads(again.stdout)
    # paths are the only thing that may differ
    text = json.dumps(without_timing(other)).replace(str(tmp_path), str(done[0]))
    assert json.loads(text) == without_timing(one)


def test_a_finished_run_is_not_done_again(done: tuple[Path, Any]) -> None:
    config = str(done[0] / "config.yaml")
    before = (done[0] / "run" / "round-0" / "train" / "model" / "model.safetensors").stat().st_mtime_ns
    again = idealmix("run", config)
    assert again.returncode == 0, again.stderr
    assert "training on" in again.stderr
    assert all("already done" in line for line in again.stderr.splitlines() if ": training on" in line)
    assert (
        done[0] / "run" / "round-0" / "train" / "model" / "model.safetensors"
    ).stat().st_mtime_ns == before
    assert without_timing(json.loads((done[0] / "run" / "result.json").read_text(encoding="utf-8"))) == (
        without_timing(json.loads(done[1].stdout))
    )


def test_a_changed_configuration_is_refused_by_name(done: tuple[Path, Any]) -> None:
    refused = idealmix(
        "run", str(done[0] / "config.yaml"), "--set", "training.learning_rate=0.02", "--set", "seed=3"
    )
    assert refused.returncode == 2
    assert "training.learning_rate: 0.01 -> 0.02" in refused.stderr
    assert "seed: 0 -> 3" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_influence_of_a_checkpoint_without_training(done: tuple[Path, Any], tmp_path: Path) -> None:
    run, config = done[0] / "run", str(done[0] / "config.yaml")
    out = tmp_path / "influence.json"
    model = run / "round-0" / "train" / "model"
    measured = idealmix("influence", config, "--model", str(model), "--output", str(out), "--json")
    assert measured.returncode == 0, measured.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found == json.loads(measured.stdout)
    inside = json.loads((run / "round-0" / "influence.json").read_text(encoding="utf-8"))
    # its training's record and its mixture lie beside it: the run's own matrix
    assert found["domains"] == inside["domains"]
    np.testing.assert_allclose(found["alpha"], inside["alpha"], rtol=1e-6)
    finite = idealmix(
        "influence", config, "--model", str(model), "--json", "--set", "influence.response=finite"
    )
    assert finite.returncode == 0, finite.stderr
    assert json.loads(finite.stdout)["metric"] == "adamw"

    alone = shutil.copytree(model, tmp_path / "checkpoint")
    given = ("influence", config, "--model", str(alone), "--mixture", str(run / "round-0" / "mixture.json"))
    elsewhere = idealmix(*given, "--json")
    assert elsewhere.returncode == 0, elsewhere.stderr
    foreign = json.loads(elsewhere.stdout)
    # the same model on the same rows; only the domains' weights come from token shares here
    largest = np.abs(found["alpha"]).max()
    np.testing.assert_allclose(foreign["alpha"], found["alpha"], rtol=0.2, atol=0.05 * largest)
    refused = idealmix(*given, "--set", "influence.response=finite")
    assert refused.returncode == 2
    assert "training's record" in refused.stderr


def test_report_again(done: tuple[Path, Any]) -> None:
    page = done[0] / "run" / "report.html"
    page.unlink()
    written = idealmix("report", str(done[0] / "run"))
    assert written.returncode == 0, written.stderr
    assert page.is_file()
    absent = idealmix("report", str(done[0]))
    assert absent.returncode == 2
    assert "Traceback" not in absent.stderr


def test_dry_run_shows_every_default_and_trains_nothing(tmp_path: Path) -> None:
    config = project(tmp_path)
    shown = idealmix("run", str(config), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    resolved = yaml.safe_load(shown.stdout)
    assert resolved["influence"]["curvature"] == "ekfac"
    assert resolved["training"]["weight_decay"] == 0.0
    assert "# domains.count: 140 rows" in shown.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "phase", ["round-0/train.part", "round-0/influence.json.part.key", "round-1/train.part.key"]
)
def test_killed_anywhere_it_goes_on_to_the_same_result(
    done: tuple[Path, Any], tmp_path: Path, phase: str
) -> None:
    config = project(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "idealmix", "run", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / phase).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "result.json").exists(), "it was over before the kill"
    resumed = idealmix("run", str(config), "--json")
    assert resumed.returncode == 0, resumed.stderr
    text = json.dumps(without_timing(json.loads(resumed.stdout))).replace(str(tmp_path), str(done[0]))
    assert json.loads(text) == without_timing(json.loads(done[1].stdout))


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    config = project(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "idealmix", "run", str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "round-0" / "train.part").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"go on with: idealmix run {config}" in errors
    assert "Traceback" not in errors


def test_a_mistake_in_the_data_and_one_found_after_training_are_one_message_each(tmp_path: Path) -> None:
    """By the command itself; tests/test_bad_input.py has all others, in one process."""
    config = project(tmp_path)
    nowhere = idealmix("run", str(config), "--set", "influence.layers=nonsense")
    train = tmp_path / "count" / "train.jsonl"
    with train.open("a", encoding="utf-8") as file:
        file.write("{not json\n")
    unread = idealmix("run", str(config), "--set", f"output={tmp_path / 'other'}")
    line = len(train.read_text(encoding="utf-8").splitlines())
    for refused, expected in ((nowhere, "nonsense"), (unread, f"train.jsonl:{line}")):
        assert refused.returncode == 2, refused.stderr
        assert expected in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    """gloo on CPUs by torchrun (``accelerate launch --cpu`` starts several CPU processes by MPI only)."""
    config = project(tmp_path)
    launched = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "idealmix",
            "run", str(config), "--json", "--set", "training.per_device_train_batch_size=8",
        ],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    two = json.loads(launched.stdout)
    alone = idealmix("run", str(config), "--json", "--set", "output=alone")
    one = json.loads(alone.stdout)
    assert two["facts"]["processes"] == 2
    assert [r["steps"] for r in two["rounds"]] == [
        r["steps"] for r in one["rounds"]
    ]  # the same global batches
    for name, loss in one["rounds"][0]["losses"].items():
        assert two["rounds"][0]["losses"][name]["mean"] == pytest.approx(loss["mean"], abs=1e-3)


def test_the_papers_rule_takes_every_step(tmp_path: Path) -> None:
    paper = {
        "method": "ideal-paper",
        "allocation": {"budget": {"unit": "tokens", "size": 1400}, "max_repeats": 2},
    }
    finished = idealmix("run", str(project(tmp_path, scores={}, tests={}, **paper)), "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["best"] == len(result["rounds"]) - 1 == 2
    for one in result["rounds"][:-1]:
        moves = one["allocation"]["moves"].values()
        assert not any(move["gated"] for move in moves)
        # beta_i = - m alpha_i / max |alpha|, in whole rows, on the rows that were trained on
        largest = max(abs(move["slope"]) for move in moves)
        for move in moves:
            assert move["after"] == pytest.approx(
                move["before"] * (1 - 0.15 * move["slope"] / largest), abs=0.51
            )
    assert result["final"] is None
    assert result["replicates"]["count"] == 0
