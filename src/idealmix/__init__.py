"""idealmix: how much of each domain belongs in a supervised fine-tuning mixture, measured, with error bars.

import idealmix
result = idealmix.run("config.yaml")                                       # a Result; idealmix.Result.read("runs/first") of an old one
matrix = idealmix.influence(model, tokenizer, domains, references)         # an InfluenceMatrix

What is named in ``__all__`` is the public Python API; its versions are semantic (CHANGELOG.md). docs/python.md shows it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["IdealmixError", "InfluenceMatrix", "InputError", "Mixture", "Result", "influence", "run"]

if TYPE_CHECKING:
    from idealmix.api import Result, influence, run
    from idealmix.data.mixture import Mixture
    from idealmix.errors import IdealmixError, InputError
    from idealmix.influence_matrix import InfluenceMatrix

_ROOMS = {
    "InfluenceMatrix": "influence_matrix", "Mixture": "data.mixture", "IdealmixError": "errors", "InputError": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch and friends are only imported when they are used: `import idealmix` stays fast
    if name in __all__:
        return getattr(import_module(f"idealmix.{_ROOMS.get(name, 'api')}"), name)
    raise AttributeError(f"module 'idealmix' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
