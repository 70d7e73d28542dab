"""Methods that find a mixture: each asks for trainings and measurements, is told their results, and gives shares.

Flows in: a method's name (or a user's own ``module:Class``) and its options. Flows out: a `Method`. The protocol is in
`protocol`; who carries the requests out is above this room (`comparison.executor`). Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from idealmix.errors import InputError

if TYPE_CHECKING:
    from idealmix.methods.protocol import Method

BUILT_IN: dict[str, str] = {
    "base": "fixed:Base",
    "specific": "fixed:Specific",
    "joint": "fixed:Joint",
    "uniform": "fixed:Uniform",
    "temperature": "fixed:Temperature",
    "random": "dirichlet:Random",
    "random-mean": "dirichlet:RandomMean",
    "doremi": "doremi:DoReMi",
    "doge": "doge:DoGE",
    "regmix": "regmix:RegMix",
    "dmo": "dmo:DMO",
    "dynamixsft": "dynamixsft:DynamixSFT",
    "ideal": "ideal:Ideal",
    "ideal-paper": "ideal:IdealPaper",
}
"""Where each method lies in this room. A user's own is named in the same way, by the path of its module."""


def check_name(name: str) -> str | None:
    """What is wrong with a method's name, in a sentence; None: nothing that a name alone could show."""
    if name in BUILT_IN or ":" in name:
        return None
    near = difflib.get_close_matches(name, list(BUILT_IN), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BUILT_IN)}"
    return f"no method is called {name!r}; {hint} Your own is named 'module:Class'"


def load_method(name: str, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> Method:
    """The method of a name.

    Args:
        name: one of `BUILT_IN`, or ``module:Class``.
        options: keyword arguments of the class (``methods.<name>`` in the configuration).
        folder: where the user's module is looked for first; None: the working directory.

    Raises:
        InputError: no such method, or options that it does not take.
    """
    if problem := check_name(name):
        raise InputError(problem, where="method")
    if name in BUILT_IN:
        import importlib

        module, _, attribute = BUILT_IN[name].partition(":")
        kind = getattr(importlib.import_module(f"idealmix.methods.{module}"), attribute)
    else:
        from idealmix.evaluation.scores import load_function

        kind = load_function(name, "method", folder or Path.cwd())
    where = f"methods.{name}"
    try:
        if name in BUILT_IN:  # types; a user's own class may have any
            TypeAdapter(kind).validate_python(dict(options or {}))
        method = kind(**(options or {}))
    except InputError as error:
        raise InputError(error.what, where=error.where or where, mend=error.mend) from error
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise InputError(
            f"{wrong['msg'][0].lower()}{wrong['msg'][1:]}; found {wrong['input']!r}", where=f"{where}.{key}"
        ) from error
    except (TypeError, ValueError) as error:
        known = list(inspect.signature(kind).parameters)
        mend = f"its options are {', '.join(known)}" if known else "it has no options"
        raise InputError(
            f"the method cannot be made with these options: {error}", where=where, mend=mend
        ) from error
    if not callable(getattr(method, "search", None)):
        raise InputError(
            f"{name!r} has no method `search`",
            where="method",
            mend="write `def search(self, problem)`: a generator that yields requests (docs/methods.md)",
        )
    return method
