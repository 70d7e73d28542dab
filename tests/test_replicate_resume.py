"""A training that was finished is not done twice: a replicate stopped while it is evaluated, processes that start anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rounds_helpers import project

from idealmix import configfile
from idealmix.rounds import phases
from idealmix.rounds.loop import run_rounds
from idealmix.rounds.models import Models
from idealmix.rounds.watch import Silent


def test_a_replicate_stopped_while_it_is_evaluated_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path, tests={}, scores={})
    whole = run_rounds(configfile.load(path, ["output=whole"]), Silent())
    trained: list[str] = []
    stopped: list[str] = []
    train, evaluation = phases.train, Models.evaluation

    def told(*arguments: Any, output: Path, **rest: Any) -> Any:
        trained.append(output.relative_to(tmp_path / "run").as_posix())
        return train(*arguments, output=output, **rest)

    def stop(self: Models, model: Any) -> dict[str, Any]:
        if not stopped and len(trained) == 2:
            stopped.append(trained[-1])
            raise KeyboardInterrupt
        return evaluation(self, model)

    monkeypatch.setattr(phases, "train", told)
    monkeypatch.setattr(Models, "evaluation", stop)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(configfile.load(path), Silent())
    assert stopped == ["round-0/replicate-1.part/train"]
    found = run_rounds(configfile.load(path), Silent())
    assert trained.count(stopped[0]) == 1
    assert found["replicates"] == whole["replicates"]
    assert not (tmp_path / "run" / "round-0" / "replicate-1" / "train").exists()


SLOW_SECOND = """
import os, sys, time
from pathlib import Path
from training_helpers import save_tiny_model, tiny_mixture, tiny_pools
from idealmix import config
from idealmix.training import train
from idealmix.training.checkpoints import Checkpoints
from idealmix.training.record import TrainingRecord

folder = Path(sys.argv[1])
pools = tiny_pools({"a": 9, "b": 7})
settings = config.Training(per_device_train_batch_size=4, dtype="float32", epochs=1, save_steps=1)
steps = []
ask = lambda: train(folder / "base", tiny_mixture(pools), pools, settings, seed=0, output=folder / "out",
                    progress=lambda done, total, facts: steps.append(done))
ours, remove = Checkpoints.ours, Checkpoints.remove
Checkpoints.remove = lambda self: None  # stopped after the record was written
ask()
assert steps or os.environ["RANK"] != "0"
Checkpoints.remove = remove
if os.environ["RANK"] == "1":
    Checkpoints.ours = lambda self: (time.sleep(5), ours(self))[1]  # the other process is done by then
steps.clear()
assert ask() == TrainingRecord.read(folder / "out" / "record.json"), "another record"
assert not steps
print("the same record", flush=True)
"""


@pytest.mark.slow
def test_processes_agree_that_a_training_has_ended(tmp_path: Path) -> None:
    from training_helpers import save_tiny_model

    save_tiny_model(tmp_path / "base")
    script = tmp_path / "again.py"
    script.write_text(SLOW_SECOND, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("the same record") == 2
