"""How the influence stage's time grows with tokens, width, depth and the number of domains.

Flows in: a base case. Flows out: processor seconds for each case, the fitted exponents (slope of log seconds over log size) with their
spread over the repeats, and the part of the time that does not grow (intercept of a straight line).

    python -m benchmarks.scaling --json [--threads 1] [--repeats 3]

Each factor is varied alone; the curvature rests on all measured rows (curvature_fraction 1), so that nothing saturates. With more
domains the rows of each stay the same, so tokens grow with them: an exponent of 1 is linear in domains. The references and what is
done once (decompositions) do not grow with either.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Clock, Peak, alone, told
from benchmarks.workload import Shape, build, pools, whole

BASE = Shape(width=128, depth=4, heads=2, key_value_heads=1, inner=344, vocabulary=1024)
ROWS, DOMAINS, TOKENS, REFERENCE_ROWS = 32, 4, 64, 8


def stage(shape: dict[str, int], domains: int, rows: int, threads: int) -> dict[str, Any]:
    """One measurement."""
    from idealmix.config import Influence
    from idealmix.influence_stage import measure

    torch.set_num_threads(threads)
    model = build(Shape(**shape))
    training = pools("domain", domains, rows, TOKENS, shape["vocabulary"], seed=1)
    references = pools("reference", 4, REFERENCE_ROWS, TOKENS, shape["vocabulary"], seed=2)
    settings = Influence(sample_fraction=1.0, curvature_fraction=1.0, store="memory")
    few = pools("few", 1, 4, TOKENS, shape["vocabulary"], seed=3)
    measure(model, whole(few), few, few, settings)  # what is made on first use
    peak = Peak()
    peak.reset()
    clock = Clock()
    matrix = measure(model, whole(training), training, references, settings)
    return {
        "cpu_s": clock.cpu, "seconds": clock.wall, "peak_mb": peak.value(),
        "tokens": sum(matrix.facts["tokens"]["drawn"].values()),
    }  # fmt: skip


def cases() -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """By factor: its size, and the arguments of `stage`."""

    def case(shape: Shape = BASE, domains: int = DOMAINS, rows: int = ROWS) -> dict[str, Any]:
        return {"shape": asdict(shape), "domains": domains, "rows": rows}

    def wide(times: int) -> Shape:
        return replace(BASE, width=128 * times, heads=2 * times, key_value_heads=times, inner=344 * times)

    return {
        "tokens": [(rows, case(rows=rows)) for rows in (32, 64, 128)],
        "width": [(128 * times, case(wide(times))) for times in (1, 2, 3)],
        "depth": [(depth, case(replace(BASE, depth=depth))) for depth in (4, 8, 16)],
        "domains": [(domains, case(domains=domains)) for domains in (4, 8, 16)],
    }


def compare(threads: int, repeats: int, factors: list[str]) -> dict[str, Any]:
    """Medians and exponents."""
    found: dict[str, Any] = {"threads": threads, "repeats": repeats}
    found |= {key: {} for key in ("exponents", "spread", "fixed_share", "seconds", "peak_mb")}
    known: dict[str, list[dict[str, Any]]] = {}
    for factor, sizes in ((factor, cases()[factor]) for factor in factors):
        runs = []
        for _, arguments in sizes:
            key = repr(arguments)  # the base case is in every factor
            if key not in known:
                known[key] = [
                    alone("benchmarks.scaling:stage", threads=threads, **arguments) for _ in range(repeats)
                ]
            runs.append(known[key])
        x = np.array([size for size, _ in sizes])
        times = np.array([[run["cpu_s"] for run in case] for case in runs])  # sizes x repeats
        middle = np.median(times, 1)
        slopes = [float(np.polyfit(np.log(x), np.log(column), 1)[0]) for column in (middle, *times.T)]
        found["exponents"][factor] = round(slopes[0], 3)
        found["spread"][factor] = [round(min(slopes[1:]), 3), round(max(slopes[1:]), 3)]
        if factor in ("tokens", "domains"):  # linear, up to what is done once
            found["fixed_share"][factor] = round(float(np.polyfit(x, middle, 1)[1] / middle[0]), 3)
        found["seconds"][factor] = {str(size): round(float(t), 2) for size, t in zip(x, middle)}
        found["peak_mb"][factor] = {
            str(size): round(statistics.median(run["peak_mb"] for run in case)) for size, case in zip(x, runs)
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--factors", nargs="+", choices=list(cases()), default=list(cases()))
    told(parser, compare)


if __name__ == "__main__":
    main()
