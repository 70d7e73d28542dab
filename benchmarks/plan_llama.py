"""What `idealmix plan` predicts for the influence stage of Llama-3.1-8B on one H200. A prediction: nothing is measured.

Flows in: the model's sizes, 4 domains of 250 rows x 512 tokens, 4 gradient halves of 25 rows x 512 tokens. Flows out: a
Markdown table of mlp and all-linear layers, EK-FAC and K-FAC, matrices in memory and on disk; with --json one JSON object
as the last line.

    python -m benchmarks.plan_llama --json
"""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig

from idealmix.config import Config
from idealmix.plan.machine import GIB, MACHINES
from idealmix.plan.memory import Batch
from idealmix.plan.phases import Phase, make_plan
from idealmix.plan.shapes import Blueprint
from idealmix.plan.work import Answers, Rows, Training, Work, curvature_part

DOMAINS, ROWS, LENGTH, HELD_OUT = 4, 250, 512, 25
MODEL = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    max_position_embeddings=131072,
    bos_token_id=None,
    eos_token_id=None,
)


def work(part: float) -> Work:
    """Rows of one length, half of it supervised; every drawn row is measured, none is left unused."""

    def rows(sets: int, number: int) -> Rows:
        return Rows.of([([LENGTH] * number, [LENGTH // 2] * number, [LENGTH // 2] * number)] * sets)

    fitted, measured, held_out = rows(DOMAINS, round(part * ROWS)), rows(DOMAINS, ROWS), rows(4, HELD_OUT)
    return Work(
        training=Training(
            DOMAINS * ROWS, DOMAINS * ROWS, measured.tokens, measured.tokens, Batch(1, LENGTH, 256)
        ),
        references=rows(8, HELD_OUT),
        passes={
            "covariances": fitted,
            "eigenvalues": fitted,
            "references": held_out,
            "domains": measured,
            "reference rows": held_out,
        },
        reference_sets=4,
        samples=DOMAINS,
        tests=Rows.of([]),
        answers=Answers(),
        watched=Answers(),
        bytes_of_rows=0.0,
    )


def settings(**influence: str) -> Config:
    """The configuration that matters here."""
    names = [f"domain-{n}" for n in range(DOMAINS)]
    data = {
        "model": "llama", "domains": dict.fromkeys(names, "-"), "references": dict.fromkeys(names, "-"),
        "influence": {"sample_fraction": 1.0, **influence},
    }  # fmt: skip
    return Config.model_validate(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    blueprint, machine = Blueprint(MODEL), MACHINES["h200"]
    found: list[dict[str, Any]] = []
    for layers in ("mlp", "linear"):
        for curvature in ("ekfac", "kfac"):
            for store in ("memory", "disk"):
                chosen = settings(layers=layers, curvature=curvature, store=store)
                drawn = [SimpleNamespace(tokens=ROWS * LENGTH, rows=ROWS)] * DOMAINS
                part = curvature_part(chosen.influence, MODEL.intermediate_size, drawn)
                plan = make_plan(chosen, blueprint, work(part), machine, "bfloat16")
                phases = {p.name.removeprefix("influence: "): p for p in plan.phases if "influence" in p.name}
                found.append(_row(layers, curvature, store, phases, machine.memory))
    keys = list(found[0])
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in found:
        print("| " + " | ".join(str(row[key]) for key in keys) + " |")
    if options.json:
        print(json.dumps({"machine": "h200", "predicted": found}))


def _row(layers: str, curvature: str, store: str, phases: dict[str, Phase], memory: float) -> dict[str, Any]:
    peak = max(phase.peak or 0.0 for phase in phases.values())
    seconds = {name: phase.seconds or 0.0 for name, phase in phases.items()}
    decomposed = seconds.get("eigendecompositions", 0.0) + seconds.get("Cholesky factors", 0.0)
    gradients = seconds["references"] + seconds["domains"] + seconds["reference rows"]
    return {
        "layers": layers,
        "curvature": curvature,
        "matrices": store,
        "peak, GiB": round(peak / GIB),
        "fits": "yes" if peak <= memory else "no",
        "scratch, GiB": round(max(phase.scratch for phase in phases.values()) / GIB),
        "factors, s": round(seconds["covariances"] + seconds.get("eigenvalues", 0.0)),
        "decompositions, s": round(decomposed),
        "gradients, s": round(gradients),
        "all, s": round(sum(seconds.values())),
    }


if __name__ == "__main__":
    main()
