"""Scores: exact match of generated answers, tests of generated code, what a user's own function measures, a task of lm-eval.

Flows in: a model, its tokenizer, a test pool, one entry of the config's `scores`. Flows out: a `ScoreResult`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idealmix.config import Score
from idealmix.curvature import Processes
from idealmix.errors import InputError
from idealmix.evaluation import code_tests, harness
from idealmix.evaluation.exact_match import compile_pattern, is_right, reference_answers
from idealmix.evaluation.generation import answer_text, generate
from idealmix.evaluation.score_result import ScoreResult as ScoreResult
from idealmix.evaluation.score_result import from_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idealmix.data.conversation import Conversation
    from idealmix.data.pools import Pool

Progress = Callable[[int, int], None]


def score(
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool | None,
    setting: Score,
    folder: Path | None = None,
    progress: Progress | None = None,
    answers: Sequence[str] | None = None,
) -> ScoreResult:
    """Score a model on the first `setting.rows` rows of a test pool, or of a task that brings its own.

    Args:
        name: the score's, for messages.
        model: a causal language model, on its device.
        tokenizer: the model's.
        pool: the test set; None for `setting.lm_eval`.
        setting: one entry of the config's `scores`.
        folder: where the module of `setting.callable` is looked for first; None: the working directory.
        progress: called with rows generated and rows in total.
        answers: what `written` gave for the same arguments; None: they are generated here.

    Raises:
        InputError: a bad pattern, references without an answer, rows without tests, a function that cannot be imported, fails, or
            returns something else than numbers; see `harness.score_task`.
    """
    if setting.lm_eval is not None:
        return harness.score_task(name, model, tokenizer, setting, progress)
    if pool is None:
        raise RuntimeError("a score on a test set is asked with its pool")
    rows, where = _rows(pool, setting), f"scores.{name}"
    if setting.callable is None:
        if answers is None:
            check_rows(name, setting, pool)  # before the minutes that it takes to generate
            answers = generate(model, tokenizer, rows, setting.max_new_tokens, progress=progress)
        texts = {row.id: text for row, text in zip(rows, answers)}
        return from_rows(name, _judged(where, setting, rows, texts))
    where, target = f"{where}.callable", str(setting.callable)
    function = load_function(target, where, folder or Path.cwd())
    with _importing_from(folder or Path.cwd()):
        try:
            returned = function(model, tokenizer, [_as_row(row) for row in rows])
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"{target} raised {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})",
                where=where,
            ) from error
    return _result(name, returned, [row.id for row in rows], where, target)


def written(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool | None,
    setting: Score,
    progress: Progress | None = None,
    processes: Processes | None = None,
    batch_tokens: int = 16384,
) -> list[str] | None:
    """The answers that a score judges, shared by processes; None where the score makes its own (a function, a task of lm-eval).

    `batch_tokens` as for `generate`.
    """
    if pool is None or setting.callable is not None:
        return None
    rows = _rows(pool, setting)
    return generate(
        model,
        tokenizer,
        rows,
        setting.max_new_tokens,
        batch_tokens,
        progress=progress,
        processes=processes,
    )


def check_score(name: str, setting: Score, folder: Path | None = None) -> None:
    """Raise what `score` would raise for the setting alone: worth a call before training."""
    if setting.lm_eval is not None:
        harness.check_task(name, setting)
    elif setting.exact_match is not None:
        compile_pattern(setting.exact_match, f"scores.{name}.exact_match")
    elif setting.code_tests is not None:
        code_tests.load_tests(setting.code_tests, f"scores.{name}.code_tests")
    else:
        load_function(str(setting.callable), f"scores.{name}.callable", folder or Path.cwd())


def check_rows(name: str, setting: Score, pool: Pool) -> None:
    """Raise what `score` would raise for the rows of its test set: worth a call before training, too."""
    if setting.code_tests is not None:
        where = f"scores.{name}.code_tests"
        code_tests.asked(code_tests.load_tests(setting.code_tests, where), pool.ids[: setting.rows], where)
    elif setting.exact_match is not None:
        _wanted(f"scores.{name}", setting, _rows(pool, setting))


def score_digest(name: str, setting: Score, folder: Path | None = None) -> str | None:
    """Of the module that holds a user's function, of tests, or of a task: figures of an older version are not reused."""
    if setting.lm_eval is not None:
        return harness.task_digest(setting)
    if setting.code_tests is not None:
        return code_tests.digest(setting.code_tests)
    if setting.callable is None:
        return None
    function = load_function(setting.callable, f"scores.{name}.callable", folder or Path.cwd())
    source = inspect.getsourcefile(inspect.unwrap(function))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None


def load_function(target: str, where: str, folder: Path) -> Callable[..., Any]:
    """The function that `'module:function'` names; `folder` is searched before installed packages.

    Raises:
        InputError: not of that form, no such module or function, or the module fails while it is imported.
    """
    module_name, colon, name = target.partition(":")
    if (
        not colon
        or not name.isidentifier()
        or not all(part.isidentifier() for part in module_name.split("."))
    ):
        raise InputError(
            f"{target!r} does not name a function",
            where=where,
            mend="write 'module:function', such as 'my_scores:pass_at_1' for my_scores.py in the working directory",
        )
    with _importing_from(folder):
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "?")
            raise InputError(
                f"there is no module {module_name!r} in {folder} or among the installed packages"
                if missing
                else f"importing {module_name!r} failed: {type(error).__name__}: {error}",
                where=where,
                mend=f"put the file into {folder}, or install the package that holds it" if missing else None,
            ) from error
    function = getattr(module, name, None)
    if not callable(function):
        here = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(
            f"{module_name!r} has no function {name!r}",
            where=where,
            mend=f"it has {', '.join(here[:8])}" if here else f"define it in {module.__file__}",
        )
    return function


def _rows(pool: Pool, setting: Score) -> list[Conversation]:
    return [pool.conversation(i) for i in range(min(len(pool), setting.rows or len(pool)))]


def _judged(
    where: str, setting: Score, rows: Sequence[Conversation], texts: Mapping[str, str]
) -> dict[str, float]:
    """1.0 for a right answer, 0.0 for a wrong one, by row id."""
    if setting.code_tests is not None:
        tests = code_tests.load_tests(setting.code_tests, f"{where}.code_tests")
        return code_tests.run_tests(tests, texts)
    pattern, wanted = _wanted(where, setting, rows)
    return {row_id: float(is_right(pattern, text, wanted[row_id])) for row_id, text in texts.items()}


def _wanted(
    where: str, setting: Score, rows: Sequence[Conversation]
) -> tuple[re.Pattern[str], dict[str, str]]:
    """The pattern, and what it finds in each reference answer."""
    pattern = compile_pattern(str(setting.exact_match), f"{where}.exact_match")
    return pattern, reference_answers(pattern, {row.id: answer_text(row) for row in rows}, where)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Inside: `folder` stands first on the import path."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _as_row(conversation: Conversation) -> dict[str, Any]:
    """A row as the user's function gets it: `id`, `messages`, `tools`, `prompt` (messages), `response` (text) or `text`."""
    if conversation.text is not None:
        return {"id": conversation.id, "text": conversation.text}
    answer = conversation.answer
    return {
        "id": conversation.id,
        "messages": conversation.messages,
        "tools": conversation.tools,
        "prompt": conversation.prompt,
        "response": answer and (answer.get("content") or ""),
    }


def _result(name: str, returned: Any, ids: list[str], where: str, target: str) -> ScoreResult:
    if isinstance(returned, Mapping):
        if set(returned) != set(ids):
            raise _not_numbers(
                target, f"a mapping whose {len(returned)} keys are not the {len(ids)} row ids", where
            )
        returned = [returned[row_id] for row_id in ids]
    if isinstance(returned, Sequence | np.ndarray) and not isinstance(returned, str | bytes):
        if len(returned) != len(ids):
            raise _not_numbers(target, f"{len(returned)} numbers for {len(ids)} rows", where)
        return from_rows(name, dict(zip(ids, [_number(value, target, where) for value in returned])))
    return ScoreResult(name, _number(returned, target, where), None, len(ids), None)


def _number(value: Any, target: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise _not_numbers(target, f"{value!r:.80}", where) from None
    if not math.isfinite(number):
        raise _not_numbers(target, f"{number}", where)
    return number


def _not_numbers(target: str, what: str, where: str) -> InputError:
    return InputError(
        f"{target} returned {what}",
        where=where,
        mend="return one finite number, a list with one for each row, or a mapping from row id to number",
    )
