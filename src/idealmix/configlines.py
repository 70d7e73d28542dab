"""YAML text as plain data, with the line of every key; and ``--set`` overrides on top.

Flows in: a configuration's text. Flows out: nested dicts, lists and scalars, and ``{location: "line 12"}``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from idealmix.errors import InputError

Location = tuple[str | int, ...]

OVERRIDE = "--set"
"""The line of a key that no line of the file holds."""
_DEEPEST = 32


class _Loader(yaml.SafeLoader):
    """Safe YAML whose floats include ``1e-5`` (YAML 1.1 reads that as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse(text: str, path: Path) -> tuple[dict[str, Any], dict[Location, str]]:
    """The configuration in `text` and the lines of its keys; `path` is what errors name.

    Raises:
        InputError: not YAML, not a mapping, a key twice, or nested too deeply.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(
            f"this is not valid YAML: {error.problem}",
            where=f"{path}:{line}",
            mend="check indentation, quotes and colons near that line",
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is no letter
        raise InputError(f"this is not valid YAML: {error}", where=str(path)) from None
    except RecursionError:
        raise InputError("this YAML is nested too deeply", where=str(path)) from None
    if node is None:
        raise InputError(
            "this configuration is empty", where=str(path), mend="`idealmix init` writes a commented one"
        )
    if not isinstance(node, yaml.MappingNode):
        raise InputError("a configuration is a mapping of keys to values", where=str(path))
    _refuse_bombs(node, path)
    lines: dict[Location, str] = {}
    data = _plain(node, (), lines, path)
    return data, lines


# What aliases may unfold to: a few lines of YAML can stand for more values than any memory holds.
_MOST_VALUES = 100_000


def _refuse_bombs(node: yaml.Node, path: Path) -> None:
    """Refuse YAML whose aliases unfold without measure, or into themselves."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in open_ or len(open_) > _DEEPEST:
            raise InputError("this YAML is nested too deeply", where=f"{path}:{node.start_mark.line + 1}")
        if id(node) not in sizes:
            open_.add(id(node))
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
            open_.remove(id(node))
        return sizes[id(node)]

    if size(node) > _MOST_VALUES:
        raise InputError(f"this YAML unfolds to more than {_MOST_VALUES:,} values", where=str(path))


def _plain(node: yaml.Node, location: Location, lines: dict[Location, str], path: Path) -> Any:
    """A YAML node as plain data; keys stay text (a domain may be called ``no`` or ``1``)."""
    lines[location] = f"line {node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode):
        _refuse_halves(node, path)
    if isinstance(node, yaml.MappingNode):
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError("a key must be text", where=f"{path}:{key_node.start_mark.line + 1}")
            _refuse_halves(key_node, path)
            key = key_node.value
            if key in data:
                raise InputError(
                    f"the key {key!r} is given twice",
                    where=f"{path}:{key_node.start_mark.line + 1}",
                    mend="keep one of the two",
                )
            data[key] = _plain(value_node, (*location, key), lines, path)
            lines[(*location, key)] = f"line {key_node.start_mark.line + 1}"
        return data
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*location, i), lines, path) for i, item in enumerate(node.value)]
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"cannot read the value {getattr(node, 'value', '')[:200]!r}: {error}",
            where=f"{path}:{node.start_mark.line + 1}",
        ) from None
    finally:
        loader.dispose()


def _refuse_halves(node: yaml.ScalarNode, path: Path) -> None:
    """Refuse what an escape can make and no file can hold: half of a surrogate pair."""
    if any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise InputError(
            f"{node.value[:200]!r} holds half of a surrogate pair, which is not Unicode text",
            where=f"{path}:{node.start_mark.line + 1}",
        )


def apply(override: str, data: dict[str, Any], lines: dict[Location, str]) -> None:
    """Set one ``key.path=value`` in `data`; the value is read as YAML.

    Raises:
        InputError: not of that form, or the path runs through something that is not a block of keys.
    """
    key, equals, text = override.partition("=")
    keys = tuple(part for part in key.strip().split("."))
    if not equals or not all(keys):
        raise InputError(
            f"--set {override!r} is not key.path=value", mend="for example --set training.epochs=2"
        )
    value = text
    if text.strip():
        node = None
        try:
            node = yaml.compose(text, Loader=_Loader)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(
                f"--set {override[:200]!r}: the value is not YAML: {str(error).splitlines()[0]}"
            ) from None
        if node is not None:
            _refuse_bombs(node, Path(f"--set {key}"))
        value = _plain(node, (), {}, Path(f"--set {key}")) if node is not None else text
    target: Any = data
    for end, part in enumerate(keys[:-1], start=1):
        if target.get(part) is None:
            target[part] = {}
            lines[keys[:end]] = OVERRIDE
        elif isinstance(target[part], str):  # `mathematics: file` is short for {path: file}
            target[part] = {"path": target[part]}
        target = target[part]
        if not isinstance(target, dict):
            raise InputError(f"--set {override!r}: {part!r} is not a block of keys")
    target[keys[-1]] = value
    lines[keys] = OVERRIDE
