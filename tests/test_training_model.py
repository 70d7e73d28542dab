"""Loading: what is read, and what a wrong model is told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import save_tiny_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from idealmix.errors import InputError
from idealmix.training.model import load_model, load_tokenizer, weights_dtype


def test_dtype_and_pad_token(tmp_path):
    folder = save_tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    assert weights_dtype(folder) == "bfloat16"
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, "float32").dtype == torch.float32
    assert not load_model(folder).training
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_models_that_are_not_causal_are_refused(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=9, **small)).save_pretrained(tmp_path / "bert")
    t5 = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    LlamaModel(LlamaConfig(vocab_size=9, **small)).save_pretrained(tmp_path / "headless")
    for name in ("bert", "t5", "headless"):
        with pytest.raises(InputError, match="not a causal language model"):
            load_model(tmp_path / name)


def test_missing_and_broken_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        load_model(tmp_path / "file")
    with pytest.raises(InputError, match="no such folder, and the hub does not give"):
        load_model("nobody/no-such-model")
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer("nobody/no-such-model")
    folder = save_tiny_model(tmp_path / "m")
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(InputError):
        load_model(folder)


def test_only_complete_safetensors_weights_are_read(tmp_path):
    folder = save_tiny_model(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of the model's weights.*layers\.1\.mlp\.up_proj"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_model(folder)


def test_a_checkpoints_own_code_is_not_run(tmp_path):
    folder = save_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError):
        load_model(folder)
