"""The same influence matrix by kronfluence 1.0.1 and by idealmix: time, peak memory, agreement.

Flows in: a SmolLM2-shaped size and generated rows of unequal length. Flows out: seconds, peaks, the cosine of the two
reference x domain matrices.

    python -m benchmarks.against_kronfluence --json [--size 5M] [--rows 60] [--threads 2]

Both: EK-FAC on every linear layer but the head, the rows' own labels (empirical Fisher, so that the labels are the
same), every row measured, float32, damping a tenth of each layer's mean eigenvalue. kronfluence goes two routes: its
default (a score for every pair of rows, summed here), and aggregated gradients (one query and one training gradient a
call). Its rows are given sorted by length, so that it pads as little as we do. Ours also gives every row's share and both errors.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Clock, Peak, alone, told
from benchmarks.workload import DOMAINS, SHAPES, four_and_four, whole

RHO = 0.1  # kronfluence's default: 0.1 of the mean eigenvalue
BATCH_ROWS = 8


def ours(threads: int, **data: Any) -> dict[str, Any]:
    """Our whole stage."""
    from idealmix.config import Influence
    from idealmix.curvature import damping
    from idealmix.influence_stage import measure

    torch.set_num_threads(threads)
    model, domains, references = four_and_four(**data)
    longest = max(len(pool.row(i).input_ids) for pool in domains.values() for i in range(len(pool)))
    settings = Influence(
        damping=RHO, fisher="empirical", sample_fraction=1.0, curvature_fraction=1.0,
        batch_tokens=BATCH_ROWS * longest,
    )  # fmt: skip
    # kronfluence has no floor: a layer of little curvature gets as little damping as it does there
    damping.FLOOR = 0.0
    peak = Peak()
    peak.reset()
    clock = Clock()
    matrix = measure(model, whole(domains), domains, references, settings)
    return {
        "seconds": clock.wall, "cpu_s": clock.cpu, "peak_mb": peak.value(),
        "matrix": matrix.moments.mean[:, :DOMAINS].tolist(),
    }  # fmt: skip


def theirs(threads: int, aggregated: bool, **data: Any) -> dict[str, Any]:
    """kronfluence: factors, then scores."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    from idealmix.curvature import select_layers

    torch.set_num_threads(threads)
    model, domains, references = four_and_four(**data)
    names = [layer.name for layer in select_layers(model)]

    class SummedLoss(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
                :, :-1
            ]
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch["attention_mask"]

    def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        pad = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], True, value)
            for key, value in pad.items()
        }

    def listed(pool: Any) -> list[dict[str, torch.Tensor]]:
        rows = [
            {
                "input_ids": torch.tensor(row.input_ids),
                "attention_mask": torch.ones(len(row.input_ids), dtype=torch.long),
                "labels": torch.tensor(row.labels),
            }
            for row in map(pool.row, range(len(pool)))
        ]
        return sorted(rows, key=lambda row: -len(row["labels"]))

    training = {name: listed(pool) for name, pool in domains.items()}
    queries = {name: listed(pool) for name, pool in references.items()}
    everything = sorted(
        (row for rows in training.values() for row in rows), key=lambda row: -len(row["labels"])
    )
    task = SummedLoss()
    model = prepare_model(model, task)
    peak = Peak()
    peak.reset()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "speed", model, task, cpu=True, output_dir=folder, disable_tqdm=True, disable_model_save=True
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=padded))
        analyzer.fit_all_factors(
            "factors", everything, per_device_batch_size=BATCH_ROWS,
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        )  # fmt: skip
        matrix = np.zeros((len(queries), len(training)))
        score = ScoreArguments(
            damping_factor=None, aggregate_query_gradients=aggregated, aggregate_train_gradients=aggregated
        )
        for q, asked in enumerate(queries.values()):
            for i, rows in enumerate(training.values()):
                name = f"{q}-{i}"
                analyzer.compute_pairwise_scores(
                    name, "factors", asked, rows, BATCH_ROWS, BATCH_ROWS, score_args=score
                )
                matrix[q, i] = analyzer.load_pairwise_scores(name)["all_modules"].double().sum()
        assert Path(folder).exists()
    seconds, cpu = clock.wall, clock.cpu
    counts = [
        np.array([sum(int((row["labels"][1:] != -100).sum()) for row in rows) for rows in sets.values()])
        for sets in (queries, training)
    ]
    return {
        "seconds": seconds, "cpu_s": cpu, "peak_mb": peak.value(),
        "matrix": (matrix / counts[0][:, None] / counts[1]).tolist(),
    }  # fmt: skip


def compare(size: str, rows: int, tokens: int, reference_rows: int, threads: int) -> dict[str, Any]:
    """Each alone in a process."""
    data = {
        "size": size,
        "rows": rows,
        "tokens": tokens,
        "reference_rows": reference_rows,
        "threads": threads,
    }
    us = alone("benchmarks.against_kronfluence:ours", **data)
    pairs = alone("benchmarks.against_kronfluence:theirs", aggregated=False, **data)
    sums = alone("benchmarks.against_kronfluence:theirs", aggregated=True, **data)
    cosines = [_cosine(us["matrix"], other["matrix"]) for other in (pairs, sums)]
    return {
        **data,
        "ours_s": round(us["seconds"], 2),
        "theirs_s": round(pairs["seconds"], 2),
        "speedup": round(pairs["seconds"] / us["seconds"], 2),
        "theirs_aggregated_s": round(sums["seconds"], 2),
        "speedup_aggregated": round(sums["seconds"] / us["seconds"], 2),
        "processor": {
            "ours_s": round(us["cpu_s"], 2),
            "theirs_s": round(pairs["cpu_s"], 2),
            "speedup": round(pairs["cpu_s"] / us["cpu_s"], 2),
            "theirs_aggregated_s": round(sums["cpu_s"], 2),
            "speedup_aggregated": round(sums["cpu_s"] / us["cpu_s"], 2),
        },
        "cosine": round(min(cosines), 6),
        "ours_peak_mb": round(us["peak_mb"]),
        "theirs_peak_mb": round(pairs["peak_mb"]),
        "theirs_aggregated_peak_mb": round(sums["peak_mb"]),
    }


def _cosine(one: Any, other: Any) -> float:
    a, b = np.ravel(one), np.ravel(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SHAPES, default="5M")
    parser.add_argument("--rows", type=int, default=100, help="of each domain")
    parser.add_argument("--tokens", type=int, default=128, help="mean of a row")
    parser.add_argument("--reference-rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    told(parser, compare)


if __name__ == "__main__":
    main()
