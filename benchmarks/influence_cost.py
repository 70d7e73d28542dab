"""What an influence stage costs, against one epoch of training at its best and against bare forward and backward.

Flows in: a SmolLM2-shaped size. Flows out: seconds, peak memory, and the tokens of every pass.

    python -m benchmarks.influence_cost --json [--size 5M|26M|135M] [--curvature ekfac|kfac] [--rows N] [--threads 2]

* stage: `idealmix.influence_stage.measure` as a run calls it, four domains and four references, every domain row drawn.
* epoch: AdamW over the same rows once, gradient checkpointing off, batches sorted by length, the faster of float32 and
  bfloat16 and the best batch size, chosen by short trials under the memory that the largest trial needs.
* bare: forward and backward with parameter gradients over the tokens that the stage's passes read, nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.measured import Peak, alone, told
from benchmarks.workload import SHAPES, four_and_four, whole
from idealmix.config import Influence
from idealmix.curvature import make_batches
from idealmix.influence_stage import measure

BATCH_TOKENS = (1024, 2048, 4096, 8192)


def stage(threads: int, settings: dict[str, Any], **data: Any) -> dict[str, Any]:
    """The whole stage."""
    torch.set_num_threads(threads)
    model, domains, references = four_and_four(**data)
    passes: dict[str, float] = {}
    peak, began = Peak(), time.perf_counter()
    peak.reset()
    last = began

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal last
        now = time.perf_counter()
        passes[detail] = passes.get(detail, 0.0) + now - last
        last = now

    matrix = measure(model, whole(domains), domains, references, Influence(**settings), progress=progress)
    seconds = time.perf_counter() - began
    return {
        "stage_s": seconds,
        "peak_mb": peak.value(),
        "pass_s": {name: round(value, 2) for name, value in passes.items()},
        "tokens": matrix.facts["tokens"],
        "pass_tokens": matrix.facts.get("pass_tokens"),
    }


def _bare(model: Any, batches: list[Any]) -> float:
    began = time.perf_counter()
    for batch in batches:
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        targets = batch.labels[:, 1:]
        kept = targets != -100
        torch.nn.functional.cross_entropy(out[kept].float(), targets[kept], reduction="sum").backward()
        model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _rows(sets: Any) -> list[Any]:
    return [
        (f"{name}/{row.id}", row.input_ids, row.labels, 1.0)
        for name, pool in sets.items()
        for row in map(pool.row, range(len(pool)))
    ]


def epoch(
    threads: int, batch_tokens: int, dtype: str, optimise: bool, part: float, **data: Any
) -> dict[str, Any]:
    """Training (or bare passes) over the domains' rows, or an evenly chosen part of the batches."""
    torch.set_num_threads(threads)
    model, domains, _ = four_and_four(**data)
    model = model.to(getattr(torch, dtype)).train()
    batches = make_batches(_rows(domains), batch_tokens)
    batches = batches[:: max(1, round(1 / part))]
    read = sum(int(batch.attention_mask.sum()) for batch in batches)
    peak = Peak()
    peak.reset()
    if optimise:
        began = time.perf_counter()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
        for batch in batches:
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
            targets = batch.labels[:, 1:]
            kept = targets != -100
            torch.nn.functional.cross_entropy(out[kept].float(), targets[kept]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
    else:
        seconds = _bare(model, batches)
    return {"seconds": seconds, "tokens": read, "peak_mb": peak.value(), "batches": len(batches)}


def compare(
    size: str, curvature: str, rows: int, tokens: int, reference_rows: int, threads: int, repeats: int
) -> dict:
    """All of it, each alone in a process; ratios are medians of `repeats` interleaved runs."""
    data = {"size": size, "rows": rows, "tokens": tokens, "reference_rows": reference_rows}
    trials = {
        (dtype, batch): alone(
            "benchmarks.influence_cost:epoch",
            threads=threads, batch_tokens=batch, dtype=dtype, optimise=True, part=0.2, **data,
        )
        for dtype in ("float32", "bfloat16")
        for batch in (BATCH_TOKENS if dtype == "float32" else BATCH_TOKENS[:1])
    }  # fmt: skip
    best = max(trials, key=lambda key: trials[key]["tokens"] / trials[key]["seconds"])
    settings = {"curvature": curvature, "sample_fraction": 0.5, "batch_tokens": best[1]}
    stages, epochs, bares = [], [], []
    for _ in range(repeats):
        shared = {"threads": threads, "batch_tokens": best[1], "part": 1.0, **data}
        stages.append(alone("benchmarks.influence_cost:stage", threads=threads, settings=settings, **data))
        epochs.append(alone("benchmarks.influence_cost:epoch", dtype=best[0], optimise=True, **shared))
        bares.append(alone("benchmarks.influence_cost:epoch", dtype=best[0], optimise=False, **shared))
    first = stages[0]
    passes = first["pass_tokens"]
    per_token = [bare["seconds"] / bare["tokens"] for bare in bares]
    bare = [each * sum(passes.values()) for each in per_token]
    return {
        "size": size, "curvature": curvature, "threads": threads, "rows": rows, "mean_tokens": tokens,
        "stage_s": _median(s["stage_s"] for s in stages),
        "epoch_s": _median(e["seconds"] for e in epochs),
        "ratio_to_epoch": _median(s["stage_s"] / e["seconds"] for s, e in zip(stages, epochs)),
        "peak_ratio_to_training": _median(s["peak_mb"] / e["peak_mb"] for s, e in zip(stages, epochs)),
        "bare_forward_backward_s": _median(bare),
        "ratio_to_bare": _median(s["stage_s"] / b for s, b in zip(stages, bare)),
        "stage_peak_mb": _median(s["peak_mb"] for s in stages),
        "epoch_peak_mb": _median(e["peak_mb"] for e in epochs),
        "pass_tokens": passes, "pass_s": first["pass_s"], "epoch_tokens": epochs[0]["tokens"],
        "best_epoch": {"dtype": best[0], "batch_tokens": best[1]},
        "trials": {f"{d}/{b}": round(t["tokens"] / t["seconds"]) for (d, b), t in trials.items()},
        "spread": [round(s["stage_s"] / e["seconds"], 3) for s, e in zip(stages, epochs)],
    }  # fmt: skip


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="26M")
    parser.add_argument("--curvature", choices=("ekfac", "kfac"), default="ekfac")
    parser.add_argument("--rows", type=int, default=500, help="of each domain")
    parser.add_argument("--tokens", type=int, default=128, help="mean of a row")
    parser.add_argument("--reference-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    told(parser, compare)


if __name__ == "__main__":
    main()
