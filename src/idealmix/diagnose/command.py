"""Asks one question of a run, and keeps the answer.

Flows in: a configuration, the question. Flows out: an `Answer`; ``diagnose/<question>.json`` and ``diagnose/diagnosis.html``
(all answers so far) in the run folder.
"""

from __future__ import annotations

from pathlib import Path

from idealmix.config import Config
from idealmix.diagnose.answer import Answer
from idealmix.diagnose.checkpoint import find
from idealmix.diagnose.conflict import conflict
from idealmix.diagnose.fidelity import fidelity
from idealmix.diagnose.noise import noise
from idealmix.diagnose.page import write
from idealmix.diagnose.reference import reference
from idealmix.diagnose.stability import stability
from idealmix.report.page import write as report
from idealmix.rounds.watch import Watch

FIDELITY_ROWS, LISTED_ROWS, SEEDS = 24, 10, 2


def diagnose(
    config: Config,
    question: str,
    watch: Watch,
    rows: int | None = None,
    *,
    seeds: int = SEEDS,
    trainings: int = 0,
) -> tuple[Answer, Path]:
    """Ask.

    Args:
        question: ``fidelity``, ``reference``, ``conflict``, ``noise`` or ``stability``.
        rows: for fidelity, of each set, at most (None: 24); for noise, how many are listed (None: 10).
        seeds, trainings: for stability, see there.

    Returns:
        The answer and the page's path.

    Raises:
        InputError, IdealmixError: see `checkpoint.find` and `influence_stage.measure_rows`.
    """
    at = find(config, watch)
    if question == "fidelity":
        answer = fidelity(at, rows or FIDELITY_ROWS)
    elif question == "conflict":
        answer = conflict(at)
    elif question == "reference":
        answer = reference(at)
    elif question == "stability":
        answer = stability(at, seeds, trainings)
    else:
        answer = noise(at, rows or LISTED_ROWS)
    folder = Path(config.output) / "diagnose"
    answer.write(folder)
    if (Path(config.output) / "result.json").is_file():
        report(Path(config.output))  # a section there too
    return answer, write(folder, Path(config.output).name)
