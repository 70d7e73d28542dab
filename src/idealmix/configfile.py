"""From a YAML file to a checked `Config`: every error at once, each with its line and the nearest known key.

Flows in: the path of a ``config.yaml`` and ``--set key.path=value`` overrides. Flows out: a resolved `Config`
(paths absolute, the method's own settings applied), and back to YAML for the run folder.
Paths in a config are relative to the config file's folder, so that a project folder can be moved.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from idealmix.config import Config
from idealmix.errors import InputError

_Location = tuple[str | int, ...]

# Names become file names in the run folder and words in the report.
_NAME = re.compile(r"\A[\w][\w .+-]{0,63}\Z")

_LOCAL_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet"}

# `method: ideal-paper` is the paper to the letter (section 4.1): m = 0.15, free volume, the uncentred
# influence, MLP layers, two changes of the volumes (three trainings), every domain moved whatever its error.
_PAPER = {
    ("allocation", "m"): 0.15,
    ("allocation", "budget", "hold"): False,
    ("allocation", "gate"): False,
    ("allocation", "rounds"): 3,
    ("allocation", "patience"): 3,
    ("allocation", "replicates"): 0,
    ("influence", "centred"): False,
    ("influence", "layers"): "mlp",
}


class _Loader(yaml.SafeLoader):
    """Safe YAML whose floats include ``1e-5`` (YAML 1.1 reads that as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override, check and resolve a configuration.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` strings; the value is read as YAML.

    Raises:
        InputError: the file cannot be read, is not YAML, or holds errors; all of them are in the message.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            "this configuration file does not exist",
            where=str(path),
            mend="give the path of a config.yaml; `idealmix init` writes one",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read this configuration: {error}", where=str(path)) from None
    data, lines = _parse(text, path)
    return from_mapping(data, overrides, folder=path.resolve().parent, lines=lines, origin=path)


def from_mapping(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    folder: Path,
    lines: dict[_Location, str] | None = None,
    origin: str | Path = "config",
) -> Config:
    """Override, check and resolve a configuration that is already plain data; `folder`: what paths are relative to.

    Raises:
        InputError: as `load`.
    """
    lines = lines if lines is not None else {}
    for override in overrides:
        _apply(override, data, lines)
    return resolve(check(data, lines, origin=origin), folder)


def locate(error: InputError, path: str | Path) -> InputError:
    """The same error with the file and line of the configuration key that it names, if the file holds that key.

    Errors that only the data, the model or the trainer can reveal know the key, not the line.
    """
    try:
        _, lines = _parse(Path(path).read_text(encoding="utf-8-sig"), Path(path))
    except (OSError, UnicodeDecodeError, InputError):
        return error
    keys: _Location = tuple((error.where or "").split("."))
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            where = f"{path}, {lines[keys[:end]]}, {error.where}"
            return type(error)(error.what, where=where, mend=error.mend)
    return error


def check(
    data: Mapping[str, Any], lines: Mapping[_Location, str] | None = None, *, origin: str | Path = "config"
) -> Config:
    """Check a plain mapping against the schema; every problem is named in one `InputError`."""
    lines = lines or {}
    try:
        config = Config.model_validate(data)
        problems = list(_cross_checks(config))
    except ValidationError as error:
        problems = [_explain(entry) for entry in error.errors()]
    if problems:
        raise InputError(
            "\n".join(
                [f"{len(problems)} error{'s' if len(problems) > 1 else ''} in the configuration"]
                + [f"  {_place(location, lines)}{text}" for location, text in problems]
            ),
            where=str(origin),
            mend="docs/config.md lists every key; `idealmix init` writes a commented example",
        )
    return config


def dump(config: Config) -> str:
    """The resolved configuration as YAML: every default written out; `load` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every key whose value differs between two resolved configurations."""
    found: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


# --- reading -------------------------------------------------------------------------------------------------


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[_Location, str]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(
            f"this is not valid YAML: {error.problem}",
            where=f"{path}:{line}",
            mend="check indentation, quotes and colons near that line",
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"this is not valid YAML: {error}", where=str(path)) from None
    except RecursionError:
        raise InputError("this YAML is nested too deeply", where=str(path)) from None
    if node is None:
        raise InputError(
            "this configuration is empty", where=str(path), mend="`idealmix init` writes a commented one"
        )
    if not isinstance(node, yaml.MappingNode):
        raise InputError("a configuration is a mapping of keys to values", where=str(path))
    lines: dict[_Location, str] = {}
    data = _plain(node, (), lines, path)
    return data, lines


def _plain(node: yaml.Node, location: _Location, lines: dict[_Location, str], path: Path) -> Any:
    """A YAML node as plain data; keys stay text (a domain may be called ``no`` or ``1``)."""
    lines[location] = f"line {node.start_mark.line + 1}"
    if len(location) > 32:
        raise InputError("this YAML is nested too deeply", where=f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError("a key must be text", where=f"{path}:{key_node.start_mark.line + 1}")
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
            f"cannot read the value {getattr(node, 'value', '')!r}: {error}",
            where=f"{path}:{node.start_mark.line + 1}",
        ) from None
    finally:
        loader.dispose()


def _apply(override: str, data: dict[str, Any], lines: dict[_Location, str]) -> None:
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
        except yaml.YAMLError as error:
            raise InputError(f"--set {override!r}: the value is not YAML: {error}") from None
        value = _plain(node, (), {}, Path(f"--set {key}")) if node is not None else text
    target: Any = data
    for part in keys[:-1]:
        if target.get(part) is None:
            target[part] = {}
        elif isinstance(target[part], str):  # `mathematics: file` is short for {path: file}
            target[part] = {"path": target[part]}
        target = target[part]
        if not isinstance(target, dict):
            raise InputError(f"--set {override!r}: {part!r} is not a block of keys")
    target[keys[-1]] = value
    lines[keys] = "--set"


# --- explaining ----------------------------------------------------------------------------------------------


def _place(location: _Location, lines: Mapping[_Location, str]) -> str:
    """``line 12, training.epochs: `` for the deepest part of a location that the file holds."""
    name = ".".join(str(part) for part in location)
    for end in range(len(location), -1, -1):
        if location[:end] in lines:
            line = lines[location[:end]]
            return f"{line}, {name}: " if name else f"{line}: "
    return f"{name}: " if name else ""


def _explain(error: Mapping[str, Any]) -> tuple[_Location, str]:
    # pydantic adds the name of a union's member to the location; a user has not written it
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and _is_union_tag(part)))
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return location, unknown_key(str(location[-1]), known_keys(location[:-1]))
    if kind == "missing":
        return location, "this key is required"
    given = error.get("input")
    if isinstance(given, str | int | float | bool):
        message = f"{message}; found {given!r}"
    return location, message[0].lower() + message[1:]


_UNION_TAG = re.compile(
    r"^(?:str|int|float|bool|list\[.*\]|dict\[.*\]|literal\[.*\]|function-.*|constrained-.*)$"
)


def _is_union_tag(part: str) -> bool:
    return bool(_UNION_TAG.match(part))


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The sentence for a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def known_keys(location: _Location) -> list[str]:
    """The keys that the schema accepts in the block at `location`."""
    model: Any = Config
    for part in location:
        annotation = (
            model.model_fields[part].annotation if _is_model(model) and part in model.model_fields else None
        )
        model = _block(annotation) if annotation is not None else model
    return list(model.model_fields) if _is_model(model) else []


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _block(annotation: Any) -> Any:
    """The settings class inside an annotation such as ``dict[str, Annotated[Source, ...]]`` or ``Lora | None``."""
    if _is_model(annotation):
        return annotation
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        for inner in typing.get_args(annotation):
            if (found := _block(inner)) is not None:
                return found
    return None


# --- checks that need more than one key ----------------------------------------------------------------------


def _cross_checks(config: Config) -> Iterator[tuple[_Location, str]]:
    for block in ("domains", "references", "tests", "scores"):
        for name in getattr(config, block):
            if not _NAME.match(name) or name.strip() != name or name.endswith(".") or len(name.encode()) > 64:
                yield (
                    (block, name),
                    "a name is 1 to 64 bytes of letters, digits, spaces or . _ + -, and starts with a letter or digit",
                )
        folded: dict[str, str] = {}
        for name in getattr(config, block):
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                yield (block, name), f"differs from {other!r} only by case; the file names would collide"
    weights = [source.weight for source in config.references.values()]
    if not any(weights):
        yield ("references",), "every weight is 0: nothing would be optimised"
    yield from _names(config.constraints, config.references, "constraints", "reference set")
    for name, score in config.scores.items():
        if score.test not in config.tests:
            yield ("scores", name, "test"), _absent(score.test, config.tests, "test set")
        if score.exact_match is not None:
            try:
                re.compile(score.exact_match)
            except re.error as error:
                yield ("scores", name, "exact_match"), f"not a regular expression: {error}"
    allocation = config.allocation
    for key in ("floor", "cap"):
        bound = getattr(allocation, key)
        values = bound if isinstance(bound, dict) else {} if bound is None else {None: bound}
        if isinstance(bound, dict):
            yield from _names(bound, config.domains, f"allocation.{key}", "domain")
        for name, value in values.items():
            if not 0 <= value <= 1:
                yield (
                    ("allocation", key, *([name] if name else [])),
                    f"a share lies between 0 and 1; found {value!r}",
                )
    if isinstance(allocation.start, dict):
        yield from _names(allocation.start, config.domains, "allocation.start", "domain")
        missing = [name for name in config.domains if name not in allocation.start]
        if missing:
            yield ("allocation", "start"), f"row counts are missing for {', '.join(missing)}"
        if any(count < 0 for count in allocation.start.values()):
            yield ("allocation", "start"), "row counts cannot be negative"
        elif not any(allocation.start.values()):
            yield ("allocation", "start"), "every row count is 0: there would be nothing to train on"
    if config.influence.response == "finite" and config.influence.curvature != "ekfac":
        yield (
            ("influence", "response"),
            f"'finite' works in ekfac's eigenbasis; curvature is {config.influence.curvature!r}",
        )
    if config.influence.response == "finite" and config.training.backend == "command":
        yield (
            ("influence", "response"),
            "'finite' needs the optimiser's record, which backend: command does not give; use converged",
        )
    if config.method == "ideal-paper":
        defaults = Config.model_validate({**_least(config), "method": "ideal"})
        for location, wanted in _PAPER.items():
            found, default = _get(config, location), _get(defaults, location)
            if found not in (default, wanted):
                yield location, f"method ideal-paper fixes this to {wanted!r}; found {found!r}"


def _names(
    given: Mapping[str, Any], known: Mapping[str, Any], key: str, kind: str
) -> Iterator[tuple[_Location, str]]:
    for name in given:
        if name not in known:
            yield (*key.split("."), name), _absent(name, known, kind)


def _absent(name: str, known: Mapping[str, Any], kind: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"no {kind} is called {name!r}; {hint}"


def _least(config: Config) -> dict[str, Any]:
    return {"model": config.model, "domains": config.domains, "references": config.references}


def _get(config: Config, location: Sequence[str]) -> Any:
    value: Any = config
    for part in location:
        value = getattr(value, part)
    return value


# --- resolving -----------------------------------------------------------------------------------------------


def resolve(config: Config, folder: Path) -> Config:
    """Make local paths absolute (relative to `folder`) and apply what the method fixes."""
    data = config.model_dump(mode="json")
    for block in ("domains", "references", "tests"):
        for source in data[block].values():
            source["path"] = _absolute(source["path"], folder)
    data["model"] = _absolute(data["model"], folder)
    data["output"] = str((folder / Path(data["output"]).expanduser()).resolve())
    if config.method == "ideal-paper":
        for location, value in _PAPER.items():
            target = data
            for part in location[:-1]:
                target = target[part]
            target[location[-1]] = value
    if data["influence"]["centred"] == "auto":
        data["influence"]["centred"] = data["allocation"]["budget"]["hold"]
    return Config.model_validate(data)


def _absolute(path: str, folder: Path) -> str:
    """Absolute if it is, or can only be, a local path; a hub name stays as it is."""
    local = (folder / Path(path).expanduser()).resolve()
    looks_local = path.startswith((".", "/", "~")) or Path(path).suffix.lower() in _LOCAL_SUFFIXES
    return str(local) if looks_local or local.exists() else path
