"""Trains a mixture by a command of the user's: any trainer that reads JSON Lines and leaves a checkpoint.

Flows in: ``training.command`` with ``{model} {train_file} {output_dir}``. Flows out: the checkpoint that the
command left in its output folder, and a record without what only the trainer itself could tell.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idealmix import config
from idealmix.disk import writing
from idealmix.errors import IdealmixError, InputError
from idealmix.training.order import StepPlan, plan_steps
from idealmix.training.record import MOMENTS, TrainingRecord

if TYPE_CHECKING:
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool

#: Seconds that a command may take to end when it is asked to; schedulers give 30 in all.
_PATIENCE = 20.0

_PLACES = ("{model}", "{train_file}", "{output_dir}")


def train_by_command(
    model: str | Path,
    mixture: Mixture,
    pools: Mapping[str, Pool],
    settings: config.Training,
    *,
    seed: int,
    output: Path,
) -> TrainingRecord:
    """Write the mixture as one file, run the command, and take its checkpoint.

    The file holds the mixture once (epochs are the command's affair) in a seeded order, a row a line:
    ``{"id", "domain", "messages"[, "tools"]}``, or ``{"id", "domain", "text"}`` for raw text. The command's
    output goes to ``output/command.log``. As its optimiser steps are unknown, the domains' weights are their
    shares of the supervised tokens, the limit of large batches.

    Raises:
        InputError: the command is not found or names no place for the file or the checkpoint.
        IdealmixError: it failed (its last lines are shown), or left no checkpoint.
    """
    began = time.monotonic()
    output = output.resolve()
    plan = plan_steps(
        mixture, pools, seed=seed, epochs=1, micro_batch_rows=1
    )  # a row a step: only the order matters
    train_file, made, log = output / "train.jsonl", output / "command", output / "command.log"
    if made.exists():
        shutil.rmtree(made)
    made.mkdir(parents=True)
    with writing(output):
        write_train_file(train_file, plan, pools)
    base = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    words = filled_in(settings.command or "", model=base, train_file=str(train_file), output_dir=str(made))
    _run(words, log)
    found, told = find_checkpoint(made), take_record(made, output)
    record = TrainingRecord(
        backend="command",
        seed=seed,
        steps=told.get("steps", 0),
        rows=told.get("rows") or plan.rows,
        tokens=told.get("tokens") or plan.tokens,
        supervised_tokens=told.get("supervised_tokens") or plan.supervised_tokens,
        step_weights=plan.token_shares,
        token_shares=plan.token_shares,
        model_path=str(found.relative_to(output)),
        seconds=time.monotonic() - began,
        trained="lora" if (found / "adapter_config.json").is_file() else "full",
        arguments={"command": words},
        warnings=[
            "an outside trainer: the domains' weights are their token shares, the limit of large batches"
            if told
            else "an outside trainer: rows, tokens and weights are those of one pass over the mixture, and the "
            "domains' weights are their token shares, the limit of large batches"
        ],
        **{key: told[key] for key in _TOLD if key in told},
    )
    record.write(output / "record.json")
    return record


# What `watched.RecordTraining` tells beside the counts.
_TOLD = ("step_sizes", "gradient_norms", "losses", "optimiser", "segments")


def take_record(made: Path, output: Path) -> dict[str, Any]:
    """What `watched.RecordTraining` left in the command's folder; its tensors go beside the record. Empty: it was not used.

    Raises:
        IdealmixError: it left something, and its record cannot be read.
    """
    left = made / "idealmix"
    if not left.is_dir():
        return {}
    try:
        told = dict(json.loads((left / "record.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IdealmixError(
            f"the record of RecordTraining cannot be read: {error}",
            where=str(left / "record.json"),
            mend="let the training end before the command does",
        ) from error
    for name in (MOMENTS, "segments"):
        if (left / name).exists():
            kept = output / name
            if kept.is_dir():  # of an interrupted attempt; `move` would put this one inside of it
                shutil.rmtree(kept)
            shutil.move(left / name, kept)
    return told


def filled_in(command: str, **places: str) -> list[str]:
    """The command's words with ``{model}``, ``{train_file}`` and ``{output_dir}`` filled in.

    It is split as a shell would, then filled, so that a path with blanks or quotes stays one word; no shell
    runs it.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"cannot be split into words: {error}", where="training.command") from error
    for place in _PLACES[1:]:
        if not any(place in word for word in words):
            raise InputError(
                f"it does not contain {place}",
                where="training.command",
                mend="for example: python my_trainer.py --model {model} --data {train_file} --out {output_dir}",
            )
    # in one pass: a path that happens to hold a place's name is a path
    return [re.sub(r"\{(\w+)\}", lambda place: places.get(place[1], place[0]), word) for word in words]


def write_train_file(path: Path, plan: StepPlan, pools: Mapping[str, Pool]) -> None:
    """The plan's rows as JSON Lines, in its order."""
    with path.open("w", encoding="utf-8") as file:
        for slot in (slot for batch in plan.share_of(0) for slot in batch):
            name = plan.domains[slot.domain]
            conversation = pools[name].conversation(slot.row)
            line: dict[str, Any] = {"id": conversation.id, "domain": name}
            if conversation.messages:
                line["messages"] = conversation.messages
                if conversation.tools:
                    line["tools"] = conversation.tools
            else:
                line["text"] = conversation.text
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _run(words: list[str], log: Path) -> None:
    last: deque[str] = deque(maxlen=12)
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a word
        raise InputError(
            f"the program cannot be started: {error}",
            where="training.command",
            mend="give a program on the PATH, or its full path; a script needs its first line (#!/bin/sh) and "
            "to be executable; shell syntax (|, &&, $VAR) is not read",
        ) from error
    try:
        with writing(log.parent), log.open("w", encoding="utf-8") as file:
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                last.append(line.rstrip())
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    if code != 0:
        raise IdealmixError(
            f"the command ended with status {code}; its last lines:\n    " + "\n    ".join(last),
            where="training.command",
            mend=f"mend what it complains about; its whole output is in {log}",
        )


def find_checkpoint(folder: Path) -> Path:
    """The folder that holds a checkpoint: ``folder`` itself, or the last complete one below it.

    Raises:
        IdealmixError: none holds config.json or adapter_config.json with safetensors weights.
    """
    configs = [*folder.rglob("config.json"), *folder.rglob("adapter_config.json")]
    complete = {path.parent for path in configs if any(path.parent.glob("*.safetensors"))}
    if folder in complete:
        return folder
    if not complete:
        seen = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))[:8])
        raise IdealmixError(
            f"the command ended well but left no checkpoint in {{output_dir}} (found: {seen or 'nothing'})",
            where="training.command",
            mend="let it save config.json (or adapter_config.json) with safetensors weights there",
        )
    return max(complete, key=lambda path: (path.stat().st_mtime, str(path)))
