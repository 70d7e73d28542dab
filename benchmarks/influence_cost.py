"""What an influence stage costs, against one epoch of training at its best and against bare forward and backward.

Flows in: a SmolLM2-shaped size. Flows out: seconds, peak memory, and the tokens of every pass.

    python -m benchmarks.influence_cost --json [--size 5M|26M|135M] [--curvature ekfac kfac] [--rows N] [--threads 2]

* stage: `idealmix.influence_stage.measure` as a run calls it, four domains and four references, every domain row drawn.
* epoch: AdamW over the same rows once, gradient checkpointing off, batches sorted by length, the faster of float32 and
  bfloat16 and the best batch size, chosen by short trials under the memory that the largest trial needs.
* bare: forward and backward with parameter gradients over the tokens that the stage's passes read, nothing else.
* passes: processor time of one pass of each kind over a few batches, divided by that of bare on the same batches.
* stores: the stage's seconds and peak with its matrices in memory and on disk.

``--only passes`` and ``--only stores`` measure that part alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measured import Clock, Peak, alone, told
from benchmarks.workload import SHAPES, four_and_four, whole
from idealmix.config import Influence
from idealmix.curvature import Collector, make_batches, row_dots, select_layers, sum_gradient
from idealmix.curvature.basis import eigenbases
from idealmix.curvature.factors import fit_eigenvalues, fit_factors
from idealmix.influence_stage import measure

BATCH_TOKENS = (1024, 2048, 4096, 8192)


def stage(threads: int, settings: dict[str, Any], **data: Any) -> dict[str, Any]:
    """The whole stage."""
    torch.set_num_threads(threads)
    model, domains, references = four_and_four(**data)
    passes: dict[str, float] = {}
    peak, clock, last = Peak(), Clock(), 0.0
    peak.reset()

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal last
        now = clock.wall
        passes[detail] = passes.get(detail, 0.0) + now - last
        last = now

    matrix = measure(model, whole(domains), domains, references, Influence(**settings), progress=progress)
    return {
        "seconds": clock.wall,
        "cpu_s": clock.cpu,
        "peak_mb": peak.value(),
        "pass_s": {name: round(value, 2) for name, value in passes.items()},
        "tokens": matrix.facts["tokens"],
        "pass_tokens": matrix.facts.get("pass_tokens"),
    }


def bare(model: Any, batches: list[Any]) -> None:
    """Forward and backward with parameter gradients, nothing else."""
    for batch in batches:
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        targets = batch.labels[:, 1:]
        kept = targets != -100
        torch.nn.functional.cross_entropy(out[kept].float(), targets[kept], reduction="sum").backward()
        model.zero_grad(set_to_none=True)


def passes(threads: int, batch_tokens: int, batches: int, repeats: int, **data: Any) -> dict[str, Any]:
    """One pass of each kind, in turn; the least processor time of each."""
    torch.set_num_threads(threads)
    model, domains, _ = four_and_four(**data)
    every = make_batches(_rows(domains), batch_tokens)
    chosen = every[:: max(1, len(every) // batches)][:batches]
    collector, plain = Collector(model, select_layers(model)), Collector(model, [])
    queries = {layer.name: torch.randn(4, layer.d_out, layer.d_in) for layer in collector.layers}
    factors = fit_factors(collector, chosen, 0)
    bases, _ = eigenbases(dict(factors.A), dict(factors.S))
    work: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(model, chosen),
        "frozen": lambda: _frozen(model, plain, chosen),
        "hooks": lambda: list(collector.sweep(chosen)),
        "sampled labels": lambda: list(collector.sweep(chosen, label_seed=0)),
        "sum of gradients": lambda: sum_gradient(collector, chosen),
        "rows' dots": lambda: row_dots(collector, chosen, queries, total=True),
        "covariances": lambda: fit_factors(collector, chosen, 0),
        "eigenvalues": lambda: fit_eigenvalues(collector, chosen, 0, bases),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, run in work.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    began = time.process_time()
    eigenbases(dict(factors.A), dict(factors.S))
    return {
        "tokens": sum(int(batch.real.sum()) for batch in chosen),
        "bare_s": round(best["bare"], 3),
        "ratios": {name: round(seconds / best["bare"], 3) for name, seconds in best.items()},
        "eigendecompositions_s": round(time.process_time() - began, 2),
    }


def _frozen(model: Any, plain: Collector, batches: list[Any]) -> None:
    """Forward and backward to the embeddings' output, without gradients of parameters and without hooks."""
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, args, out: out.detach().requires_grad_())
    model.requires_grad_(False)
    for batch in batches:
        targets = plain.task.targets(batch)
        kept = targets != -100
        scores = plain.task.scores(model, batch, kept)
        torch.nn.functional.cross_entropy(scores, targets[kept], reduction="sum").backward()
    handle.remove()
    model.requires_grad_(True)


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
    clock = Clock()
    if optimise:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
        for batch in batches:
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
            targets = batch.labels[:, 1:]
            kept = targets != -100
            torch.nn.functional.cross_entropy(out[kept].float(), targets[kept]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    else:
        bare(model, batches)
    return {
        "seconds": clock.wall,
        "cpu_s": clock.cpu,
        "tokens": read,
        "peak_mb": peak.value(),
        "batches": len(batches),
    }


def compare(
    size: str,
    curvature: list[str],
    rows: int,
    tokens: int,
    reference_rows: int,
    threads: int,
    repeats: int,
    batch_tokens: int,
    curvature_fraction: float | None,
    only: str | None,
) -> dict:
    """All of it, each alone in a process; ratios are medians of `repeats` interleaved runs."""
    data = {"size": size, "rows": rows, "tokens": tokens, "reference_rows": reference_rows}
    if only == "passes":
        return alone(
            "benchmarks.influence_cost:passes",
            threads=threads, batch_tokens=batch_tokens, batches=4, repeats=repeats, **data,
        )  # fmt: skip
    if only == "stores":
        return _stores(curvature[0], threads, repeats, batch_tokens, data)
    trials = {
        (dtype, batch): alone(
            "benchmarks.influence_cost:epoch",
            threads=threads, batch_tokens=batch, dtype=dtype, optimise=True,
            part=0.1 if dtype == "float32" else 0.01, **data,
        )
        for dtype in ("float32", "bfloat16")
        for batch in (BATCH_TOKENS if dtype == "float32" else BATCH_TOKENS[:1])
    }  # fmt: skip
    best = max(trials, key=lambda key: trials[key]["tokens"] / trials[key]["cpu_s"])
    settings = {
        kind: {
            "curvature": kind, "sample_fraction": 0.5, "batch_tokens": best[1],
            "curvature_fraction": curvature_fraction or "auto",
        }
        for kind in curvature
    }  # fmt: skip
    stages: dict[str, list[dict[str, Any]]] = {kind: [] for kind in curvature}
    epochs, bares = [], []
    for _ in range(repeats):
        shared = {"threads": threads, "batch_tokens": best[1], "part": 1.0, **data}
        for kind, found in stages.items():
            found.append(
                alone("benchmarks.influence_cost:stage", threads=threads, settings=settings[kind], **data)
            )
        epochs.append(alone("benchmarks.influence_cost:epoch", dtype=best[0], optimise=True, **shared))
        bares.append(alone("benchmarks.influence_cost:epoch", dtype=best[0], optimise=False, **shared))
    by_curvature = {kind: _ratios(found, epochs, bares) for kind, found in stages.items()}
    return {
        "size": size, "threads": threads, "rows": rows, "mean_tokens": tokens, "curvature": curvature[0],
        **by_curvature[curvature[0]],
        "epoch_s": _median(e["seconds"] for e in epochs),
        "epoch_peak_mb": _median(e["peak_mb"] for e in epochs),
        "epoch_tokens": epochs[0]["tokens"],
        "best_epoch": {"dtype": best[0], "batch_tokens": best[1]},
        "trials": {f"{d}/{b}": round(t["tokens"] / t["cpu_s"]) for (d, b), t in trials.items()},
        "by_curvature": by_curvature,
    }  # fmt: skip


def _ratios(stages: list[Any], epochs: list[Any], bares: list[Any]) -> dict[str, Any]:
    """Of one curvature; by the wall, and by the processor's time, which hardly feels what else the machine does."""
    read = sum(stages[0]["pass_tokens"].values())
    found: dict[str, Any] = {}
    for seconds, unit in (("cpu_s", "processor"), ("seconds", "wall")):
        times = [stage[seconds] for stage in stages]
        bare = [each[seconds] / each["tokens"] * read for each in bares]
        to_epoch = [time / epoch[seconds] for time, epoch in zip(times, epochs)]
        found[unit] = {
            "stage_s": _median(times),
            "bare_forward_backward_s": _median(bare),
            "ratio_to_bare": _median(time / each for time, each in zip(times, bare)),
            "ratio_to_epoch": _median(to_epoch),
            "spread": [round(each, 3) for each in to_epoch],
        }
    return {
        **found.pop("wall"), **found,
        "peak_ratio_to_training": _median(s["peak_mb"] / e["peak_mb"] for s, e in zip(stages, epochs)),
        "stage_peak_mb": _median(s["peak_mb"] for s in stages),
        "pass_tokens": stages[0]["pass_tokens"], "pass_s": stages[0]["pass_s"],
    }  # fmt: skip


def _stores(
    curvature: str, threads: int, repeats: int, batch_tokens: int, data: dict[str, Any]
) -> dict[str, Any]:
    """The stage in memory and on disk, in turn, beside the peak of an epoch of the same batches."""
    runs: dict[str, list[dict[str, Any]]] = {"memory": [], "disk": []}
    for _ in range(repeats):
        for store, found in runs.items():
            settings = {
                "curvature": curvature, "sample_fraction": 0.5, "batch_tokens": batch_tokens, "store": store,
            }  # fmt: skip
            found.append(alone("benchmarks.influence_cost:stage", threads=threads, settings=settings, **data))
    trained = alone(
        "benchmarks.influence_cost:epoch",
        threads=threads, batch_tokens=batch_tokens, dtype="float32", optimise=True, part=0.1, **data,
    )  # fmt: skip
    return {
        **data, "curvature": curvature, "batch_tokens": batch_tokens, "threads": threads,
        "seconds": {store: [round(run["seconds"], 1) for run in found] for store, found in runs.items()},
        "cpu_s": {store: [round(run["cpu_s"], 1) for run in found] for store, found in runs.items()},
        "peak_mb": {store: [round(run["peak_mb"]) for run in found] for store, found in runs.items()},
        "training_peak_mb": round(trained["peak_mb"]),
    }  # fmt: skip


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="26M")
    parser.add_argument("--curvature", nargs="+", choices=("ekfac", "kfac"), default=["ekfac"])
    parser.add_argument("--rows", type=int, default=500, help="of each domain")
    parser.add_argument("--tokens", type=int, default=128, help="mean of a row")
    parser.add_argument("--reference-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="with --only")
    parser.add_argument("--curvature-fraction", type=float, help="default: auto, as in a run")
    parser.add_argument("--only", choices=("passes", "stores"))
    told(parser, compare)


if __name__ == "__main__":
    main()
