"""The demonstration on the built-in skills: where the base model lies, and the configuration of the run.

Flows in: a folder that ``write_suite`` filled. Flows out: a mapping in the schema of ``idealmix.config``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idealmix.skills.generator import SKILLS

# Uniform rows of the five skills that fill the budget: far fewer than the pools hold, so unused rows exist.
BUDGET_TOKENS = 135_000


def base_model_path() -> Path:
    """The folder of the shipped base model (``scripts/train_base_model.py`` made it)."""
    return Path(__file__).parent / "base"


def demo_config(folder: Path | str, *, skills: tuple[str, ...] = SKILLS, seed: int = 0) -> dict[str, Any]:
    """The demo's configuration: three rounds at a held budget of tokens, each training well under a minute on CPU."""
    folder = Path(folder)
    asked = [name for name in skills if name != "chat"]
    return {
        "model": str(base_model_path()),
        "method": "ideal",
        "domains": {name: str(folder / name / "train.jsonl") for name in skills},
        "references": {name: str(folder / name / "reference.jsonl") for name in asked},
        "tests": {name: str(folder / name / "test.jsonl") for name in asked},
        "scores": {
            name: {"test": name, "exact_match": "(?s)(.*)", "max_new_tokens": 40, "rows": 200}
            for name in asked
        },
        "objective": "mean_loss",
        "training": {
            "epochs": 1,
            "learning_rate": 6.0e-4,  # at 1e-3 seeds differ too much
            "warmup_steps": 30,
            "adam_beta2": 0.99,  # a memory that fits 200 steps
            "max_length": 96,
            "per_device_train_batch_size": 16,
            "dtype": "float32",
        },
        "influence": {"curvature": "ekfac", "sample_fraction": 0.5},
        "allocation": {
            "rounds": 3,
            "replicates": 4,  # five seeds of round 0: a step's gain is a few of their deviations
            "budget": {"unit": "tokens", "hold": True, "size": BUDGET_TOKENS},
        },
        "seed": seed,
        "output": str(folder / "run"),
    }
