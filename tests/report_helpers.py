"""Results like those of real runs, in several shapes, for the tests of the report."""

from __future__ import annotations

import copy
import random
from typing import Any

DOMAINS = ("mathematics", "coding", "reasoning", "instruction", "trivia")


def sample(
    *, rounds: int = 3, domains: tuple[str, ...] = DOMAINS, layers: int = 28, seed: int = 7
) -> dict[str, Any]:
    """A run whose round 1 is better, round 2 better, later ones undecided; the last domain has no reference."""
    rng = random.Random(seed)
    references = [*domains[:-1], "retention"]  # a reference set without a domain
    counts = {d: 1200 + 300 * k for k, d in enumerate(domains)}
    made, objective = [], 1.3124
    for k in range(rounds):
        decision = "start" if k == 0 else "better" if k < 3 else "undecided"
        step = {"start": 0.0, "better": -0.0312 / max(k, 1), "undecided": -0.0011}[decision]
        before = dict(counts)
        alpha = [[rng.gauss(-0.04 if q == d else 0.006, 0.006) for d in domains] for q in references]
        moves = {}
        for i, d in enumerate(domains):
            slope = sum(row[i] for row in alpha) / len(references)
            gated = abs(slope) < 0.0035
            beta = 0.0 if gated else max(-0.15, min(0.15, -15 * slope))
            counts[d] = round(before[d] * (1 + beta))
            moves[d] = {"before": before[d], "after": counts[d], "beta": beta, "slope": slope, "slope_se": 0.0013,
                        "gated": gated, "repeats": 1.0 + 0.1 * i, "note": ""}  # fmt: skip
        last = k == rounds - 1
        made.append({
            "index": k, "m": 0.15 / 2 ** max(k - 2, 0), "counts": before, "rows": sum(before.values()),
            "tokens": 1_203_420 - 109 * k, "supervised_tokens": 604_331 + 821 * k, "steps": 152,
            "tokens_by_domain": {d: before[d] * (150 + 40 * i) for i, d in enumerate(domains)},
            "losses": {q: {"mean": 1.1 + 0.1 * i + objective - 1.3 + rng.gauss(0, 0.004), "se": 0.018, "rows": 200,
                           "supervised_tokens": 21_000} for i, q in enumerate(references)},
            "objective": {"value": objective + step, "se": 0.011},
            "difference": None if k == 0 else {"value": step, "se": 0.0041, "dof": 187.0, "p": 0.001},
            "difference_from_start": None if k == 0 else {"value": objective + step - 1.3124, "se": 0.0041, "dof": 187.0},
            "decision": decision,
            "reason": "" if k == 0 else f"The paired difference is {step:+.4f}; the margin for a claim was 0.0081.",
            "influence": None if last and rounds > 1 else {
                "domains": list(domains), "references": references, "alpha": alpha,
                "units": "nats per supervised token of the reference set, per doubling of the domain; "
                         "negative = more of the domain lowers the loss",
                "alpha_drawn": alpha, "alpha_unused": [[None if i == 1 else a for i, a in enumerate(r)] for r in alpha],
                "se_population": [[0.0031 for _ in r] for r in alpha], "dof": [[150.0 for _ in r] for r in alpha],
                "centred": True, "curvature": "ekfac", "response": "converged", "fisher": "sampled",
                "damping": 1e-3, "sample_fraction": 0.5, "step_weights": {d: 1 / len(domains) for d in domains},
                "layers": [{"name": f"model.layers.{n // 7}.mlp.part_{n % 7}",
                            "alpha": [[a / layers + rng.gauss(0, 0.001) for a in r] for r in alpha]}
                           for n in range(layers)],
                "warnings": ["model.layers.0.mlp: damping raised to the median layer's floor"] if k == 0 else [],
            },
            "allocation": None if last and rounds > 1 else {
                "rule": "scaled", "m": 0.15, "moves": moves, "reason": "Tokens held: movers exchange among themselves."},
        })  # fmt: skip
        objective += step if decision != "undecided" else 0
    best = min(2, rounds - 1)
    tests = {"mathematics": (1.214, 1.171), "coding": (0.982, 0.979), "reasoning": (1.530, 1.552)}
    side = [{n: {"mean": v[s], "se": 0.0161, "rows": 400} for n, v in tests.items()} for s in (0, 1)]
    scores = [{"gsm8k": {"mean": 0.31 + 0.05 * s, "se": 0.021, "n": 400}} for s in (0, 1)]
    result = {
        "format": 1, "name": "four-domains", "model": "SmolLM2-135M-Instruct", "method": "ideal",
        "budget": {"unit": "tokens", "hold": True, "size": 1_203_420}, "objective": "mean_loss",
        "domains": list(domains), "references": references, "weights": {q: 1.0 for q in references},
        "rounds": made,
        "base": {"losses": {q: {"mean": 2.41, "se": 0.03} for q in references},
                 "tests": {n: {"mean": 2.4, "se": 0.03} for n in tests},
                 "scores": {"gsm8k": {"mean": 0.12, "se": 0.016, "n": 400}}},
        "replicates": {"count": 2, "seed_sd_objective": 0.0034}, "best": best,
        "ended": "three rounds were asked for and done",
        "final": {
            "joint": {"tests": side[0], "scores": scores[0], "tokens": 1, "rows": 1, "supervised_tokens": 1, "steps": 1},
            "chosen": {"tests": side[1], "scores": scores[1], "tokens": 1, "rows": 1, "supervised_tokens": 1, "steps": 1},
            "test_differences": {n: {"value": v[1] - v[0], "se": 0.0052, "p": 0.01} for n, v in tests.items()}},
        "warnings": ["coding: 41 of 4,012 rows were longer than 512 tokens and were cut"],
        "timing": {"total_s": 4211.0, "phases": {"round-0/train": 812.4, "round-0/influence": 402.0}},
        "facts": {"versions": {"idealmix": "0.1.0", "torch": "2.13.0"}, "hardware": "2 cores, 16 GB", "seed": 0},
    }  # fmt: skip
    return copy.deepcopy(result)


def variant(name: str) -> dict[str, Any]:
    """A result with optional parts missing, or with unusual ones."""
    r = sample(rounds=5 if name == "five rounds" else 1 if name == "one round" else 3)
    if name == "no tests":
        r["final"] = None
        r["base"]["tests"], r["base"]["scores"] = {}, {}
    elif name == "no influence":
        for x in r["rounds"]:
            x["influence"] = x["allocation"] = None
    elif name == "bare":
        r = {k: r[k] for k in ("format", "domains", "references", "rounds", "best", "budget", "objective")}
        for x in r["rounds"]:
            for key in ("losses", "influence", "allocation", "tokens_by_domain", "reason"):
                del x[key]
    elif name == "nulls":
        r["replicates"] = {"count": 0, "seed_sd_objective": None}
        r["base"] = r["weights"] = r["facts"] = r["timing"] = None
        r["warnings"] = []
        found = r["rounds"][0]["influence"]
        found["alpha"][0][0] = found["alpha_drawn"][0][0] = None
        found["se_population"], found["dof"], found["layers"] = None, None, []
        r["rounds"][1]["influence"]["se_population"][1][1] = None
        r["rounds"][1]["allocation"] = None
    elif name == "joint is best":
        r["best"], r["final"] = 0, None
        r["rounds"][1].update(
            decision="worse", difference={"value": 0.021, "se": 0.004, "dof": 180, "p": 1e-6}
        )
        r["rounds"][2].update(
            decision="undecided", difference={"value": -0.001, "se": 0.004, "dof": 180, "p": 0.8}
        )
    elif name == "volume is free":
        r["budget"] = {"unit": "tokens", "hold": False, "size": None}
        r["rounds"][2].update(tokens=1_350_000, steps=170)
    elif name == "many domains":
        r = sample(domains=tuple(f"domain-{k:02d}-with-a-rather-long-name" for k in range(14)), layers=210)
    elif name == "hostile":
        bad = (
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(2)>',
            "</title></style></svg>&amp;",
            "W" * 300,
        )
        r = sample(domains=bad)
        r["name"] = r["model"] = r["ended"] = bad[0]
        r["warnings"] = [bad[1]]
        r["rounds"][1]["reason"] = bad[2]
        r["facts"]["versions"][bad[0]] = bad[1]
    return r


VARIANTS = (
    "usual", "one round", "five rounds", "no tests", "no influence", "bare", "nulls", "joint is best",
    "volume is free", "many domains", "hostile",
)  # fmt: skip


def watched(browser: Any, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
    """A page of a context of its own, what its console says (errors and dialogs too), and every address that it asks."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append("a script ran"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    return page, said, asked
