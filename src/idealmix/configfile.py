"""From a YAML file to a checked `Config`: every error at once, each with its line and the nearest known key.

Flows in: the path of a ``config.yaml`` and ``--set key.path=value`` overrides. Flows out: a resolved `Config`
(paths absolute, the method's own settings applied), and back to YAML for the run folder.
Paths in a config are relative to the config file's folder, so that a project folder can be moved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from idealmix.config import Config
from idealmix.configchecks import PAPER, examine, place
from idealmix.configlines import OVERRIDE, Location, apply, parse
from idealmix.errors import InputError

_LOCAL_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet"}


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
    data, lines = parse(text, path)
    return from_mapping(data, overrides, folder=path.resolve().parent, lines=lines, origin=path)


def from_mapping(
    data: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    folder: Path,
    lines: dict[Location, str] | None = None,
    origin: str | Path = "config",
) -> Config:
    """Override, check and resolve a configuration that is already plain data; `folder`: what paths are relative to.

    Raises:
        InputError: as `load`.
    """
    lines = lines if lines is not None else {}
    for override in overrides:
        apply(override, data, lines)
    return resolve(check(data, lines, origin=origin), folder)


def locate(error: InputError, path: str | Path, overrides: Sequence[str] = ()) -> InputError:
    """The same error with the file and line of the configuration key that it names, if the file or an override holds that key.

    Errors that only the data, the model or the trainer can reveal know the key, not the line.
    """
    try:
        data, lines = parse(Path(path).read_text(encoding="utf-8-sig"), Path(path))
        for override in overrides:
            apply(override, data, lines)
    except (OSError, UnicodeDecodeError, InputError):
        return error
    keys: Location = tuple((error.where or "").split("."))
    for end in range(len(keys), 0, -1):
        if keys[:end] in lines:
            line = lines[keys[:end]]
            where = f"{line}, {error.where}" if line == OVERRIDE else f"{path}, {line}, {error.where}"
            return type(error)(error.what, where=where, mend=error.mend)
    return error


def check(
    data: Mapping[str, Any], lines: Mapping[Location, str] | None = None, *, origin: str | Path = "config"
) -> Config:
    """Check a plain mapping against the schema; every problem is named in one `InputError`."""
    lines = lines or {}
    config, problems = examine(data)
    if config is None:
        raise InputError(
            "\n".join(
                [f"{len(problems)} error{'s' if len(problems) > 1 else ''} in the configuration"]
                + [f"  {place(location, lines)}{text}" for location, text in problems]
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


def resolve(config: Config, folder: Path) -> Config:
    """Make local paths absolute (relative to `folder`) and apply what the method fixes.

    Raises:
        InputError: a name that is nothing beside the configuration, and a path where the command was started.
    """
    data = config.model_dump(mode="json")
    for block in ("domains", "references", "tests"):
        for name, source in data[block].items():
            source["path"] = _absolute(source["path"], folder, f"{block}.{name}.path")
    data["model"] = _absolute(data["model"], folder, "model")
    for score in data["scores"].values():
        if score["lm_eval"] and Path(score["lm_eval"]).suffix.lower() in (".yaml", ".yml"):
            score["lm_eval"] = str((folder / Path(score["lm_eval"]).expanduser()).resolve())
        if score["code_tests"]:
            score["code_tests"] = str((folder / Path(score["code_tests"]).expanduser()).resolve())
    if data["search"] and data["search"]["model"]:
        data["search"]["model"] = _absolute(data["search"]["model"], folder, "search.model")
    data["output"] = str(_resolved(data["output"], folder))
    if config.method == "ideal-paper":
        for location, value in PAPER.items():
            target = data
            for part in location[:-1]:
                target = target[part]
            target[location[-1]] = value
    if data["influence"]["centred"] == "auto":
        data["influence"]["centred"] = data["allocation"]["budget"]["hold"]
    return Config.model_validate(data)


def _absolute(path: str, folder: Path, key: str) -> str:
    """Absolute if it is, or can only be, a local path; a hub name stays as it is."""
    local = _resolved(path, folder)
    looks_local = path.startswith((".", "/", "~")) or Path(path).suffix.lower() in _LOCAL_SUFFIXES
    if looks_local or local.exists():
        return str(local)
    if os.path.exists(path):  # a hub's loader would read it, against what paths are relative to
        raise InputError(
            f"{path!r} is not beside the configuration ({local}), but where the command was started "
            f"({os.path.abspath(path)}), where it is not looked for",
            where=key,
            mend=f"write ./{path} and move it beside the configuration, or give its whole path; for the hub's of "
            "that name start the command in another folder",
        )
    return path


def _resolved(path: str, folder: Path) -> Path:
    whole = folder / Path(path).expanduser()
    try:
        return whole.resolve()
    except (OSError, RuntimeError):  # a link into itself: reading it tells
        return Path(os.path.abspath(whole))
