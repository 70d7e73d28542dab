"""A full disk is one clear error, whichever library was writing, and no other failure is called one."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError
from test_training_sft import run
from training_helpers import save_tiny_model

from idealmix.disk import writing
from idealmix.errors import IdealmixError

# as the libraries word it on a full tmpfs
SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"
TORCH = "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"


def torch_on_a_full_disk(hidden: Exception) -> None:
    try:
        raise hidden
    finally:
        raise RuntimeError(TORCH)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def test_weights_that_do_not_fit_on_the_disk(base, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError(SAFETENSORS)

    monkeypatch.setattr("idealmix.training.sft.save_file", full)
    with pytest.raises(IdealmixError, match="the disk is full") as caught:
        run(base, tmp_path, steps=2)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(IdealmixError, match="the disk is full"):
        run(base, tmp_path, steps=2)


def test_a_checkpoint_inside_the_training_that_does_not_fit(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a, **k: torch_on_a_full_disk(OSError(errno.ENOSPC, "full")))
    with pytest.raises(IdealmixError, match="the disk is full"):
        run(base, tmp_path, steps=4, save_steps=2)


def test_what_is_and_what_is_not_a_full_disk(tmp_path):
    for full in (OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x"), SafetensorError(SAFETENSORS)):
        with pytest.raises(IdealmixError, match=r"the disk is full\n"), writing(tmp_path):
            raise full
    with pytest.raises(IdealmixError, match="full, or a checkpoint"), writing(tmp_path):
        torch_on_a_full_disk(RuntimeError("basic_ios::clear: iostream error"))
    with pytest.raises(IdealmixError, match=r"could not be written: .*denied"), writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)")
    for other in (
        RuntimeError("shapes differ"),
        SafetensorError("Error while deserializing header"),
        OSError(5, "x"),
    ):
        with pytest.raises(type(other)), writing(tmp_path):
            raise other
