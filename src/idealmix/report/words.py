"""What the numbers say, in words: pure functions shared by the page and the terminal.

Flows in: numbers of result.json (values, standard errors, degrees of freedom, decisions). Flows out: short plain
texts and verdicts. No file access, no torch, no HTML: the caller escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtr, stdtrit

Sign = Literal["helps", "hurts", "cannot be told from zero", "not tested", "not measured"]
Verdict = Literal["better", "worse", "undecided", "same", "unequal"]

LEVEL = 0.05
UNITS = {"tokens": "training tokens", "supervised_tokens": "supervised tokens", "rows": "rows"}
OBJECTIVES = {
    "mean_loss": ("weighted mean loss", "nats per supervised token"),
    "relative": ("mean loss relative to round 0", "of round 0's loss"),
    "worst": ("loss of the worst reference set", "nats per supervised token"),
}
DECISIONS = {
    "start": "the start",
    "better": "kept: better than the best so far",
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
    if se <= 0:
        return 1.0 if value == 0 else 0.0
    return 2 * float(stdtr(_dof(dof), -abs(value) / se))


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
        zero". Holm's step-down over all tested entries: the chance that any sign of the table is claimed where
        there is none is at most 5%.
    """
    words: list[list[Sign]] = [["not measured" if a is None else "not tested" for a in row] for row in alpha]
    tested: list[tuple[float, int, int]] = []
    for q, row in enumerate(alpha):
        for i, a in enumerate(row):
            s = se[q][i] if se else None
            if a is not None and s is not None and math.isfinite(a) and math.isfinite(s):
                tested.append((p_value(a, s, dof[q][i] if dof else None), q, i))
    claimed = True
    for rank, (p, q, i) in enumerate(sorted(tested)):
        claimed = claimed and p <= LEVEL / (len(tested) - rank)
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
    # stdtrit and stdtr take a large number of degrees of freedom, not infinity, everywhere
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


# --- against joint -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The best mixture against joint (round 0) on the deciding halves of the reference sets.

    `value` is best minus joint in the objective's units (negative: better); `se` is None where it is not known.
    """

    verdict: Verdict
    title: str
    sentence: str
    value: float | None
    se: float | None
    dof: float | None


def against_joint(result: Mapping[str, Any]) -> Comparison:
    """Compare the best round with joint, in words that claim no more than was measured.

    Each round was compared with the best before it. Along a chain of several the differences add, and their
    standard errors are added too: an upper bound, since their correlation is not stored. Mixtures that differ by
    more than 1% in training tokens, or in optimiser steps, are never called better or worse.
    """
    rounds, best = result["rounds"], int(result["best"])
    if best == 0:
        return Comparison("same", *_kept_joint(result), None, None, None)
    value, se, dof, links = 0.0, 0.0, math.inf, 0
    known, k = True, best
    while k > 0:
        difference = rounds[k].get("difference") or {}
        if difference.get("value") is None or difference.get("se") is None:
            known = False
            break
        value, se, links = value + difference["value"], se + difference["se"], links + 1
        dof = min(dof, difference.get("dof") or math.inf)
        k = max((j for j in range(k) if rounds[j]["decision"] in ("start", "better")), default=0)
    start, chosen = rounds[0]["objective"]["value"], rounds[best]["objective"]["value"]
    if not known:
        value, links = chosen - start, 0
    error = se if known else None
    what, unit = OBJECTIVES.get(result.get("objective", ""), (str(result.get("objective")), ""))
    places = decimals(half_width(error, dof) or value, 2)
    half = half_width(error, dof)
    # the ends of the interval, read as a fall of the loss
    span = (
        "no error known"
        if half is None
        else (f"95% interval {number(-value - half, places)} to {number(-value + half, places)}")
    )
    moved = f"from {number(start, places)} to {number(chosen, places)}"
    fall, rise = number(abs(value), places), value > 0
    went = f"{'rises' if rise else 'falls'} {moved}, by {fall} {unit}".rstrip()
    if rise and half is not None:
        span = f"95% interval of the rise {number(value - half, places)} to {number(value + half, places)}"
    many = (
        " The interval adds the errors of all steps on the way, so it is wider than need be."
        if links > 1
        else ""
    )
    unequal = _unequal(rounds[0], rounds[best])
    if unequal:
        return Comparison(
            "unequal",
            "Not an equal comparison",
            f"It trained with {unequal} than joint, so it is called neither better nor worse. "
            f"The {what} {went} ({span}); part of that can come from the volume.{many}",
            value, error, dof,
        )  # fmt: skip
    says = verdict(value, error, dof)
    if says == "undecided":
        sentence = (
            f"The {what} {went}, but the {span} includes zero: this run cannot tell the mixture from joint."
            if half is not None
            else f"The {what} {went}, but no error is known, so this run cannot tell the mixture from joint."
        )
        return Comparison(says, "Undecided against joint", sentence + many, value, error, dof)
    title = "Better than joint" if says == "better" else "Worse than joint"
    sentence = f"At the same budget the {what} {went} ({span}).{many}"
    return Comparison(says, title, sentence, value, error, dof)


def seed_noise(result: Mapping[str, Any]) -> str:
    """Whether the noise of the training seed is inside the intervals."""
    replicates = result.get("replicates") or {}
    count, sd = replicates.get("count") or 0, replicates.get("seed_sd_objective")
    if not count or sd is None:
        return (
            "Training was not repeated with other seeds: intervals cover the choice of reference rows only, "
            "and the truth may lie further out."
        )
    times = "once" if count == 1 else f"{count} times"
    return (
        f"Joint was trained {times} more with another seed: the objective's standard deviation by seed is "
        f"{number(sd, decimals(sd, 2))}, which the decisions include."
    )


def tests_sentence(differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Which test sets are better, worse, or undecided, in one sentence."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for name, d in differences.items():
        groups[verdict(d["value"], d.get("se"), d.get("dof"))].append(name)
    parts = []
    if groups["better"]:
        parts.append(f"better on {listing(groups['better'])}")
    if groups["worse"]:
        parts.append(f"worse on {listing(groups['worse'])}")
    if groups["undecided"]:
        parts.append(f"not to be told from joint on {listing(groups['undecided'])}")
    return f"On the test sets, which no decision saw, it is {listing(parts)}." if parts else ""


def _kept_joint(result: Mapping[str, Any]) -> tuple[str, str]:
    tried = [r["decision"] for r in result["rounds"][1:]]
    if not tried:
        return "Joint, as it was", "No other mixture was trained, so there is nothing to compare joint with."
    worse, undecided = tried.count("worse"), tried.count("undecided")
    parts = []
    if worse:
        parts.append(f"{worse} {'was' if worse == 1 else 'were'} worse than joint")
    if undecided:
        parts.append(f"{undecided} could not be told from it")
    found = f": {listing(parts)}" if parts else ""
    mixtures = plural(len(tried), "other mixture")
    return "No better mixture found", f"{mixtures} {'was' if len(tried) == 1 else 'were'} trained{found}."


def _unequal(start: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """How the volumes differ beyond the tolerance of a fair comparison; empty when they do not."""
    parts = []
    before, after = start.get("tokens"), chosen.get("tokens")
    if before and after and abs(after / before - 1) > 0.01:
        parts.append(f"{percent(abs(after / before - 1))} {'more' if after > before else 'fewer'} tokens")
    before, after = start.get("steps"), chosen.get("steps")
    if before is not None and after is not None and before != after:
        more = "more" if after > before else "fewer"
        parts.append(
            f"{whole(abs(after - before))} {more} optimiser {'step' if abs(after - before) == 1 else 'steps'}"
        )
    return listing(parts)
