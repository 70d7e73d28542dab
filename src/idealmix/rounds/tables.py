"""A round in tables for the terminal: title, columns, rows of text.

Flows in: a round, an influence matrix, an allocation, a story. Flows out: what `Watch.table` takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from idealmix.allocation import Allocation
from idealmix.evaluation.set_loss import SetLoss
from idealmix.influence_matrix import InfluenceMatrix

if TYPE_CHECKING:
    from idealmix.rounds.loop import Round, Story

Table = tuple[str, list[str], list[list[str]]]


def round_table(story: Story, one: Round) -> Table:
    """Losses on the deciding halves: base, round 0 and this round, and the objective."""
    first = story.rounds[0]
    record = one.trained.record
    steps = f", {record.steps:,} steps" if record.steps else ""
    title = (
        f"Round {one.index}, trained on {record.rows:,} rows, {record.tokens:,} tokens, "
        f"{record.supervised_tokens:,} supervised{steps}"
    )
    columns = ["loss (nats per token)", "base", *([] if one is first else ["round 0"]), f"round {one.index}"]
    earlier = [
        story.base.deciding,
        *([] if one is first else [first.evaluated.deciding]),
        one.evaluated.deciding,
    ]
    rows = [
        [name, *(_with_error(losses[name].mean, losses[name].se) for losses in earlier)]
        for name in one.evaluated.deciding
    ]
    rows.append(
        [
            f"objective ({story.config.objective})",
            *(_with_error(*story.goal.value(losses)[:2]) for losses in earlier),
        ]
    )
    scored = [story.base.scores, *([] if one is first else [first.evaluated.scores]), one.evaluated.scores]
    rows += [
        [f"{name}: score on its reference set", *(_score_cell(scores[name].to_json()) for scores in scored)]
        for name in one.evaluated.scores
    ]
    return title, columns, rows


def influence_table(matrix: InfluenceMatrix) -> Table:
    """The matrix, with its standard error and the sign in words."""
    words = matrix.signs()
    rows = [
        [
            reference,
            *(
                words[q][i]
                if words[q][i] == "not measured"
                else f"{_short(matrix.alpha[q, i], matrix.se_population[q, i])} "
                + words[q][i].replace("cannot be told from zero", "unclear")
                for i in range(len(matrix.domains))
            ),
        ]
        for q, reference in enumerate(matrix.references)
    ]
    title = f"Influence, {matrix.units}. Unclear: cannot be told from zero"
    return title, ["on the loss of", *matrix.domains], rows


def allocation_table(step: Allocation) -> Table:
    """Counts before and after, and why."""
    rows = [
        [
            name,
            f"{move.before:,}",
            f"{move.after:,}",
            f"{move.beta:+.1%}",
            "" if move.slope is None else _short(move.slope, move.slope_se),
            move.note,
        ]
        for name, move in step.moves.items()
    ]
    columns = ["domain", "rows before", "rows after", "change", "slope", "why"]
    return f"Next mixture (m = {step.m:.3g})", columns, rows


def final_table(story: Story) -> Table | None:
    """Joint SFT against the chosen mixture on the test sets, at their budgets."""
    if "joint" not in story.scores or story.state is None:
        return None
    first, best = story.rounds[0].trained.record, story.rounds[story.state.best].trained.record
    columns = [
        "test sets (no decision used them)",
        "base",
        "joint (round 0)",
        f"{story.config.method} (round {story.state.best})",
    ]
    labels = ("base", "joint", "chosen")
    rows: list[list[str]] = []
    for name in story.scores["joint"]["tests"]:
        rows.append([f"{name}: loss", *(_loss_cell(story.scores[label]["tests"][name]) for label in labels)])
    for name, found in story.scores["joint"]["scores"].items():
        title = f"{name}: score on {found['n']}"
        rows.append([title, *(_score_cell(story.scores[label]["scores"][name]) for label in labels)])
    for title, key in (
        ("rows", "rows"),
        ("tokens", "tokens"),
        ("supervised tokens", "supervised_tokens"),
        ("steps", "steps"),
    ):
        rows.append([f"trained on: {title}", "", f"{getattr(first, key):,}", f"{getattr(best, key):,}"])
    return f"Joint SFT against {story.config.method}", columns, rows


def _loss_cell(found: dict[str, Any]) -> str:
    loss = SetLoss.from_json(found)
    return _with_error(loss.mean, loss.se)


def _score_cell(found: dict[str, Any]) -> str:
    error = "" if found["se"] is None else f" ± {100 * found['se']:.1f}"
    return f"{100 * found['mean']:.1f}{error} %"


def _with_error(value: float, se: float | None) -> str:
    return f"{value:.4f}" if se is None else f"{value:.4f} ± {se:.4f}"


def _short(value: float, se: float | None) -> str:
    """Three significant digits, for figures of any size."""
    return f"{value:+.3g}" if se is None else f"{value:+.3g} ± {se:.2g}"
