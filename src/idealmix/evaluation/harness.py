"""Scores by lm-evaluation-harness: any of its tasks by name, or a local task's YAML.

Flows in: a model, its tokenizer, one entry of the config's `scores` with ``lm_eval``. Flows out: a `ScoreResult`, by
document where the metric has a figure for each.

The harness brings its own rows, so such a score names no test set. Tasks that run a model's code are not run here: the
harness runs it in this process.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idealmix.config import Score
from idealmix.errors import InputError
from idealmix.evaluation.score_result import ScoreResult, from_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SUFFIXES = (".yaml", ".yml")
_BATCH = 8


def score_task(
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    setting: Score,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreResult:
    """Score a model on the first `setting.rows` documents of a task; of a group, of each of its tasks.

    The tokenizer's chat template is used where it has one.

    Raises:
        InputError: the task cannot be loaded (see `check_task`), its data is out of reach, it runs a model's code, it has
            no such metric, or a smaller value of the metric is better.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    where, task = f"scores.{name}.lm_eval", str(setting.lm_eval)
    manager = _manager(task)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    device = str(next(model.parameters()).device)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH, device=device)
    try:
        found = simple_evaluate(
            harness,
            tasks=[task],
            task_manager=manager,
            limit=setting.rows,
            bootstrap_iters=0,
            apply_chat_template=bool(tokenizer.chat_template),
        )
    except KeyError as error:
        raise _unknown(task, manager, where) from error
    except (
        Exception
    ) as error:  # datasets, YAML, templates, the task's own code: the harness lets everything through
        raise InputError(
            f"the task {task!r} cannot be run: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
            where=where,
            mend="see that its data can be reached and that it does not run a model's code; try it with `lm_eval run` alone",
        ) from error
    if found is None:
        raise RuntimeError("only the first process scores")
    if progress:
        progress(1, 1)
    return _result(name, task, found, setting, where)


def check_task(name: str, setting: Score) -> None:
    """Raise what can be told without a model: the harness is not installed, or there is no such task.

    Raises:
        InputError: see above.
    """
    where = f"scores.{name}.lm_eval"
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "lm-evaluation-harness is not installed", where=where, mend="pip install 'idealmix[eval]'"
        )
    task = str(setting.lm_eval)
    if _is_file(task):
        if not Path(task).is_file():
            raise InputError("no such task file", where=f"{where}: {task}", mend="check the path's spelling")
        return
    manager = _manager(task)
    if task not in manager.all_tasks:
        raise _unknown(task, manager, where)


def task_digest(setting: Score) -> str:
    """What a task's figures depend on: the harness's version, and a local task's file."""
    task, version = str(setting.lm_eval), importlib.metadata.version("lm_eval")
    return hashlib.sha256(Path(task).read_bytes()).hexdigest() + version if _is_file(task) else version


def _is_file(task: str) -> bool:
    return Path(task).suffix.lower() in _SUFFIXES


def _manager(task: str) -> Any:
    return _index(own_tasks=not _is_file(task))


@functools.cache
def _index(*, own_tasks: bool) -> Any:
    """The harness's index of its 14,000 tasks takes ten seconds to read; a file needs none of it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=own_tasks)


def _unknown(task: str, manager: Any, where: str) -> InputError:
    near = difflib.get_close_matches(task, manager.all_tasks, n=3, cutoff=0.6)
    return InputError(
        f"lm-evaluation-harness has no task {task!r}",
        where=where,
        mend=f"did you mean {' or '.join(near)}?"
        if near
        else "`lm_eval ls tasks` lists them; or give a YAML file",
    )


def _result(name: str, task: str, found: Mapping[str, Any], setting: Score, where: str) -> ScoreResult:
    """The asked metric: over documents where each has a figure and the task's is their mean, else the task's alone."""
    results = found.get("groups") or found["results"]
    entry = next(iter(results.values())) if task not in results else results[task]
    metrics = [key for key in entry if "," in key and "_stderr" not in key]
    asked = setting.metric
    chosen = next((key for key in metrics if asked in (None, key, key.split(",")[0])), None)
    if chosen is None:
        raise InputError(
            f"the task {task!r} has no metric {asked!r}" if asked else f"the task {task!r} has no metric",
            where=where.replace("lm_eval", "metric"),
            mend=f"it has {', '.join(metrics)}" if metrics else None,
        )
    metric, filtered = chosen.split(",", 1)
    better = [tasks.get(metric) for tasks in found["higher_is_better"].values()]
    if False in better:
        raise InputError(
            f"of {metric!r} a smaller value is better, and a score's larger one is",
            where=where.replace("lm_eval", "metric"),
            mend="a test set's loss is reported without a score; choose another metric",
        )
    mean = float(entry[chosen])
    rows = {
        f"{part}/{sample['doc_id']}": sample[metric]
        for part, samples in found["samples"].items()
        for sample in samples
        if sample["filter"] == filtered and metric in sample
    }
    numbers = all(isinstance(value, int | float | np.number | np.bool_) for value in rows.values())
    if rows and numbers and math.isclose(np.mean(list(rows.values())), mean, abs_tol=1e-9):
        return from_rows(name, {row: float(value) for row, value in rows.items()})
    documents = sum(int(part["effective"]) for part in found["n-samples"].values())
    return ScoreResult(name, mean, None, documents, None)
