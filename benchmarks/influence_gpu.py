"""How fast the engine's passes are on an accelerator, at the shape of Llama-3.1-8B with fewer layers.

Flows in: a shape, how many of its layers, which linear layers are measured, the curvature. Flows out: the device's own bfloat16 rate; of forward and
backward alone with parameter gradients (6 floating-point operations a parameter and token) tokens a second and the share of that rate; of each
stage its seconds by what was being done, the tokens of its passes, its peak memory on the device.

    python -m benchmarks.influence_gpu --json [--depth 2] [--layers mlp linear] [--curvature ekfac kfac]

Random bfloat16 weights, four domains of `--rows` rows of some `--tokens` tokens, half of them supervised, four references of 25. Every batch
ends in a synchronisation. The whole model's passes take 32 / depth times as long for all but the head, and so do its decompositions.
It runs on a CPU too (`--size tiny`), where there is no peak and float32 stands in.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.influence_cost import bare
from benchmarks.measured import told
from benchmarks.workload import SHAPES, build, pools, whole
from idealmix.config import Influence
from idealmix.curvature import make_batches
from idealmix.influence_stage import measure

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def now() -> float:
    """Seconds, when the device has done all that was asked."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(size: int, repeats: int = 20) -> float:
    """FLOP/s of a product of random square matrices, the median."""
    kind = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=DEVICE, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        began = now()
        a @ b
        seconds.append(now() - began)
    return 2 * size**3 / sorted(seconds)[repeats // 2]


def seconds_bare(model: Any, batches: list[Any]) -> float:
    """Of forward and backward with parameter gradients, the second of two runs."""
    model.requires_grad_(True)
    there = [batch.to(DEVICE) for batch in batches]
    bare(model, there)
    began = now()
    bare(model, there)
    return now() - began


def stage(model: Any, domains: Any, references: Any, settings: Influence) -> dict[str, Any]:
    """One whole stage."""
    took: dict[str, float] = {}
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = last = now()

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal last
        at = now()
        took[detail] = took.get(detail, 0.0) + at - last
        last = at

    matrix = measure(model, whole(domains), domains, references, settings, progress=progress)
    return {
        "stage_s": round(now() - began, 2),
        "seconds": {name: round(value, 2) for name, value in took.items()},
        "pass_tokens": matrix.facts["pass_tokens"],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if DEVICE == "cuda" else None,
    }


def compare(
    size: str,
    depth: int,
    layers: list[str],
    curvature: list[str],
    rows: int,
    tokens: int,
    batch_tokens: int,
) -> dict[str, Any]:
    """All of it."""
    shape = replace(SHAPES[size], depth=depth)
    with torch.device(DEVICE):
        model = build(shape)
    if DEVICE == "cuda":
        model = model.to(torch.bfloat16)
    domains = pools("domain", 4, rows, tokens, shape.vocabulary, seed=1)
    references = pools("reference", 4, 25, tokens, shape.vocabulary, seed=2)
    listed = [(f"{name}/{row.id}", row.input_ids, row.labels, 1.0)
              for name, pool in references.items() for row in map(pool.row, range(len(pool)))]  # fmt: skip
    batches = make_batches(listed, batch_tokens)
    read, chip = sum(int(batch.attention_mask.sum()) for batch in batches), rate(2 * shape.width)
    parameters = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name or shape.tied)
    seconds = seconds_bare(model, batches)
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "tflops": chip / 1e12, "size": size, "depth": depth, "rows": rows, "parameters": parameters,
        "bare": {"tokens": read, "seconds": round(seconds, 3), "tokens_per_s": round(read / seconds),
                 "share_of_rate": round(6 * parameters * read / seconds / chip, 3)},
        "stages": {
            f"{where} {kind}": stage(model, domains, references, Influence(
                curvature=kind, layers=where, sample_fraction=1.0, batch_tokens=batch_tokens, store="memory",
            ))
            for where in layers for kind in curvature
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="8B")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--layers", nargs="+", choices=("mlp", "linear"), default=["mlp", "linear"])
    parser.add_argument("--curvature", nargs="+", choices=("ekfac", "kfac"), default=["ekfac", "kfac"])
    parser.add_argument("--rows", type=int, default=250, help="of each domain")
    parser.add_argument("--tokens", type=int, default=512, help="mean of a row")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    told(parser, compare)


if __name__ == "__main__":
    main()
