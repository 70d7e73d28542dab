"""The report of a run as one self-contained HTML page.

Flows in: the mapping of result.json, and what the sliders compute with. Flows out: HTML without a font or a request to
anywhere, and with the one script that is here: its own content security policy forbids all else. Names and texts of the
run are escaped by the template.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from idealmix.decision import KEPT
from idealmix.disk import read_json, write_text
from idealmix.errors import InputError
from idealmix.report import comparison, figures, words
from idealmix.report.answers import TITLES, answers_in
from idealmix.report.layers import layers
from idealmix.report.matrix import MARKS, matrices
from idealmix.report.relations import relations
from idealmix.report.templates import render
from idealmix.report.whatif import WhatIf, embedded, load

_SCRIPTS = ("allocation.js", "whatif.js", "page.js")


def write(run_folder: Path) -> Path:
    """Write ``report.html`` from the ``result.json`` in a run folder, and return its path.

    Raises:
        InputError: the folder has no result.json, or one that this version cannot read.
    """
    result = read_json(run_folder / "result.json")
    try:
        check(result)
        page = build(result, load(run_folder, result), answers=answers_in(run_folder / "diagnose"))
    except InputError as error:
        raise InputError(error.what, where=str(run_folder / "result.json"), mend=error.mend) from None
    out = run_folder / "report.html"
    write_text(out, page)
    return out


def check(result: Any) -> None:
    """Refuse what is no result that a page can be made of.

    Raises:
        InputError: it is of another format, or incomplete.
    """
    if not isinstance(result, Mapping) or result.get("format") != 1:
        raise InputError(
            "this is not a result of format 1", mend="make it again with this version of idealmix"
        )
    missing = [key for key in ("domains", "references", "rounds", "best") if result.get(key) is None]
    if missing or not result["rounds"] or not 0 <= result["best"] < len(result["rounds"]):
        raise InputError(
            f"the result is incomplete: {words.listing(missing) or 'no such best round'}",
            mend="let the run end, then ask for the report again",
        )


def build(
    result: Mapping[str, Any],
    whatif: WhatIf | None = None,
    *,
    answers: Sequence[Mapping[str, Any]] = (),
    live: str | None = None,
) -> str:
    """The page for a result (the format of result.json, version 1).

    Args:
        whatif: what its sliders compute with; None: the page does not speak of them.
        answers: of `idealmix diagnose`, a section each.
        live: the state that `idealmix view` serves it at; None: a page on its own, which asks nobody.

    Raises:
        InputError: it is not such a result.
    """
    check(result)
    return render(
        "page.html",
        result=result,
        whatif=whatif,
        embedded=lambda data: Markup(embedded(data)),  # noqa: S704 (escaped there)
        live=live,
        **(_script(*_SCRIPTS) if live is None else _script(*_SCRIPTS, "live.js")),
        words=words,
        marks=MARKS,
        headline=_headline(result),
        losses=_losses(result),
        finals=_finals(result),
        volumes=_volumes(result),
        influences=matrices(result),
        relations=relations(result),
        layers=layers(result),
        moving=_moving(result),
        answers=answers,
        titles=TITLES,
        in_report=True,
        decisions=_decisions(result),
        facts=_facts(result),
        warnings=_warnings(result),
    )


def live_script() -> dict[str, Markup | str]:
    """The script by which a served page follows its run, and the hash that the content security policy knows it by."""
    return _script("live.js")


def _script(*names: str) -> dict[str, Markup | str]:
    """These files of the package one after the other, and their hash."""
    folder = resources.files("idealmix.report")
    text = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}  # noqa: S704 (the project's own)


def _headline(result: Mapping[str, Any]) -> dict[str, Any]:
    rounds, best = result["rounds"], result["best"]
    now, unit = words.amounts(result, rounds[best])
    before, _ = words.amounts(result, rounds[0])
    share, joint = words.shares(now), words.shares(before)
    whole, whole_joint = words.whole_percents(share), words.whole_percents(joint)
    top = max([*share.values(), *joint.values(), 0.0])
    bars = []
    for d in sorted(result["domains"], key=lambda d: -share[d]):
        change = None if best == 0 or not before[d] else now[d] / before[d] - 1
        label = f"{d}: {whole[d]} in this mixture, {whole_joint[d]} in joint"
        bars.append({
            "name": d, "share": whole[d], "joint": whole_joint[d], "change": change,
            "rows": rounds[best]["counts"].get(d), "svg": figures.bar(share[d], joint[d], top, label),
        })  # fmt: skip
    differences = (result.get("final") or {}).get("test_differences") if best else None
    return {
        "advice": words.advice(share, keep=best == 0),
        "unit": unit,
        "bars": bars,
        "against": comparison.against_joint(result),
        "tests": comparison.tests_sentence(differences or {}),
        "noise": comparison.seed_noise(result),
    }


def _losses(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objective's panel, then one for each reference set that was evaluated."""
    rounds, best = result["rounds"], result["best"]
    base = (result.get("base") or {}).get("losses") or {}
    what, _ = words.OBJECTIVES.get(
        result.get("objective", ""), (str(result.get("objective") or "objective"), "")
    )
    series: list[tuple[str, str, list[Any], Any]] = [
        ("Objective", what, [r.get("objective") for r in rounds], None)
    ]
    for q in result["references"]:
        weight = (result.get("weights") or {}).get(q, 1)
        each = [(r.get("losses") or {}).get(q) for r in rounds]
        note = "weight 0: watched only" if weight == 0 else f"weight {weight:g}"
        series.append((q, note, each, (base.get(q) or {}).get("mean")))
    for name in rounds[0].get("scores") or {}:
        untrained = ((result.get("base") or {}).get("watched_scores") or {}).get(name) or {}
        each = [(r.get("scores") or {}).get(name) for r in rounds]
        series.append((name, "score on the same half, higher is better", each, untrained.get("mean")))
    panels = []
    for name, note, each, untrained in series:
        points = []
        for r, e in zip(rounds, each):
            value = None if e is None else e.get("value", e.get("mean"))
            if value is not None:
                kept = r["decision"] in ("start", *KEPT)
                label = "joint" if r["index"] == 0 else f"round {r['index']}"
                points.append(
                    figures.Point(
                        label, value, words.half_width(e.get("se"), e.get("dof")), kept, r["index"] == best
                    )
                )
        if points:
            svg = figures.dots(f"{name} by round", points, base=untrained, joined=points[0].label == "joint")
            panels.append({"name": name, "note": note, "svg": svg})
    return panels


def _finals(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Test losses and scores of base, joint and the chosen mixture; None when there are neither."""
    final = result.get("final")
    if not final:
        return None
    base, method = result.get("base") or {}, result.get("method") or "chosen"
    tables = []
    for key, title, differences, lower in (
        ("tests", "test loss", final.get("test_differences") or {}, True),
        ("scores", "score", final.get("score_differences") or {}, False),
    ):
        joint, chosen = ((final.get(side) or {}).get(key) or {} for side in ("joint", "chosen"))
        untrained = base.get(key) or {}
        rows, panels = [], []
        for name in dict.fromkeys([*joint, *chosen]):
            cells = [table.get(name) for table in (untrained, joint, chosen)]
            d = differences.get(name)
            rows.append({
                "name": name, "cells": cells, "difference": d,
                "places": words.decimals(min([c["se"] for c in cells if c and c.get("se")], default=None), 2),
                "verdict": words.verdict(d["value"], d.get("se"), d.get("dof"), lower_is_better=lower) if d else None,
            })  # fmt: skip
            points = [
                figures.Point(
                    label, c["mean"], words.half_width(c.get("se"), c.get("dof")), best=label == method
                )
                for label, c in zip(("base", "joint", method), cells)
                if c and c.get("mean") is not None
            ]
            if key == "scores":
                panels.append(
                    {"name": name, "svg": figures.dots(f"{name}, higher is better", points, joined=False)}
                )
        if rows:
            compared = any(row["difference"] for row in rows)
            tables.append(
                {"title": title, "lower": lower, "rows": rows, "panels": panels, "compared": compared}
            )
    return {"tables": tables, "method": method} if tables else None


def _volumes(result: Mapping[str, Any]) -> dict[str, Any]:
    rounds = result["rounds"]
    each = [words.amounts(result, r) for r in rounds]
    share = [words.whole_percents(words.shares(amount)) for amount, _ in each]
    domains = [
        {"name": d, "cells": [(r["counts"].get(d), s[d]) for r, s in zip(rounds, share)]}
        for d in result["domains"]
    ]
    return {"domains": domains, "unit": each[0][1]}


def _moving(result: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Each round's shares and its objective in words, for the rounds one after the other; None of a single round."""
    rounds = result["rounds"]
    if len(rounds) < 2:
        return None
    shown = []
    for r in rounds:
        share = words.shares(words.amounts(result, r)[0])
        label = "Joint (round 0)" if r["index"] == 0 else f"Round {r['index']}"
        value = (r.get("objective") or {}).get("value")
        objective = "" if value is None else f"objective {words.number(value, words.decimals(value, 4))}, "
        decision = words.DECISIONS.get(r["decision"], r["decision"])
        shown.append({
            "label": label, "shares": list(share.values()), "percents": list(words.whole_percents(share).values()),
            "said": f"{label}: {objective}{decision}.",
        })  # fmt: skip
    return shown


def _decisions(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = [r.get("difference") for r in result["rounds"]]
    halves = [words.half_width(d.get("se"), d.get("dof")) if d else None for d in known]
    reach = max([abs(d["value"]) + (h or 0) for d, h in zip(known, halves) if d], default=0.0)
    places = words.decimals(min([h for h in halves if h], default=reach), 2)
    steps = []
    for r, d, half in zip(result["rounds"], known, halves):
        text, svg = "", None
        if d:
            text = f"{words.number(d['value'], places, plus=True)} ({words.interval(d['value'], d.get('se'), d.get('dof'), places)})"
            svg = figures.whisker(d["value"], half, reach, r["decision"], f"difference {text}")
        steps.append({
            "index": r["index"], "decision": r["decision"], "words": words.DECISIONS.get(r["decision"], r["decision"]),
            "reason": r.get("reason") or "", "difference": text, "svg": svg, "best": r["index"] == result["best"],
        })  # fmt: skip
    return steps


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the run's circumstances, in reading order."""
    budget = result.get("budget") or {}
    held = "held in every round" if budget.get("hold", True) else "free"
    size = f", {words.whole(budget['size'])}" if budget.get("size") else ""
    facts = [
        ("Run", result.get("name")), ("Model", result.get("model")), ("Method", result.get("method")),
        ("Objective", result.get("objective")),
        ("Budget", f"{words.UNITS.get(budget['unit'], budget['unit'])}{size}, {held}" if budget.get("unit") else None),
        ("Domains", words.listing(result["domains"])), ("Reference sets", words.listing(result["references"])),
    ]  # fmt: skip
    for key, value in (result.get("facts") or {}).items():
        facts.append((str(key).replace("_", " ").capitalize(), _flat(value)))
    timing = result.get("timing") or {}
    if timing.get("total_s") is not None:
        facts.append(("Time", words.duration(timing["total_s"])))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    return ", ".join(_flat(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _warnings(result: Mapping[str, Any]) -> list[str]:
    """The run's warnings, then each round's from its influence, each once."""
    found = [str(w) for w in result.get("warnings") or []]
    for r in result["rounds"]:
        found += [
            f"Round {r['index']}, influence: {w}" for w in (r.get("influence") or {}).get("warnings") or []
        ]
    return list(dict.fromkeys(found))
