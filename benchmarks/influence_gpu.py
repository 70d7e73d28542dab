"""How fast the engine's passes are on an accelerator, at the shape of Llama-3.1-8B with fewer layers.

Flows in: how many of the 32 layers, which of them are measured, the curvature. Flows out: for each kind of pass tokens a second, and the
share of the chip's own bfloat16 rate that forward and backward alone (4 floating-point operations a parameter and token, the head where
there is a label) make of it; seconds of the decompositions; peak memory.

    python -m benchmarks.influence_gpu --json [--depth 2] [--layers mlp linear] [--curvature ekfac kfac]

Random bfloat16 weights, four domains of `--rows` rows of some 512 tokens, half of them supervised, four references of 25. Every pass over the
data ends in a synchronisation. The whole model's passes take 32 / depth times as long for all but the head; so do decompositions.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.influence_cost import bare
from benchmarks.measured import told
from benchmarks.workload import pools, whole
from idealmix.config import Influence
from idealmix.curvature import make_batches
from idealmix.influence_stage import measure

VOCABULARY = 128256


def model_of(depth: int) -> LlamaForCausalLM:
    """Llama-3.1-8B's width, random bfloat16 weights."""
    config = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=depth,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)


def rate(size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a bfloat16 product of random square matrices, the median."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(seconds)[repeats // 2]


def seconds_bare(model: Any, batches: list[Any]) -> float:
    """Of forward and backward with parameter gradients, the second of two runs."""
    model.requires_grad_(True)
    there = [batch.to("cuda") for batch in batches]
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        bare(model, there)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds


def stage(model: Any, settings: Influence, rows: int) -> dict[str, Any]:
    """One whole stage, its seconds by what was being done."""
    domains = pools("domain", 4, rows, 512, VOCABULARY, seed=1)
    references = pools("reference", 4, 25, 512, VOCABULARY, seed=2)
    took: dict[str, float] = {}
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    began = last = time.perf_counter()

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal last
        torch.cuda.synchronize()
        now = time.perf_counter()
        took[detail] = took.get(detail, 0.0) + now - last
        last = now

    matrix = measure(model, whole(domains), domains, references, settings, progress=progress)
    torch.cuda.synchronize()
    return {
        "stage_s": round(time.perf_counter() - began, 2),
        "seconds": {name: round(value, 2) for name, value in took.items()},
        "pass_tokens": matrix.facts["pass_tokens"],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }


def compare(
    depth: int, layers: list[str], curvature: list[str], rows: int, batch_tokens: int
) -> dict[str, Any]:
    """All of it."""
    model, chip = model_of(depth), rate()
    inside = sum(p.numel() for name, p in model.named_parameters() if "layers." in name)
    few = pools("domain", 4, max(2, rows // 8), 512, VOCABULARY, seed=1)
    batches = make_batches(
        [(f"{n}/{r.id}", r.input_ids, r.labels, 1.0) for n, p in few.items() for r in map(p.row, range(len(p)))],
        batch_tokens,
    )  # fmt: skip
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    seconds = seconds_bare(model, batches)
    found = {
        f"{where} {kind}": stage(
            model,
            Influence(
                curvature=kind, layers=where, sample_fraction=1.0, batch_tokens=batch_tokens, store="memory"
            ),
            rows,
        )
        for where in layers
        for kind in curvature
    }
    return {
        "chip": torch.cuda.get_device_name(), "bf16_tflops": round(chip / 1e12, 1), "depth": depth, "rows": rows,
        "parameters_in_layers": inside, "head": 4096 * VOCABULARY,
        "bare": {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds),
                 "share_of_chip": round(6 * (inside + 4096 * VOCABULARY) * tokens / seconds / chip, 3)},
        "stages": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--layers", nargs="+", choices=("mlp", "linear"), default=["mlp", "linear"])
    parser.add_argument("--curvature", nargs="+", choices=("ekfac", "kfac"), default=["ekfac", "kfac"])
    parser.add_argument("--rows", type=int, default=250, help="of each domain")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    told(parser, compare)


if __name__ == "__main__":
    main()
