"""Every problem of a configuration at once: the schema's, the trainer's keys, and what needs more than one key.

Flows in: a configuration as plain data. Flows out: the checked `Config`, or a list of (location, sentence).
"""

from __future__ import annotations

import copy
import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from idealmix.config import Config
from idealmix.configlines import Location
from idealmix.errors import InputError
from idealmix.methods import check_name

Problem = tuple[Location, str]

# Names become file names in the run folder and words in the report.
_NAME = re.compile(r"\A[\w][\w .+-]{0,63}\Z")

# The trainer's generators take 32 bits, and the replicates' seeds lie a million apart (rounds.loop).
_LARGEST_SEED = 2**31 - 1
_MOST_REPLICATES = 1000

# `method: ideal-paper` is the paper to the letter (section 4.1): m = 0.15, free volume, the uncentred
# influence, MLP layers, two changes of the volumes (three trainings), every domain moved whatever its error.
PAPER = {
    ("allocation", "rule"): "scaled",
    ("allocation", "m"): 0.15,
    ("allocation", "budget", "hold"): False,
    ("allocation", "gate"): False,
    ("allocation", "rounds"): 3,
    ("allocation", "patience"): 3,
    ("allocation", "replicates"): 0,
    ("influence", "centred"): False,
    ("influence", "layers"): "mlp",
}


def examine(data: Mapping[str, Any]) -> tuple[Config | None, list[Problem]]:
    """Check a plain mapping.

    A value that the schema refuses does not hide what else is wrong: it is reported, taken out of a copy, and the
    rest is examined.

    Returns:
        The configuration, None if there is any problem; and the problems.
    """
    rest = copy.deepcopy(dict(data))
    problems: list[Problem] = []
    while True:
        try:
            config = Config.model_validate(rest)
            break
        except ValidationError as error:
            # a default that waits for a refused key says nothing of its own
            found = [
                _explain(entry) for entry in error.errors() if entry["type"] != "default_factory_not_called"
            ]
        problems += found
        before = copy.deepcopy(rest)
        for location, _ in found:
            _take_out(rest, location)
        if rest == before:  # nothing to take out: the rest cannot be examined
            return None, problems
    told = [location for location, _ in problems]
    for location, text in [*_cross_checks(config), *_training_checks(config)]:
        if not any(location[: len(other)] == other for other in told):
            problems.append((location, text))
    return (None if problems else config), problems


_NEEDED: dict[str, Any] = {"model": "-", "domains": {"-": "-"}, "references": {"-": "-"}}


def _take_out(data: dict[str, Any], location: Location) -> None:
    """Remove what stands at `location`, or put a placeholder where the schema needs something."""
    top = location[0] if location else None
    if len(location) <= 1 and top in _NEEDED:
        data[str(top)] = copy.deepcopy(_NEEDED[str(top)])
        if top != "model":  # these name domains and references, which are not known now
            for block in ("constraints", "allocation"):
                data.pop(block, None)
        return
    if top in ("domains", "references", "tests") and len(location) > 1:
        data[str(top)][location[1]] = "-"
        return
    target: Any = data
    for depth, part in enumerate(location):
        inside = target.get(part) if isinstance(target, dict) else None
        if depth < len(location) - 1 and isinstance(inside, dict):
            target = inside
            continue
        if isinstance(target, dict) and part in target:
            del target[part]
        elif depth and top is not None:  # a rule of the whole block, or a required key of it
            data.pop(str(top), None)
        return


def _training_checks(config: Config) -> Iterator[Problem]:
    """Keys of `training` that its backend does not take; asked only where there are such keys, as TRL loads slowly."""
    training = config.training
    if training.backend == "command":
        from idealmix.training.command import filled_in

        try:
            filled_in(training.command or "", model="", train_file="", output_dir="")
        except InputError as error:
            yield ("training", "command"), f"{error.what}; {error.mend}"
        fields = type(training).model_fields
        for key, value in training:
            if key not in _BESIDE_A_COMMAND and (key not in fields or value != fields[key].default):
                yield (
                    ("training", key),
                    "backend: command does not use this; such settings belong into your command",
                )
    elif training.extra_arguments:
        from idealmix.training.arguments import extra_problems

        for key, text in extra_problems(training):
            yield ("training", key), text


# What idealmix itself uses where an outside command trains: the tokenisation and the evaluation.
_BESIDE_A_COMMAND = {"backend", "command", "max_length", "dtype"}


def place(location: Location, lines: Mapping[Location, str]) -> str:
    """``line 12, training.epochs: `` for the deepest part of a location that the file holds."""
    name = ".".join(str(part) for part in location)
    for end in range(len(location), -1, -1):
        if location[:end] in lines:
            line = lines[location[:end]]
            return f"{line}, {name}: " if name else f"{line}: "
    return f"{name}: " if name else ""


def _explain(error: Mapping[str, Any]) -> Problem:
    # pydantic adds the name of a union's member to the location; a user has not written it
    location = tuple(part for part in error["loc"] if not (isinstance(part, str) and _is_union_tag(part)))
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return location, _unknown_key(str(location[-1]), _known_keys(location[:-1]))
    if kind == "missing":
        return location, "this key is required"
    given = error.get("input")
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        message = "a block of keys belongs here, or leave it out"
    elif kind == "dict_type":
        message = "a block of names with values belongs here"
    if isinstance(given, str | int | float | bool):
        message = f"{message}; found {given!r}"
    return location, message[0].lower() + message[1:]


_UNION_TAG = re.compile(
    r"^(?:str|int|float|bool|list\[.*\]|dict\[.*\]|literal\[.*\]|function-.*|constrained-.*)$"
)


def _is_union_tag(part: str) -> bool:
    return bool(_UNION_TAG.match(part))


def _unknown_key(key: str, known: Sequence[str]) -> str:
    """The sentence for a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"


def _known_keys(location: Location) -> list[str]:
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


def _cross_checks(config: Config) -> Iterator[Problem]:
    named: list[tuple[Location, str]] = [(("methods", method), method) for method in config.methods]
    for location, method in [(("method",), config.method), *named]:
        if problem := check_name(method):
            yield location, problem
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
    yield from _paths(config)
    yield from _endless(config.methods, ("methods",))
    yield from _endless(config.training.extra_arguments, ("training",))
    if config.seed > _LARGEST_SEED:
        yield ("seed",), f"the largest seed is {_LARGEST_SEED:,}"
    if config.allocation.replicates > _MOST_REPLICATES:
        yield ("allocation", "replicates"), f"that many trainings never end; the most is {_MOST_REPLICATES}"
    weights = [source.weight for source in config.references.values()]
    if not any(weights):
        yield ("references",), "every weight is 0: nothing would be optimised"
    yield from _names(config.constraints, config.references, "constraints", "reference set")
    for name, score in config.scores.items():
        if score.test is not None and score.test not in config.tests:
            yield ("scores", name, "test"), _absent(score.test, config.tests, "test set")
        if score.reference is not None and score.reference not in config.references:
            yield ("scores", name, "reference"), _absent(score.reference, config.references, "reference set")
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
    response = config.influence.response
    if response != "converged" and config.influence.curvature not in ("ekfac", "kfac"):
        yield (
            ("influence", "response"),
            f"{response!r} works in ekfac's or kfac's eigenbasis; curvature is {config.influence.curvature!r}",
        )
    if allocation.rule in ("curves", "equalise") and config.objective == "worst":
        yield (
            ("allocation", "rule"),
            f"{allocation.rule} goes as far as the objective's slope lets it, and worst has the slope of one set at a time: the others "
            "would be ruined on the way; leave the rule out (scaled then), or set objective to relative",
        )
    if allocation.rule in ("curves", "equalise") and config.method != "ideal-paper":
        if not allocation.budget.hold:
            yield (
                ("allocation", "rule"),
                f"{allocation.rule} shares out a held budget; set budget.hold to true, or rule: scaled",
            )
        if config.influence.centred is False:
            yield (
                ("influence", "centred"),
                f"allocation.rule {allocation.rule} needs the influence of a held budget; leave this at auto, or set allocation.rule to scaled",
            )
    if config.search and not config.allocation.budget.hold:
        yield (
            ("search",),
            "a search at another size needs a held budget to carry its mixture over; set allocation.budget.hold to true",
        )
    elif config.search and config.method == "ideal-paper":
        yield (
            ("search",),
            "a search at another size needs a held budget, and method ideal-paper frees the volume; leave search out",
        )
    if config.search and config.training.backend == "command":
        if config.search.lora:
            yield ("search", "lora"), "an outside command trains what it trains: adapters need backend: trl"
        if config.search.learning_rate is not None:
            yield (
                ("search", "learning_rate"),
                "an outside command trains at its own rate: another one for the search needs backend: trl",
            )
    if config.method == "ideal-paper":
        defaults = Config.model_validate({**_least(config), "method": "ideal"})
        for location, wanted in PAPER.items():
            found, default = _get(config, location), _get(defaults, location)
            if found not in (default, wanted):
                yield location, f"method ideal-paper fixes this to {wanted!r}; found {found!r}"


def _endless(value: Any, location: Location) -> Iterator[Problem]:
    """Infinities and NaN where the schema takes any value: the run folder's JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        yield location, f"a finite number is needed; found {value!r}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _endless(inner, (*location, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _endless(inner, (*location, number))


def _paths(config: Config) -> Iterator[Problem]:
    """What no file system takes as a path; whether a file is there is seen when it is read."""
    named: list[tuple[Location, str]] = [(("model",), config.model), (("output",), config.output)]
    for block in ("domains", "references", "tests"):
        named += [((block, name, "path"), source.path) for name, source in getattr(config, block).items()]
    for location, path in named:
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
            yield location, f"a path without control characters is needed; found {path!r}"
        elif not path.strip():
            yield location, "the path is empty"
        elif any(len(part.encode(errors="replace")) > 255 for part in path.split("/")) or len(path) > 4000:
            yield location, "the path is too long for any file system"
        elif path.startswith("~"):
            try:
                Path(path).expanduser()
            except RuntimeError as error:
                yield location, f"{str(error).rstrip('.')}: {path!r}"


def _names(given: Mapping[str, Any], known: Mapping[str, Any], key: str, kind: str) -> Iterator[Problem]:
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
