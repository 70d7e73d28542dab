"""The best mixture against joint, in words that claim no more than was measured.

Flows in: the mapping of result.json. Flows out: a verdict with its sentences; the caller escapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idealmix.report.words import (
    OBJECTIVES,
    Verdict,
    decimals,
    half_width,
    listing,
    number,
    percent,
    plural,
    verdict,
    whole,
)


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

    The figure is the paired difference of the two on the same rows (``difference_from_start``). Mixtures that differ
    by more than 1% in training tokens, or in optimiser steps, are never called better or worse.
    """
    rounds, best = result["rounds"], int(result["best"])
    if best == 0:
        return Comparison("same", *_kept_joint(result), None, None, None)
    difference = rounds[best].get("difference_from_start") or {}
    value, se, dof = difference.get("value"), difference.get("se"), difference.get("dof") or math.inf
    # a difference from joint is one from the mean of all its trainings
    trained = (result.get("replicates") or {}).get("objectives") or [rounds[0]["objective"]["value"]]
    start, chosen = sum(trained) / len(trained), rounds[best]["objective"]["value"]
    if value is None:
        value, se = chosen - start, None
    error = se
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
    unequal = _unequal(rounds[0], rounds[best])
    if unequal:
        return Comparison(
            "unequal",
            "Not an equal comparison",
            f"It trained with {unequal} than joint, so it is called neither better nor worse. "
            f"The {what} {went} ({span}); part of that can come from the volume.",
            value, error, dof,
        )  # fmt: skip
    says = verdict(value, error, dof)
    if says == "undecided":
        sentence = (
            f"The {what} {went}, but the {span} includes zero: this run cannot tell the mixture from joint."
            if half is not None
            else f"The {what} {went}, but no error is known, so this run cannot tell the mixture from joint."
        )
        return Comparison(says, "Undecided against joint", sentence, value, error, dof)
    title = "Better than joint" if says == "better" else "Worse than joint"
    sentence = f"At the same budget the {what} {went} ({span})."
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
    seeds = "another seed" if count == 1 else f"{count} other seeds"
    return (
        f"Joint was trained again with {seeds}, and its loss here is the mean: the objective's standard deviation by "
        f"seed is {number(sd, decimals(sd, 2))}, which the decisions include."
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
