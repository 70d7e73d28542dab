"""What the page's sliders compute with: everything that a step of the run's own rule depends on, as JSON.

Flows in: a run folder (config.yaml, manifest.json, draw.json) and its result. Flows out: a `WhatIf`: the data that
``allocation.js`` takes, or the reason why there are no sliders. The browser then does what `idealmix.allocation` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from idealmix import config as schema
from idealmix.allocation.curves import Curves
from idealmix.allocation.rules import WITHOUT_CURVES
from idealmix.disk import read_json
from idealmix.errors import InputError
from idealmix.evaluation.objective import BY_ROUND_0, objective_units
from idealmix.influence_matrix import InfluenceMatrix, Kind

# Characters of JSON that the page gives to this; the whole page stays below 1 MB.
_MOST = 620_000
_AGAIN = "`idealmix run` on the run's config.yaml adds it; what is finished is not done again."


@dataclass(frozen=True)
class WhatIf:
    """`data` for the browser, or None and the sentence `why` there are no sliders."""

    data: dict[str, Any] | None
    why: str = ""


def load(run: Path, result: Mapping[str, Any]) -> WhatIf:
    """What a run folder offers to the sliders. A folder without the needed files is not an error."""
    if not (run / "config.yaml").is_file():
        return WhatIf(None, "This folder has no config.yaml, so the run's settings are not known.")
    try:
        config = schema.Config.model_validate(
            yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        )
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError):
        return WhatIf(None, "The run's config.yaml is of another version of idealmix.")
    if why := _unsupported(config):
        return WhatIf(None, why)
    try:
        drawn, sizes = read_json(run / "draw.json"), read_json(run / "manifest.json")["data"]["domains"]
    except (InputError, KeyError, TypeError):
        return WhatIf(None, f"The run was made before pages had sliders: draw.json is missing. {_AGAIN}")
    measured = [r for r in result["rounds"] if r.get("influence") and r.get("allocation")]
    if not measured:
        return WhatIf(None, "No influence was measured in this run, so there is nothing to compute with.")
    try:
        common = _common(config, result, drawn, sizes)
        rounds = [
            {
                **_round(of_round, result, common["domains"], config.allocation.rule),
                **_limits(of_round, result, config, run),
            }
            for of_round in measured
        ]
    except (KeyError, TypeError, ValueError, IndexError, InputError):
        return WhatIf(
            None, "The run's files do not fit together, or are of another version, so nothing is computed."
        )
    # the newest measured rounds that fit
    while rounds and len(embedded({**common, "rounds": rounds})) > _MOST:
        rounds = rounds[1:]
    if not rounds:
        return WhatIf(None, "There are too many domains and reference sets to compute with inside a page.")
    return WhatIf({**common, "rounds": rounds})


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: no name in it can end the element or start a tag."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _unsupported(config: schema.Config) -> str:
    if config.method not in ("ideal", "ideal-paper"):
        return f"The mixture is of the method {config.method}, which does not follow from influence."
    return ""


def _common(
    config: schema.Config, result: Mapping[str, Any], drawn: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """What is the same for all rounds. Domains are sorted as `allocate` sorts them."""
    allocation, unit = config.allocation, config.allocation.budget.unit
    names, references = sorted(config.domains), list(result["references"])
    rows = [int(sizes[name]["rows"]) for name in names]
    totals = rows if unit == "rows" else [int(sizes[name][unit]) for name in names]
    if drawn["unit"] != unit or drawn["seed"] != config.seed:
        raise ValueError("draw.json is of another configuration")
    return {
        "domains": names,
        "references": references,
        "sizes": rows,
        "per_row": [total / n for total, n in zip(totals, rows)],
        "unit": unit,
        "hold": allocation.budget.hold,
        "amount": drawn["amount"],
        "drawn": [drawn["domains"][name] for name in names],
        "first_m": allocation.m,
        "drawn_only": config.method == "ideal-paper",
        "objective": config.objective,
        "units": _units(config, result, references),
        "settings": {
            "weights": [config.references[q].weight for q in references],
            "floor": _bound(allocation.floor, names, 0.0),
            "cap": _bound(1.0 if allocation.cap is None else allocation.cap, names, 1.0),
            "max_repeats": allocation.max_repeats,
            "gate": allocation.gate,
        },
        "common_floor": not isinstance(allocation.floor, dict),
        "common_cap": not isinstance(allocation.cap, dict),
    }


def _units(config: schema.Config, result: Mapping[str, Any], references: list[str]) -> list[float] | None:
    """What the objective divides each loss by; None where it does not."""
    if config.objective not in BY_ROUND_0:
        return None
    start, base = (
        {q: losses[q]["mean"] for q in references}
        for losses in (result["rounds"][0]["losses"], result["base"]["losses"])
    )
    units = objective_units(config.objective, references, start, base)
    return [units[q] for q in references]


def _limits(
    of_round: Mapping[str, Any], result: Mapping[str, Any], config: schema.Config, run: Path
) -> dict[str, Any]:
    """What each limited reference set may still lose at a round, and how measured steps compared with predicted ones.

    A rise is above the mean of round 0's trainings (`rounds.goal.Goal.rise`); the paper's rule knows no limits.
    """
    index, limits = int(of_round["index"]), []
    for name, limit in config.constraints.items() if config.method == "ideal" else ():
        trained = [result["rounds"][0]["losses"][name]["mean"]]
        for number in range(1, result["replicates"]["count"] + 1):
            evaluation = read_json(run / f"round-0/replicate-{number}/evaluation.json")
            trained.append(evaluation["deciding"][name]["mean"])
        risen = of_round["losses"][name]["mean"] - sum(trained) / len(trained)
        limits.append(
            {"reference": result["references"].index(name), "allowance": limit.max_increase - risen}
        )
    steps = result["rounds"][: index + 1]
    predicted = [before["allocation"]["predicted"] for before in steps[:-1]]
    measured = [after["difference"]["value"] for after in steps[1:]]
    square = sum(x * x for x in predicted)
    scale = sum(x * y for x, y in zip(predicted, measured)) / square if square else 1.0
    return {"limits": limits, "calibration": min(max(scale, 1e-3), 1.0)}


def _curves(curves: Curves, names: list[str], references: list[str]) -> dict[str, Any]:
    """The curves in the page's order of reference sets and domains."""
    q, d = (
        [has.index(name) for name in wanted]
        for has, wanted in ((curves.references, references), (curves.domains, names))
    )
    by_set = {"base": curves.base, "power": curves.power, "apart": curves.apart}
    pull = np.array(curves.pull)[np.ix_(q, d)]
    return {**{key: [values[i] for i in q] for key, values in by_set.items()}, "pull": pull.tolist()}


def _bound(bound: float | Mapping[str, float], names: list[str], default: float) -> list[float]:
    return [bound.get(n, default) if isinstance(bound, Mapping) else bound for n in names]


def _round(
    of_round: Mapping[str, Any], result: Mapping[str, Any], names: list[str], rule: str
) -> dict[str, Any]:
    """A measured round: its mixture, its slopes on drawn rows and on those that growth would draw, and what their errors are made of.

    The error of any weighting w is a form in w: for every set s of training rows w' `training`[s] w, by the coefficient
    K[i, s] squared; for every reference set q w_q squared times `reference`[kind][i][q] = K[i] covariance_q K[i]'.
    """
    matrix = InfluenceMatrix.from_json(of_round["influence"])
    order = [matrix.domains.index(name) for name in names]
    rows = [matrix.references.index(q) for q in result["references"]]
    D, moments = len(names), matrix.moments
    sets = [*order, *(i + D for i in order)]
    lent = moments.lent[np.ix_(sets, rows, rows)]
    upper = np.triu_indices(len(rows))
    alpha, by_reference = [], []
    kinds: tuple[Kind, Kind] = ("drawn", "growth")
    for kind in kinds:
        K = matrix.coefficients(kind)[order]
        values = matrix.entries(kind).value[np.ix_(rows, order)]
        alpha.append([None if np.isnan(column).any() else column.tolist() for column in values.T])
        found = np.einsum("is,qst,it->iq", np.nan_to_num(K), moments.reference[rows], np.nan_to_num(K))
        by_reference.append(found.tolist())
    alone = replace(matrix, centred=False).entries("drawn").value[rows]
    curves = of_round["allocation"].get("curves")
    return {
        "index": of_round["index"],
        "rule": of_round["allocation"]["rule"],
        "most_m": WITHOUT_CURVES if rule == "curves" and curves is None else None,
        "curves": curves and _curves(Curves.from_json(curves), names, list(result["references"])),
        "whole": np.nansum(alone, axis=1).tolist(),  # of each reference set, when all domains grow alike
        "counts": [int(of_round["counts"][name]) for name in names],
        "m": float(of_round["allocation"]["m"]),
        "after": [int(of_round["allocation"]["moves"][name]["after"]) for name in names],
        "losses": [of_round["losses"][q]["mean"] for q in result["references"]],
        "step_weights": [matrix.step_weights[name] for name in names],
        "centred": float(matrix.centred),
        "fresh": matrix.fresh[order].tolist(),
        "alpha": alpha,
        "rows": moments.rows[sets].tolist(),
        "training": [None if np.isnan(one).any() else one[upper].tolist() for one in lent],
        "reference": by_reference,
        "reference_rows": moments.reference_rows[rows].tolist(),
        "dof": [
            1.0 if n == 1 else float(d)
            for n, d in zip(
                [*moments.rows[sets], *moments.reference_rows[rows]],
                [*moments.dof[sets], *moments.dof[2 * D :][rows]],
            )
        ],
    }
