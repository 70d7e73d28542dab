"""Built-in skills: generated capabilities with checkable answers, and a small base model to train on them."""

from idealmix.skills.demo import base_model_path, demo_config
from idealmix.skills.generator import REFERENCED, SKILLS, SPLITS, generate, split_of, write_suite

__all__ = [
    "REFERENCED",
    "SKILLS",
    "SPLITS",
    "base_model_path",
    "demo_config",
    "generate",
    "split_of",
    "write_suite",
]
