"""Built-in skills: generated capabilities with checkable answers, and a small base model to train on them."""

from idealmix.skills.generator import REFERENCED, SKILLS, SPLITS, generate, split_of, write_suite

__all__ = ["REFERENCED", "SKILLS", "SPLITS", "generate", "split_of", "write_suite"]
