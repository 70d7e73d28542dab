"""A mixture of many rows: memory and time of reading, drawing and writing it, or of measuring its influence.

Flows in: generated rows of one domain. Flows out: for each number of rows the process's memory after every step, peak and
seconds; and from the two largest what a row takes, so that larger ones can be foretold.

    python -m benchmarks.size --json                                       # 50,000 and 200,000 rows: some minutes
    python -m benchmarks.size --json --rows 200000 2000000                 # a quarter of an hour of one idle core
    python -m benchmarks.size --json --influence --rows 100000 1000000     # longer

All of the pool is drawn once, which is the most that a mixture holds. Memory is the whole process's, imports included. Influence: half
of the rows are measured, as by default, on a Llama of two layers, 32 wide, with random weights; 64 reference rows.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measured import alone, told

LIMIT_MB = 2048


def write_rows(path: Path, rows: int) -> Path:
    """Sums with their answers, prompts all different."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            a, b = rng.randint(0, 10**6), rng.randint(0, 10**6)
            row = {"prompt": f"{number}: what is {a} plus {b}?", "response": str(a + b)}
            file.write(json.dumps(row) + "\n")
    return path


def write_texts(path: Path, rows: int, first: int) -> Path:
    """Short raw texts, all different; `first`: the number of the first."""
    rng = random.Random(first)
    with path.open("w", encoding="utf-8") as file:
        for number in range(first, first + rows):
            file.write(json.dumps({"text": f"{number} {rng.randint(0, 99)}"}) + "\n")
    return path


def mixture(rows: int) -> dict[str, Any]:
    """Read, draw and write one mixture; MB after each step, and the peak."""
    from idealmix import config
    from idealmix.data.materialise import export_jsonl
    from idealmix.data.mixture import draw
    from idealmix.data.pools import load_pool
    from idealmix.data.tokenise import Encoder
    from idealmix.skills import base_model_path
    from idealmix.training.model import load_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_rows(folder / "rows.jsonl", rows)
        found: dict[str, Any] = {"rows": rows}
        began = time.perf_counter()

        def told_after(step: str) -> None:
            found[f"{step}_mb"] = round(_memory("VmRSS"), 1)
            found[f"{step}_s"] = round(time.perf_counter() - began, 1)

        encoder = Encoder(load_tokenizer(base_model_path()), 128)
        told_after("imports")
        pool = load_pool("all", config.Source(path=str(path)), encoder, seed=0)
        told_after("read")
        drawn = draw({"all": pool}, {"all": rows}, 0, max_repeats=4)
        told_after("drawn")
        export_jsonl(drawn, folder / "mixture", {"all": pool})
        drawn.write(folder / "mixture.json")
        told_after("written")
        found["peak_mb"] = round(_memory("VmHWM"), 1)
        if len((folder / "mixture" / "all.jsonl").read_bytes().splitlines()) != rows:
            raise RuntimeError("the mixture that was written has another number of rows")
    return found


def influence(rows: int) -> dict[str, Any]:
    """Read one domain and measure its influence; MB after each step, and the peak."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from idealmix import config
    from idealmix.data.mixture import draw
    from idealmix.data.pools import load_pool
    from idealmix.data.tokenise import Encoder
    from idealmix.influence_stage import measure
    from idealmix.skills import base_model_path
    from idealmix.training.model import load_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"rows": rows}
        began = time.perf_counter()

        def told_after(step: str) -> None:
            found[f"{step}_mb"] = round(_memory("VmRSS"), 1)
            found[f"{step}_s"] = round(time.perf_counter() - began, 1)

        tokenizer = load_tokenizer(base_model_path())
        encoder = Encoder(tokenizer, 128)
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )  # fmt: skip
        model = LlamaForCausalLM(shape)
        told_after("imports")
        pools = {
            kind: {"all": load_pool("all", config.Source(path=str(path)), encoder, seed=0)}
            for kind, path in (
                ("domains", write_texts(folder / "rows.jsonl", rows, 0)),
                ("references", write_texts(folder / "reference.jsonl", 64, rows)),
            )
        }
        mixture = draw(pools["domains"], {"all": rows}, 0, max_repeats=4)
        told_after("read")
        # one domain has nothing to give way to: centred, its influence would be 0 by definition
        settings = config.Influence(centred=False)
        matrix = measure(model, mixture, pools["domains"], pools["references"], settings, seed=0)
        told_after("measured")
        found["peak_mb"] = round(_memory("VmHWM"), 1)
        found["tokens"] = mixture.tokens
        found["alpha"], found["se"] = float(matrix.alpha[0, 0]), float(matrix.se_subsample[0, 0])
    return found


def _memory(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def compare(rows: list[int], influence: bool) -> dict[str, Any]:
    """Every number of rows in a process of its own."""
    work = "influence" if influence else "mixture"
    runs = [alone(f"benchmarks.size:{work}", rows=count) for count in sorted(rows)]
    found: dict[str, Any] = {"runs": runs, "limit_mb": LIMIT_MB, "largest_peak_mb": runs[-1]["peak_mb"]}
    if len(runs) > 1:
        less, more = runs[-2:]
        a_row = (more["peak_mb"] - less["peak_mb"]) / (more["rows"] - less["rows"])
        found["bytes_a_row"] = round(a_row * 2**20, 1)
        found["foretold_peak_mb_of_2000000"] = round(more["peak_mb"] + a_row * (2_000_000 - more["rows"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--influence", action="store_true", help="measure influence instead of writing")
    told(parser, compare)


if __name__ == "__main__":
    main()
