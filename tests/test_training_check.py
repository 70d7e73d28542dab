"""Training settings that cannot work are refused before any data is read."""

from __future__ import annotations

import pytest
from training_helpers import save_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from idealmix import config
from idealmix.config import Training
from idealmix.errors import InputError
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.watch import Silent
from idealmix.training.check import check_training

COMMAND = "python t.py {model} {train_file} {output_dir}"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("base")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1}, r"training\.lerning_rate: neither .* did you mean 'learning_rate'"),
        ({"loss_type": "dft"}, "objective"),
        ({"bf16": True, "dtype": "float32"}, r"training\.bf16: .*training\.dtype decides"),
        ({"max_length": 513}, r"training\.max_length: 513 tokens a row, and the model has 512 positions"),
    ],
)
def test_refused_before_any_data_is_read(base, settings, message):
    absent = {"domains": {"a": "/absent.jsonl"}, "references": {"a": "/absent.jsonl"}}
    run = config.Config.model_validate({"model": base, **absent, "training": settings})
    with pytest.raises(InputError, match=message):
        load_inputs(run, Silent())


def test_settings_that_work_pass(base):
    check_training(Training(adam_beta2=0.9, loss_type="nll", max_length=512), base)
    check_training(
        Training(epochs=1.0, backend="command", command=COMMAND, dtype="float32", max_length=9), base
    )


def test_a_command_is_not_run_by_several_processes(base, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_training(Training(), base)
    with pytest.raises(InputError, match="start the run as one process"):
        check_training(Training(backend="command", command=COMMAND), base)


def test_learned_positions_are_a_limit_for_adapters_too(tmp_path):
    small = GPT2Config(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt2")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tmp_path}/gpt2"}}')
    for model in (tmp_path / "gpt2", adapters):
        outside = {"backend": "command", "command": COMMAND}
        check_training(Training(max_length=16, **outside), str(model))
        with pytest.raises(InputError, match="17 tokens a row, and the model has 16 positions"):
            check_training(Training(max_length=17, **outside), str(model))
    with pytest.raises(InputError, match="merge them into their base first"):
        check_training(Training(max_length=16), str(adapters))
