"""How near K-FAC and EK-FAC come to exact influence, by conjugate gradients, on small models trained on the skills.

Flows in: a case's name and a seed. Flows out: cosines with exact influence for every curvature and damping, by reference and by
layer, and what the parameters outside the layers change. Progress goes to stderr; with --json the last line is one JSON object.

    python -m benchmarks.fidelity_approximation --json                        # the written cases, seeds 0 and 1
    python -m benchmarks.fidelity_approximation --json --case base --seeds 0  # the shipped base model, fine-tuned; hours

wide    a Llama of one layer, some two thousand parameters in its linear layers, trained from random weights
many    the same, with four times the rows behind the matrix
deep    two narrower layers, trained for longer
base    the shipped model of 669,568 parameters, fine-tuned for one epoch

The first three are so small that their Gauss-Newton matrix is written out in float64 and solved directly; one system is solved by
conjugate gradients too, and must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from idealmix.curvature import make_batches
from idealmix.diagnostics.fidelity import Nearness, Sets, measure_fidelity
from idealmix.skills import REFERENCED, SKILLS, base_model_path
from idealmix.skills.generator import generate

TARGET = 0.95
Row = tuple[str, list[int], list[int], float]


@dataclass(frozen=True)
class Case:
    """A model, how it is trained, and how many rows of each skill are drawn, act, and refer.

    Attributes:
        shape: width, feed-forward width, layers; None: the shipped base model.
    """

    shape: tuple[int, int, int] | None
    rows: int
    measured: int
    references: int
    epochs: int
    rate: float
    dampings: tuple[float, ...]


CASES = {
    "wide": Case((16, 20, 1), 240, 16, 16, 6, 5e-3, (1.0, 10.0, 0.1)),
    "many": Case((16, 20, 1), 240, 64, 16, 6, 5e-3, (1.0, 10.0, 0.1)),
    "deep": Case((12, 12, 2), 240, 10, 12, 10, 5e-3, (1.0, 10.0, 0.1)),
    "base": Case(None, 400, 30, 30, 1, 6e-4, (1.0,)),
}


def model_of(case: Case, seed: int) -> Any:
    """Untrained."""
    if case.shape is None:
        return AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    torch.manual_seed(seed)
    width, wide, layers = case.shape
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=2,
            vocab_size=102,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )
    )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                # transformers' computes in float32 whatever the model's dtype: the matrix would be symmetric to 1e-7 only
                setattr(module, name, torch.nn.RMSNorm(width, eps=child.variance_epsilon))
    return model


def rows_of(tokenizer: Any, skill: str, count: int, seed: int, split: str) -> list[Row]:
    """Encoded rows; the prompt has no loss."""
    found = []
    for row in generate(skill, count, seed, split):
        question = tokenizer.encode(f"<user>{row['prompt']}<assistant>")
        answer = tokenizer.encode(f"{row['response']}<end>")
        found.append((row["id"], question + answer, [-100] * len(question) + answer, 1.0))
    return found


def train(model: Any, rows: list[Row], case: Case, seed: int) -> float:
    """AdamW with linear decay, 16 rows a step, loss over the step's supervised tokens; the last 20 steps' mean loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=case.rate, betas=(0.9, 0.99), weight_decay=0.0)
    order = Random(seed)
    steps = [
        epoch_rows[i : i + 16]
        for _ in range(case.epochs)
        for epoch_rows in [order.sample(rows, len(rows))]
        for i in range(0, len(rows), 16)
    ]
    losses = []
    for number, step in enumerate(steps):
        optimiser.param_groups[0]["lr"] = case.rate * min((number + 1) / 30, 1 - number / len(steps))
        [batch] = make_batches(step, 10**6)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return statistics.fmean(losses[-20:])


def measure(name: str, case: Case, seed: int, everything: bool) -> dict[str, Any]:
    """One case at one seed of data, start and order."""
    began = time.process_time()
    tokenizer, model = AutoTokenizer.from_pretrained(base_model_path()), model_of(case, seed)
    pools = {s: rows_of(tokenizer, s, case.rows + case.measured, seed, "train") for s in SKILLS}
    loss = train(model, [row for pool in pools.values() for row in pool[: case.rows]], case, seed)
    _say(f"{name}, seed {seed}: trained to {loss:.3f} nats a token in {time.process_time() - began:.0f} s")

    if case.shape is not None:
        model.double()

    def batches(rows: list[Row]) -> Any:
        return make_batches(rows, 2048)

    tokens = {
        s: sum(sum(t != -100 for t in row[2]) for row in pool[: case.rows]) for s, pool in pools.items()
    }
    sets = Sets(
        drawn={s: batches(pool[: case.measured]) for s, pool in pools.items()},
        acting={s: batches(pool[case.rows :]) for s, pool in pools.items()},
        references={
            s: batches(rows_of(tokenizer, s, case.references, seed, "reference")) for s in REFERENCED
        },
        step_weights={s: count / sum(tokens.values()) for s, count in tokens.items()},
    )
    found = measure_fidelity(
        model,
        sets,
        dampings=case.dampings,
        all_parameters=everything,
        tolerance=3e-3,
        written=case.shape is not None,
        watch=lambda text: _say(f"  {time.process_time() - began:6.0f} s  {text}"),
    )
    for one in found.approximation:
        _say(_line(one))
    if found.parameters:
        _say(_line(found.parameters))
    return {
        "case": name,
        "seed": seed,
        "training_loss": loss,
        "dampings": case.dampings,
        "mixture_tokens": sum(int(b.real.sum()) for b in sets.mixture),
        "mixture_supervised": sum(int((b.labels != -100).sum()) for b in sets.mixture),
        "cpu_s": time.process_time() - began,
        **found.to_json(),
    }


def _line(one: Nearness) -> str:
    each = "  ".join(f"{name} {value:.3f}" for name, value in one.cosines.items())
    size, layers = statistics.median(one.sizes.values()), sorted(one.by_layer.values())
    return (
        f"  x{one.damping:<4g} {one.curvature:24s} {one.median:6.3f}  size {size:9.3g}  "
        f"layers {statistics.median(layers):.3f} (min {layers[0]:.3f})  {each}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: wide, many and deep")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--layers-only", action="store_true", help="leave out the solve over all parameters")
    parser.add_argument("--dampings", help="multiples of the default, comma-separated; default: the case's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    cases = {name: CASES[name] for name in options.case or ("wide", "many", "deep")}
    if options.dampings:
        multiples = tuple(float(multiple) for multiple in options.dampings.split(","))
        cases = {name: replace(case, dampings=multiples) for name, case in cases.items()}
    runs = [
        measure(name, case, seed, not options.layers_only) for name, case in cases.items() for seed in seeds
    ]
    informative = [run for run in runs if run["informative"]]
    medians = [
        one["median"]
        for run in informative
        for one in run["approximation"]
        if one["curvature"] == "ekfac" and one["damping"] == 1
    ]
    result = {
        "informative": len(informative),
        "ekfac_cosine": medians,
        "target": TARGET,
        "met": bool(medians) and min(medians) >= TARGET,
        "runs": runs,
    }
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
