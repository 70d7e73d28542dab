"""A comparison in tables: gains and costs, each test set, the mixtures. For the terminal and the page.

Flows in: the content of ``comparison.json``. Flows out: (title, columns, rows) of text, the first column names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idealmix.report import words

Table = tuple[str, list[str], list[list[str]]]

HEADLINES = {"test_loss": "mean test loss", "objective": "objective on the deciding halves"}


def comparison_tables(content: Mapping[str, Any]) -> list[Table]:
    """All tables, in reading order."""
    return [gains(content), *_by_set(content), mixtures(content)]


def ordered(content: Mapping[str, Any]) -> list[str]:
    """Methods, the best headline figure first."""
    methods, headline = content["methods"], content["headline"]
    return sorted(methods, key=lambda name: methods[name]["figures"][headline]["mean"])


def gains(content: Mapping[str, Any]) -> Table:
    """The headline figure, its difference to joint, scores, and what the search cost."""
    headline, seeds = content["headline"], len(content["seeds"])
    scored = bool(content["scores"])
    budget = content["budget"]
    title = (
        f"{words.plural(len(content['methods']), 'method')}, {words.plural(seeds, 'seed')}, each on "
        f"{words.whole(budget['tokens'])} training tokens and {words.plural(budget['steps'], 'optimiser step')}. "
        f"± is the standard error over seeds"
    )
    columns = [
        "method",
        HEADLINES[headline],
        "minus joint",
        "than joint",
        *(["mean score, %"] if scored else []),
    ]
    columns += ["extra epochs", "gain per extra epoch"]
    rows = []
    for name in ordered(content):
        method = content["methods"][name]
        found = method["figures"][headline]
        difference = found["difference"]
        row = [name, estimate(found["mean"], found["se"])]
        row += (
            ["", ""]
            if name == "joint"
            else [estimate(difference["value"], difference["se"], plus=True), than(difference)]
        )
        if scored:
            score = method["figures"].get("score")
            row.append(
                estimate(100 * score["mean"], None if score["se"] is None else 100 * score["se"], 1)
                if score
                else "–"
            )
        gain = method["gain_per_epoch"]
        row += [
            words.number(method["search_epochs"], 1),
            "–" if gain is None else words.number(gain, 4, plus=True),
        ]
        rows.append(row)
    return title, columns, rows


def mixtures(content: Mapping[str, Any]) -> Table:
    """Shares of each method's mixture, mean over seeds (and over the mixtures that a method ended with)."""
    rows = []
    for name in ordered(content):
        every = [m["shares"] for run in content["methods"][name]["runs"] for m in run["mixtures"]]
        if every:
            rows.append(
                [name, *(f"{100 * sum(m[d] for m in every) / len(every):.0f} %" for d in content["domains"])]
            )
    unit = words.UNITS[content["budget"]["unit"]]
    return f"Mixtures: shares of {unit}, mean over seeds", ["method", *content["domains"]], rows


def _by_set(content: Mapping[str, Any]) -> list[Table]:
    tables: list[Table] = []
    for key, title in (("test_loss", "Loss by test set"), ("score", "Score by test set, per cent")):
        names = content["tests"] if key == "test_loss" else content["scores"]
        if not names:
            continue
        rows = []
        for name in ordered(content):
            found = [content["methods"][name]["figures"][f"{key}.{each}"] for each in names]
            scale, places = (1, 4) if key == "test_loss" else (100, 1)
            cells = [
                estimate(scale * f["mean"], None if f["se"] is None else scale * f["se"], places)
                for f in found
            ]
            rows.append([name, *cells])
        tables.append((title, ["method", *names], rows))
    return tables


def estimate(value: float, se: float | None, places: int = 4, *, plus: bool = False) -> str:
    """``0.3391 ± 0.0021``; without ± where no error is known."""
    text = words.number(value, places, plus=plus)
    return text if se is None else f"{text} ± {words.number(se, places)}"


def than(difference: Mapping[str, Any]) -> str:
    """Better, worse, or cannot be told."""
    if difference["se"] is None:
        return "one seed: no error"
    return "cannot be told" if difference["verdict"] == "undecided" else str(difference["verdict"])
