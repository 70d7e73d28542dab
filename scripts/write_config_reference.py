"""Write docs/config.md from the schema, so that the page cannot disagree with the code.

python scripts/write_config_reference.py [--check]
"""

from __future__ import annotations

import re
import sys
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from idealmix import config

PAGE = Path(__file__).parent.parent / "docs" / "config.md"

HEAD = """\
# Configuration

Written from the schema by `python scripts/write_config_reference.py`; do not edit.

`idealmix init` writes a commented `config.yaml`; `idealmix run config.yaml --dry-run` shows every resolved default.
Any key can be overridden on the command line: `--set training.epochs=3` (the value is read as YAML). Unknown keys
are refused with the nearest known one and the line. Paths are relative to the configuration file's folder.
"""

BLOCKS = {
    "Top level": (config.Config, ""),
    "`domains.<name>`, `tests.<name>`": (config.Source, "A plain path is short for `{path: ...}`."),
    "`references.<name>`": (config.ReferenceSource, "The keys of a source, and a weight."),
    "`scores.<name>`": (
        config.Score,
        "Exactly one of `exact_match`, `code_tests`, `callable` and `lm_eval`; `gsm8k: lm_eval:gsm8k` is short for `gsm8k: {lm_eval: gsm8k}`.",
    ),
    "`constraints.<reference>`": (config.Constraint, ""),
    "`training`": (
        config.Training,
        "Any other key goes to TRL's `SFTConfig` under its own name. Options that change what is optimised or the "
        "order of rows (label smoothing, `dft`, NEFTune, router losses, `max_steps`, shuffling) are refused.",
    ),
    "`training.lora`": (config.Lora, ""),
    "`influence`": (config.Influence, ""),
    "`allocation`": (config.Allocation, ""),
    "`allocation.budget`": (config.Budget, ""),
    "`search`": (
        config.Search,
        "The rounds run under `<output>/search`; rows keep their proportions when the mixture is trained in full. The search has neither "
        "tests nor scores, so `max_decrease` does not bind there; `constraints` do.",
    ),
}


def type_in_words(annotation: object) -> str:
    """``Literal['a', 'b']`` as ``a, b``; blocks by their name; the rest as Python writes it."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(str(value).lower() for value in typing.get_args(annotation))
    if origin is typing.Annotated:
        return type_in_words(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_in_words(inner) for inner in typing.get_args(annotation))
    if origin in (dict, list):
        inner = typing.get_args(annotation)[-1]
        return ("mapping of " if origin is dict else "list of ") + type_in_words(inner)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    names = {typing.Any: "any value", str: "text", int: "whole number", float: "number", bool: "true, false"}
    return names.get(annotation, str(annotation))  # type: ignore[call-overload]


def default_in_words(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "see below"
    if default is None:
        return "`null`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


def table(model: type[BaseModel]) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        default: object = {} if field.default_factory else field.default
        bounds = [
            f"{sign} {getattr(rule, attribute)}"
            for rule in field.metadata
            for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
            if getattr(rule, attribute, None) is not None
        ]
        kind = ", ".join([type_in_words(field.annotation), *bounds])
        meaning = re.sub(r"\|", r"\\|", field.description or "")
        told = (
            "by the keys before" if field.default_factory_takes_validated_data else default_in_words(default)
        )
        rows.append(f"| `{name}` | {kind} | {told} | {meaning} |")
    return rows


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for title, (model, note) in BLOCKS.items():
        summary = (model.__doc__ or "").strip().split("\n")[0]
        parts.append(
            "\n".join([f"## {title}", "", " ".join(filter(None, [summary, note])), "", *table(model), ""])
        )
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is stale: run this script")
    PAGE.write_text(page(), encoding="utf-8")
