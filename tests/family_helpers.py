"""Tiny random models of the families that transformers has, and what plain autograd and plain hooks say of them."""

from __future__ import annotations

import torch
import transformers
from curvature_helpers import VOCABULARY
from torch.nn.functional import cross_entropy

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SIZES, "head_dim": 4, "query_pre_attn_scalar": 4}
NEOX = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
GPT2 = {"n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {key: SIZES[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}

FAMILIES = {
    "llama": ("Llama", SIZES),
    "llama with biases and a tied head": (
        "Llama",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "qwen2": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 4}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 4}),
    "gemma": ("Gemma", {**SIZES, "head_dim": 4}),
    "gemma2": ("Gemma2", {**GEMMA, "sliding_window": 4}),
    "gemma3": ("Gemma3", {**GEMMA, "sliding_window": 4, "model": "Gemma3ForCausalLM", "config": "Gemma3TextConfig"}),
    "phi": ("Phi", {**SIZES, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", SIZES),
    "gpt2": ("GPT2", {**GPT2, "model": "GPT2LMHeadModel"}),
    "gpt-neox": ("GPTNeoX", NEOX),
}  # fmt: skip


def build(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64):
    """A model in evaluation mode; biases and scales that start at 0 or 1 are moved away from it."""
    name, sizes = FAMILIES[family]
    if attention == "eager" and "sliding_window" in sizes:
        # transformers' own eager mask of a window without a real token is NaN in float64
        sizes = {**sizes, "sliding_window": 64}
    return make(name, attention=attention, dtype=dtype, **sizes)


def make(name: str, *, model=None, config=None, attention="sdpa", dtype=torch.float64, **sizes):
    settings = getattr(transformers, config or f"{name}Config")(**sizes)
    settings._attn_implementation = attention
    settings._experts_implementation = "eager"  # the others know no float64
    torch.manual_seed(0)
    made = getattr(transformers, model or f"{name}ForCausalLM")(settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.to(dtype).eval()


def autograd(model, layers, batches):
    """By layer name: the summed gradient of the weighted loss, from `torch.autograd` on the weights themselves."""
    named = {n: p for n, p in model.named_parameters(remove_duplicate=False)}
    names = [n for layer in layers for n in _parameters(layer)]
    totals = {n: torch.zeros_like(named[n]) for n in names}
    wanted = [named[n] for n in names]
    for batch in batches:
        # row by row: transformers' norms round to float32 inside, and a weight in the loss would round otherwise
        for loss, weight in zip(_losses(model, batch), batch.weights):
            found = torch.autograd.grad(
                loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for n, gradient in zip(names, found):
                totals[n] += float(weight) * gradient
    return {layer.name: layer.matrix(totals) for layer in layers}


def hooked(model, layer, batches):
    """A and S of one layer, from plain hooks on its modules and plain sums over real positions."""
    aa, ss, P, T = 0.0, 0.0, 0.0, 0.0
    for batch in batches:
        inputs, outputs = [], []

        def keep(module, args, output, inputs=inputs, outputs=outputs):
            inputs.append(args[0].detach())
            outputs.append(output)

        handles = [module.register_forward_hook(keep) for module in layer.modules]
        loss = _losses(model, batch).sum()
        for handle in handles:
            handle.remove()
        real = batch.attention_mask.bool()
        weights = batch.weights[:, None].expand(real.shape)[real].to(inputs[0])
        for x, g in zip(inputs, torch.autograd.grad(loss, outputs)):
            a, s = (part.reshape(*real.shape, -1)[real] for part in (x, g))
            if layer.bias:
                a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
            aa, ss = aa + (a * weights[:, None]).T @ a, ss + (s * weights[:, None]).T @ s
        P += float(batch.weights @ real.sum(1).double())
        T += float(batch.weights @ (batch.labels[:, 1:] != -100).sum(1).double())
    return aa / P, ss / T


def _losses(model, batch):
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    each = cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return each.view(len(batch.row_ids), -1).sum(1)


def _parameters(layer):
    return [f"{layer.name}.weight"] + ([f"{layer.name}.bias"] if layer.bias else [])
