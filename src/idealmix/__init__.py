"""idealmix: how much of each domain belongs in a supervised fine-tuning mixture, measured, with error bars.

import idealmix
result = idealmix.run("config.yaml")
matrix = idealmix.influence(model, tokenizer, domains, references)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["influence", "run"]

if TYPE_CHECKING:
    from idealmix.api import influence, run


def __getattr__(name: str) -> Any:
    # torch and friends are only imported when they are used: `import idealmix` stays fast
    if name in __all__:
        from idealmix import api

        return getattr(api, name)
    raise AttributeError(f"module 'idealmix' has no attribute {name!r}")
