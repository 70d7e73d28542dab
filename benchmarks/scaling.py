"""How the influence stage's time grows with tokens, width, depth and the number of domains.

Flows in: a base case. Flows out: seconds for each case and the fitted exponents (slope of log seconds over log size).

    python -m benchmarks.scaling --json [--threads 2] [--repeats 3]

Each factor is varied alone; the curvature rests on all measured rows (curvature_fraction 1), so that nothing saturates. With more
domains the rows of each stay the same, so tokens grow with them: an exponent of 1 is linear in domains.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Peak, alone, told
from benchmarks.workload import Shape, build, pools, whole

BASE = Shape(width=192, depth=4, heads=3, key_value_heads=1, inner=512, vocabulary=2048)
ROWS, DOMAINS = 64, 4


def stage(shape: dict[str, int], domains: int, rows: int, threads: int) -> dict[str, Any]:
    """One measurement."""
    from idealmix.config import Influence
    from idealmix.influence_stage import measure

    torch.set_num_threads(threads)
    model = build(Shape(**shape))
    training = pools("domain", domains, rows, 128, shape["vocabulary"], seed=1)
    references = pools("reference", 4, 16, 128, shape["vocabulary"], seed=2)
    settings = Influence(sample_fraction=1.0, curvature_fraction=1.0, store="memory")
    peak = Peak()
    peak.reset()
    began = time.perf_counter()
    matrix = measure(model, whole(training), training, references, settings)
    return {
        "seconds": time.perf_counter() - began, "peak_mb": peak.value(),
        "tokens": sum(matrix.facts["tokens"]["drawn"].values()),
    }  # fmt: skip


def cases() -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """By factor: its size, and the arguments of `stage`."""

    def case(shape: Shape = BASE, domains: int = DOMAINS, rows: int = ROWS) -> dict[str, Any]:
        return {"shape": asdict(shape), "domains": domains, "rows": rows}

    def wide(times: int) -> Shape:
        return replace(BASE, width=192 * times, heads=3 * times, key_value_heads=times, inner=512 * times)

    return {
        "tokens": [(rows, case(rows=rows)) for rows in (64, 128, 256)],
        "width": [(192 * times, case(wide(times))) for times in (1, 2, 3)],
        "depth": [(depth, case(replace(BASE, depth=depth))) for depth in (4, 8, 16)],
        "domains": [(domains, case(domains=domains)) for domains in (2, 4, 8, 16)],
    }


def compare(threads: int, repeats: int) -> dict[str, Any]:
    """Medians and exponents."""
    found: dict[str, Any] = {
        "threads": threads,
        "repeats": repeats,
        "exponents": {},
        "seconds": {},
        "peak_mb": {},
    }
    for factor, sizes in cases().items():
        points, peaks = [], []
        for size, arguments in sizes:
            runs = [alone("benchmarks.scaling:stage", threads=threads, **arguments) for _ in range(repeats)]
            points.append((size, statistics.median(run["seconds"] for run in runs)))
            peaks.append((size, round(statistics.median(run["peak_mb"] for run in runs))))
        slope = np.polyfit([math.log(x) for x, _ in points], [math.log(y) for _, y in points], 1)[0]
        found["exponents"][factor] = round(float(slope), 3)
        found["seconds"][factor] = {str(x): round(y, 2) for x, y in points}
        found["peak_mb"][factor] = {str(x): y for x, y in peaks}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    told(parser, compare)


if __name__ == "__main__":
    main()
