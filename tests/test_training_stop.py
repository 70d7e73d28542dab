"""A training that is stopped by a signal, or whose checkpoint is damaged, goes on to the same weights."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import save_tiny_model, tiny_mixture, tiny_pools

from idealmix.config import Training
from idealmix.training import command, stop, train

POOLS = tiny_pools({"math": 13, "code": 8})
STEPS = 11  # two epochs of 21 rows, four a step


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def run(base, output, progress=None, **settings):
    chosen = Training(
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        dtype="float32",
        epochs=2,
        warmup_steps=2,
        **settings,
    )
    return train(base, tiny_mixture(POOLS), POOLS, chosen, seed=0, output=output, progress=progress)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(base, folder), weights(folder)


def weights(folder: Path):
    return load_file(folder / "model" / "model.safetensors") | load_file(
        folder / "second_moments.safetensors"
    )


def assert_same(whole, record, folder):
    expected, tensors = whole
    assert (record.losses, record.step_sizes, record.consumed) == (
        expected.losses,
        expected.step_sizes,
        expected.consumed,
    )
    found = weights(folder)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], found[name]) for name in tensors)


@pytest.fixture
def raising():
    """SIGTERM raises, as it does under the command line."""

    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    assert signal.getsignal(signal.SIGTERM) is handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("at", [1, 5, STEPS])
def test_a_signal_saves_at_the_steps_end_and_the_training_goes_on_there(
    base, whole, tmp_path, raising, number, at
):
    def hit(done, total, facts):
        assert total == STEPS
        if done == at:  # before the step's own end: the trainer logs, then asks who wants to save
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, hit)
    saved = [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")]
    # after the last step the training itself is written instead
    assert saved == ([f"checkpoint-{at + 1}"] if at < STEPS else [])
    assert (tmp_path / "record.json").exists() == (at == STEPS)
    seen = []
    record = run(base, tmp_path, lambda done, *_: seen.append(done))
    assert seen == list(range(at + 2, STEPS + 1))
    assert not (tmp_path / "checkpoints").exists()
    assert_same(whole, record, tmp_path)


def test_a_step_that_does_not_end_is_not_waited_for(base, tmp_path, raising, monkeypatch):
    monkeypatch.setattr(stop, "PATIENCE", 0.3)
    began, handler, (left, _) = [], signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)

    def hang(done, total, facts):
        os.kill(os.getpid(), signal.SIGTERM)
        began.append(time.monotonic())
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, hang)
    assert time.monotonic() - began[0] < 5
    assert signal.getsignal(signal.SIGALRM) is handler
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (left > 0)  # pytest's own time limit


def test_a_second_signal_is_not_kept(base, tmp_path, raising):
    def twice(done, total, facts):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second one passed")

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, twice)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "unsealed"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(base, whole, tmp_path, damage):
    def cut(done, total, facts):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, cut, save_steps=2)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    target = folder / "checkpoint-6" / ("seal.json" if damage == "unsealed" else "optimizer.pt")
    content = bytearray(target.read_bytes())
    if damage in ("delete", "unsealed"):
        target.unlink()
    elif damage == "truncate":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    seen = []
    record = run(base, tmp_path, lambda done, *_: seen.append(done), save_steps=2)
    assert seen[0] == 5
    assert_same(whole, record, tmp_path)


def test_the_newest_checkpoint_is_told_by_its_step_not_by_the_clock(base, whole, tmp_path):
    def back(done, total, facts):  # every checkpoint looks older than those before it
        for path in (tmp_path / "checkpoints").glob("checkpoint-*"):
            age = int(path.name.rsplit("-", 1)[1])
            os.utime(path, (10_000 - age, 10_000 - age))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, back, save_steps=2)
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    seen = []
    record = run(base, moved, lambda done, *_: seen.append(done), save_steps=1)
    assert seen[0] == 7
    assert_same(whole, record, moved)


def test_an_outside_trainer_that_ignores_the_signal_is_killed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_PATIENCE", 0.5)
    program = tmp_path / "deaf.py"
    program.write_text(
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[2] + '/pid', 'w').write(str(os.getpid()))\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    settings = Training(
        backend="command", command=f"{sys.executable} {program} {{train_file}} {{output_dir}}"
    )
    output = tmp_path / "out"

    def interrupt():
        while not (output / "command.log").exists() or "ready" not in (output / "command.log").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    asker = threading.Thread(target=interrupt)
    asker.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(base, tiny_mixture(POOLS), POOLS, settings, seed=0, output=output)
    asker.join()
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((output / "command" / "pid").read_text()), 0)


def test_a_signal_while_a_lost_process_is_told_of_does_not_hide_it(monkeypatch, capsys):
    """A launcher signals the other processes as soon as one has died."""
    import typer

    from idealmix.cli_session import watching
    from idealmix.rounds.team import Team

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Team, "lost_one", lambda self, error: os.kill(os.getpid(), signal.SIGTERM) or True)
    with pytest.raises(typer.Exit) as ended, watching(False, "idealmix run c.yaml"):
        raise RuntimeError("Connection closed by peer")
    assert ended.value.exit_code == 1
    assert "another process of this run has died" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
