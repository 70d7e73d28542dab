"""Is the memory that `idealmix plan` predicts the memory that is then used?

Flows in: nothing; models of random weights, rows of random words. Flows out: for each model and phase the predicted and the
measured peak; the last line is one JSON object. Measured: a phase alone in a process, the peak of its resident memory minus
what the process held after its imports and after reading the data.

    OMP_NUM_THREADS=1 python -m benchmarks.plan_memory --json            # three models that nothing was fitted to
    OMP_NUM_THREADS=1 python -m benchmarks.plan_memory --json --fitted   # the two that the overheads come from
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measured import Peak, alone

# hidden, blocks, heads, key-value heads, inner, words; then what differs in the configuration
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "SmolLM2-shaped": ("llama", (448, 14, 7, 7, 1216, 9216), {}),
    "Qwen2-shaped": ("biased", (320, 6, 5, 1, 896, 20480), {"influence": {"curvature": "kfac"}}),
    "SmolLM2-shaped, LoRA": ("llama", (384, 16, 6, 2, 1024, 12288), {"training": {"lora": {"r": 8}}}),
}
FITTED: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "fitted": ("llama", (320, 10, 5, 5, 960, 6000), {}),
    "fitted, LoRA": ("llama", (448, 8, 7, 7, 1344, 6000), {"training": {"lora": {"r": 4}}}),
}
LONGEST = {"llama": 192, "biased": 256}
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def prepare(folder: Path, name: str) -> Path:
    """Write a model, rows and a configuration; returns its path."""
    import torch
    import yaml
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    kind, (hidden, blocks, heads, keys, inner, words), changes = (CASES | FITTED)[name]
    vocabulary = ["<pad>", "<end>", "<user>", "<assistant>", *(f"w{n}" for n in range(words - 4))]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, **{"unk_token": "<pad>"})
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")  # noqa: S106
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    # Qwen2's biases on a Llama: transformers gives the type qwen2 a tokenizer of its own
    shape = AutoConfig.for_model(
        "llama", attention_bias=kind == "biased",
        hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=keys,
        intermediate_size=inner, vocab_size=words, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        max_position_embeddings=1024, tie_word_embeddings=kind == "llama",
    )  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "model")
    rng = random.Random(0)
    for file, number in (("one", 28), ("two", 28), ("three", 8), ("four", 8)):
        rows = []
        for _ in range(number):
            said = [
                rng.choice(vocabulary[4:]) for _ in range(rng.randint(LONGEST[kind] // 3, LONGEST[kind] - 5))
            ]
            cut = len(said) // 4
            rows.append({"prompt": " ".join(said[:cut]), "response": " ".join(said[cut:])})
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": "./model",
        "domains": {"one": "one.jsonl", "two": "two.jsonl"},
        "references": {"three": "three.jsonl", "four": "four.jsonl"},
        "training": {
            "max_length": LONGEST[kind], "per_device_train_batch_size": 8, "dtype": "float32",
            **changes.get("training", {}),
        },
        "influence": {"batch_tokens": 1536, **changes.get("influence", {})},
        "allocation": {"start": {"one": 12, "two": 12}},
        "output": "run",
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _opened(path: str) -> tuple[Any, Any, Any]:
    """Settings, inputs and the start mixture; everything that a phase imports is imported."""
    import peft  # noqa: F401
    import trl  # noqa: F401

    import idealmix.influence_stage
    import idealmix.training.sft  # noqa: F401
    from idealmix import configfile
    from idealmix.data.mixture import draw
    from idealmix.rounds.inputs import load_inputs
    from idealmix.rounds.loop import start_mixture_counts
    from idealmix.rounds.watch import Silent

    settings = configfile.load(path)
    inputs = load_inputs(settings, Silent())
    counts = start_mixture_counts(settings, inputs)
    return settings, inputs, draw(inputs.domains, counts, settings.seed, max_repeats=4)


def train(path: str) -> dict[str, Any]:
    """One training, as `idealmix run` does it."""
    settings, inputs, mixture = _opened(path)
    from idealmix.training import train as train_mixture

    peak = Peak()
    peak.reset()
    output = Path(path).parent / "train"
    output.mkdir()
    train_mixture(settings.model, mixture, inputs.domains, settings.training, seed=0, output=output)
    return {"peak_mb": peak.value()}


def influence(path: str) -> dict[str, Any]:
    """One influence stage, on what `train` left."""
    settings, inputs, mixture = _opened(path)
    from idealmix.influence_stage import measure
    from idealmix.training.model import load_model
    from idealmix.training.record import TrainingRecord

    folder = Path(path).parent / "train"
    peak = Peak()
    peak.reset()
    measure(
        load_model(folder / "model", "float32"), mixture, inputs.domains, inputs.gradient_halves, settings.influence,
        record=TrainingRecord.read(folder / "record.json"), folder=folder,
    )  # fmt: skip
    return {"peak_mb": peak.value()}


def predict(path: str) -> dict[str, Any]:
    """What `idealmix plan` says of both phases, in MB (2^20, as the measurement has it)."""
    from idealmix import configfile
    from idealmix.plan.command import plan_config
    from idealmix.rounds.watch import Silent

    plan = plan_config(configfile.load(path), None, Silent()).plan
    peaks = {"train": 0.0, "influence": 0.0}
    moments: dict[str, dict[str, float]] = {"train": {}, "influence": {}}
    for phase in plan.phases:
        kind = phase.name.split(":")[0]
        if kind in peaks:
            peaks[kind] = max(peaks[kind], float(phase.peak or 0) / 2**20)
            moments[kind] |= {name: round(value / 2**20, 1) for name, value in phase.moments.items()}
    return {"parameters": plan.shape.parameters, "peaks": peaks, "moments": moments}


def compare(name: str) -> list[dict[str, Any]]:
    """One model: prediction and measurement of both phases, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(prepare(Path(folder), name))
        said = alone("benchmarks.plan_memory:predict", path=path)
        found = []
        for phase in ("train", "influence"):
            measured = alone(f"benchmarks.plan_memory:{phase}", path=path)["peak_mb"]
            predicted = said["peaks"][phase]
            found.append(
                {
                    "model": name,
                    "parameters": said["parameters"],
                    "phase": phase,
                    "predicted_mb": round(predicted, 1),
                    "measured_mb": round(measured, 1),
                    "error": round(predicted / measured - 1, 4),
                    "moments_mb": said["moments"][phase],
                }
            )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--fitted", action="store_true", help="the models that the overheads were fitted to")
    parser.add_argument("--only", help="one model by name")
    arguments = parser.parse_args()
    rows = []
    for name in FITTED if arguments.fitted else CASES:
        if arguments.only in (None, name):
            rows += compare(name)
            for row in rows[-2:]:
                print(
                    f"{row['model']}, {row['phase']}: predicted {row['predicted_mb']:.0f} MB, "
                    f"measured {row['measured_mb']:.0f} MB, {100 * row['error']:+.1f} %",
                    flush=True,
                )
    worst = max(abs(row["error"]) for row in rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "worst_error": worst, "within_20_percent": worst <= 0.2}))


if __name__ == "__main__":
    main()
