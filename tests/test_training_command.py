"""An outside trainer: what it is given, how its checkpoint is found, what a failure says."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from training_helpers import save_tiny_model, tiny_mixture, tiny_pools

from idealmix.config import Training
from idealmix.errors import IdealmixError, InputError
from idealmix.training import train
from idealmix.training.command import filled_in
from idealmix.training.model import load_model
from idealmix.training.record import TrainingRecord

POOLS = tiny_pools({"math": 6, "code": 4})


def run(
    model: Path,
    output: Path,
    script: str,
    arguments: str = "{model} {train_file} {output_dir}",
    seed: int = 0,
):
    program = output.parent / "trainer.py"
    program.write_text("import json, os, shutil, sys\n" + script)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))} {arguments}"
    settings = Training(backend="command", command=command)
    return train(model, tiny_mixture(POOLS), POOLS, settings, seed=seed, output=output)


def test_the_command_gets_the_mixture_and_its_checkpoint_is_taken(tmp_path):
    base = save_tiny_model(tmp_path / "a base with 'quotes'")
    output = tmp_path / "out; rm -rf x"
    script = (
        "model, data, out = sys.argv[1:]\n"
        "rows = [json.loads(line) for line in open(data)]\n"
        "assert len(rows) == 10, len(rows)\n"
        "shutil.copytree(model, out + '/runs/checkpoint-7')\n"
        "print('trained')\n"
    )
    record = run(base, output, script)
    assert record == TrainingRecord.read(output / "record.json")
    assert record.model_path == "command/runs/checkpoint-7"
    assert load_model(record.model_folder(output)).config.model_type == "llama"
    assert record.backend == "command"
    assert record.step_weights == record.token_shares
    assert record.optimiser is None
    assert "limit of large batches" in record.warnings[0]
    assert (output / "command.log").read_text() == "trained\n"
    rows = [json.loads(line) for line in (output / "train.jsonl").open()]
    assert sorted((row["domain"], row["id"]) for row in rows) == sorted(
        (name, row_id) for name, pool in POOLS.items() for row_id in pool.ids
    )
    assert {tuple(message["role"] for message in row["messages"]) for row in rows} == {("user", "assistant")}
    lengths = [int(POOLS[row["domain"]].tokens[POOLS[row["domain"]].index[row["id"]]]) for row in rows]
    assert lengths != sorted(lengths, reverse=True)


def test_the_seed_decides_the_order(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(base, tmp_path / name, "shutil.copytree(sys.argv[1], sys.argv[3] + '/m')\n", seed=seed)
        orders.append((tmp_path / name / "train.jsonl").read_text())
    assert orders[0] == orders[1] != orders[2]


def test_a_failure_shows_the_last_lines(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    with pytest.raises(IdealmixError, match=r"status 3; its last lines:\n(.*\n)*.*no GPU found") as caught:
        run(base, tmp_path / "out", "[print(n) for n in range(50)]\nprint('no GPU found')\nsys.exit(3)\n")
    assert caught.value.exit_code == 1
    assert "\n    12\n" not in str(caught.value)


def test_a_missing_or_pickled_checkpoint_is_an_error(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    with pytest.raises(IdealmixError, match=r"left no checkpoint .* \(found: nothing\)"):
        run(base, tmp_path / "out", "pass\n")
    script = "[open(sys.argv[3] + '/' + n, 'w') for n in ('config.json', 'pytorch_model.bin')]\n"
    with pytest.raises(IdealmixError, match=r"found: config.json, pytorch_model.bin"):
        run(base, tmp_path / "out", script)


def test_commands_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"does not contain \{output_dir\}"):
        filled_in("train {train_file}", model="m", train_file="t", output_dir="o")
    with pytest.raises(InputError, match="split into words"):
        filled_in("train '{train_file} {output_dir}", model="m", train_file="t", output_dir="o")
    settings = Training(backend="command", command="no-such-program {train_file} {output_dir}")
    with pytest.raises(InputError, match="cannot be started"):
        train("m", tiny_mixture(POOLS), POOLS, settings, seed=0, output=tmp_path)


def test_a_script_that_the_system_cannot_start_is_refused(tmp_path):
    script = tmp_path / "train"
    script.write_text("exit 0\n")  # no first line that names its interpreter
    script.chmod(0o755)
    for program in (script, tmp_path):
        settings = Training(backend="command", command=f"{program} {{train_file}} {{output_dir}}")
        with pytest.raises(InputError, match="cannot be started"):
            train("m", tiny_mixture(POOLS), POOLS, settings, seed=0, output=tmp_path / "out")


def test_places_are_filled_word_by_word_without_a_shell():
    words = filled_in(
        "python t.py --data={train_file} --out '{output_dir}/x y' $HOME",
        model="m",
        train_file="a b",
        output_dir="o'",
    )
    assert words == ["python", "t.py", "--data=a b", "--out", "o'/x y", "$HOME"]
