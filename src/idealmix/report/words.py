"""What the numbers say, in words: pure functions shared by the page and the terminal.

Flows in: numbers of result.json (values, standard errors, degrees of freedom, decisions). Flows out: short plain
texts and verdicts. No file access, no torch, no HTML: the caller escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy.special import stdtrit

from idealmix import certainty
from idealmix.certainty import LEVEL

Sign = Literal["helps", "hurts", "cannot be told from zero", "not tested", "not measured"]
Verdict = Literal["better", "worse", "undecided", "same", "unequal"]

UNITS = {"tokens": "training tokens", "supervised_tokens": "supervised tokens", "rows": "rows"}
OBJECTIVES = {
    "mean_loss": ("weighted mean loss", "nats per supervised token"),
    "relative": ("mean loss relative to round 0", "of round 0's loss"),
    "progress": ("progress over the base model, lower is better", "of round 0's gain"),
    "worst": ("loss of the worst reference set", "nats per supervised token"),
}
DECISIONS = {
    "start": "the start",
    "better": "kept: better than the best so far",
    "leaning": "kept: measured lower than the best so far, which may be chance",
    "worse": "rejected: worse than the best so far",
    "undecided": "not kept: cannot be told from the best so far",
}

# --- numbers -------------------------------------------------------------------------------------------------


def decimals(size: float | None, digits: int = 3) -> int:
    """Decimal places at which a number of this size shows that many significant digits (0 to 8)."""
    if size is None or not math.isfinite(size) or size == 0:
        return digits
    return min(max(digits - 1 - math.floor(math.log10(abs(size))), 0), 8)


def number(value: float | None, places: int = 3, *, plus: bool = False) -> str:
    """A number with a true minus sign; an en dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+,.{places}f}" if plus else f"{value:,.{places}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("+-")


def whole(value: float | None) -> str:
    """An amount with thousands separators."""
    return number(value, 0)


def percent(fraction: float | None, *, plus: bool = False) -> str:
    """A fraction as per cent, with one decimal below ten."""
    if fraction is None:
        return "–"
    return number(100 * fraction, 0 if abs(fraction) >= 0.0995 else 1, plus=plus) + "%"


def duration(seconds: float) -> str:
    """Seconds in words: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def model_name(model: str | None) -> str | None:
    """A hub name as it is; of a local folder its last part, which is what people call it."""
    if not model or not (model.startswith(("/", "~", ".")) or "\\" in model):
        return model
    return model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def listing(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


def plural(amount: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{whole(amount)} {noun}" if amount == 1 else f"{whole(amount)} {noun}s"


# --- certainty -----------------------------------------------------------------------------------------------


def half_width(se: float | None, dof: float | None = None) -> float | None:
    """Half the 95% interval: the t quantile at `dof` (None: normal) times `se`; None without a standard error."""
    if se is None or not math.isfinite(se):
        return None
    return float(stdtrit(_dof(dof), 1 - LEVEL / 2)) * se


def p_value(value: float, se: float, dof: float | None = None) -> float:
    """Two-sided p of `value` against zero (t distribution; None: normal)."""
    return certainty.p_value(value, max(se, 0.0), _dof(dof))


def signs(
    alpha: Sequence[Sequence[float | None]],
    se: Sequence[Sequence[float | None]] | None,
    dof: Sequence[Sequence[float | None]] | None = None,
) -> list[list[Sign]]:
    """The sign of every influence in words.

    Args:
        alpha: references x domains; null entries are "not measured".
        se: its population standard errors; None or null entries leave a sign "not tested".
        dof: their degrees of freedom; None: normal.

    Returns:
        For each entry "helps" (alpha < 0: more of the domain lowers the loss), "hurts", or "cannot be told from
        zero". Holm's step-down over all measured entries, those without a known error among them, as
        `InfluenceMatrix.signs`: the chance that any sign of the table is claimed where there is none is at most 5%.
    """
    words: list[list[Sign]] = [["not measured" if a is None else "not tested" for a in row] for row in alpha]
    tested: list[tuple[float, int, int]] = []
    for q, row in enumerate(alpha):
        for i, a in enumerate(row):
            s = se[q][i] if se else None
            if a is not None and s is not None and math.isfinite(a) and math.isfinite(s):
                tested.append((p_value(a, s, dof[q][i] if dof else None), q, i))
    claimed, measured = True, sum(a is not None for row in alpha for a in row)
    for rank, (p, q, i) in enumerate(sorted(tested)):
        claimed = claimed and p <= LEVEL / (measured - rank)
        a = alpha[q][i] or 0.0
        words[q][i] = ("helps" if a < 0 else "hurts") if claimed else "cannot be told from zero"
    return words


def interval(value: float, se: float | None, dof: float | None = None, places: int = 4) -> str:
    """``−0.0412 to −0.0274``, or that no error is known."""
    half = half_width(se, dof)
    if half is None:
        return "no error known"
    return f"{number(value - half, places, plus=True)} to {number(value + half, places, plus=True)}"


def verdict(
    value: float, se: float | None, dof: float | None = None, *, lower_is_better: bool = True
) -> Verdict:
    """Whether a difference (new minus old) is better, worse, or undecided at its own 95% interval."""
    half = half_width(se, dof)
    if half is None or abs(value) <= half:
        return "undecided"
    return "better" if (value < 0) == lower_is_better else "worse"


def _dof(dof: float | None) -> float:
    # stdtrit takes a large number of degrees of freedom, not infinity
    return 1e9 if dof is None or not math.isfinite(dof) else max(dof, 1.0)


# --- the mixture ---------------------------------------------------------------------------------------------


def amounts(result: Mapping[str, Any], of_round: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Each domain's amount in a round, in the budget's unit where the round has it by domain, else in rows."""
    unit = (result.get("budget") or {}).get("unit", "tokens")
    found = of_round.get(f"{unit}_by_domain") or of_round.get("tokens_by_domain")
    label = UNITS[unit] if of_round.get(f"{unit}_by_domain") else UNITS["tokens"]
    if unit == "rows" or not found:
        found, label = of_round["counts"], UNITS["rows"]
    return {d: float(found.get(d) or 0) for d in result["domains"]}, label


def shares(amount: Mapping[str, float]) -> dict[str, float]:
    """Amounts as fractions of their sum."""
    total = sum(amount.values())
    return {d: n / total if total else 0.0 for d, n in amount.items()}


def whole_percents(share: Mapping[str, float]) -> dict[str, str]:
    """Fractions as whole per cents that sum to 100 (largest remainder); ``<1%`` for a trace."""
    floors = {d: math.floor(100 * s) for d, s in share.items()}
    missing = round(100 * sum(share.values())) - sum(floors.values())
    for d in sorted(share, key=lambda d: floors[d] - 100 * share[d])[:missing]:
        floors[d] += 1
    return {d: "<1%" if share[d] > 0 and floors[d] == 0 else f"{floors[d]}%" for d in share}


def advice(share: Mapping[str, float], *, keep: bool, most: int = 6) -> str:
    """The mixture in one sentence: ``Put 38% math, 22% code and 40% chat into the mixture.``

    Args:
        share: fraction of each domain.
        keep: the mixture is the one that the user started from.
        most: with more domains, the smallest are named together.
    """
    percents = whole_percents(share)
    used = sorted((d for d in share if share[d] > 0), key=lambda d: -share[d])
    unused = [d for d in share if share[d] <= 0]
    named = used if len(used) <= most else used[: most - 1]
    parts = [f"{percents[d]} {d}" for d in named]
    if len(named) < len(used):
        rest = used[len(named) :]
        parts.append(f"{percent(sum(share[d] for d in rest))} from {len(rest)} smaller domains")
    text = f"{'Keep the joint mixture:' if keep else 'Put'} {listing(parts)}{'' if keep else ' into the mixture'}"
    if unused and len(unused) <= most:
        text += f", and leave out {listing(unused)}"
    elif unused:
        text += f", and leave out {len(unused)} domains"
    return text + "."


def than_joint(change: float, noun: str) -> str:
    """``13% more rows than joint``, ``18% fewer rows than joint``, or ``as many rows as joint`` below half a per cent."""
    if abs(change) < 0.005:
        return f"as many {noun} as joint"
    return f"{number(100 * abs(change), 0)}% {'more' if change > 0 else 'fewer'} {noun} than joint"


def move(of_domain: Mapping[str, Any]) -> str:
    """What allocation does with a domain: grows, shrinks, or stays and why."""
    beta = of_domain.get("beta") or 0.0
    if of_domain.get("gated"):
        return "stays: cannot be told from zero"
    return "grows" if beta > 0 else "shrinks" if beta < 0 else "stays"
