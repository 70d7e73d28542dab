"""Influence through LoRA adapters of a transformers model, against full matrices of the adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from influence_helpers import DirectInfluence, mixture_of, pools_of, settings
from training_helpers import save_tiny_model
from transformers import LlamaForCausalLM

from idealmix.influence_stage import measure

peft = pytest.importorskip("peft")

DOMAINS, REFERENCES = pools_of({"math": 5, "code": 4}), pools_of({"sums": 3}, seed=1)
MIXTURE = mixture_of({"math": ["r0", "r1", "r4", "r1"], "code": ["r0", "r2", "r3"]})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """In float64; both adapters of every layer away from zero, as after training."""
    folder = save_tiny_model(
        tmp_path_factory.mktemp("lora"), num_hidden_layers=1, hidden_size=16, intermediate_size=20
    )
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


@pytest.mark.parametrize("centred", [True, False])
def test_the_adapters_are_the_layers(adapted, centred):
    found = measure(adapted, MIXTURE, DOMAINS, REFERENCES, settings(centred=centred))
    assert len(found.layers) == 4
    assert all("lora_" in name for name in found.layers)
    direct = DirectInfluence(adapted, MIXTURE, DOMAINS, REFERENCES, found.step_weights, float(centred))
    np.testing.assert_allclose(found.alpha_drawn, direct.drawn, rtol=1e-6)
    np.testing.assert_allclose(found.alpha_unused, direct.unused, rtol=1e-6)
