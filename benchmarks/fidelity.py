"""Does influence predict what retraining does? Every curvature, response and damping against the retrained skills.

Flows in: the folder that `benchmarks.retrainings` filled. Flows out: agreement of each setting's alpha with the measured
slopes; the last line is one JSON object. Retraining takes an hour, judging a minute: after a change of the engine only this
is run again. ``--reuse`` takes the predictions of the last call and judges them on the trainings that there are by now.

    python -m benchmarks.fidelity --json

What is compared with what. Measured: (L(1.5x) - L(0.5x)) / 1.0 on test rows, which no gradient saw. Predicted: alpha of the
unchanged mixture's checkpoint, from reference rows. With free volume the other domains keep their rows and alpha has c = 0. With
the budget held the others give up their tokens in proportion, which moves domain i's share faster than alpha's own normalised
change does: the slope is alpha (c = 1) / (1 - s_i), with s_i the domain's share of the tokens (to first order, exact).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.retrainings import FACTORS, SUITES, Bed, Suite, folder_of
from idealmix import config
from idealmix.curvature import Collector, adam_metric, fit_curvature, select_layers, sum_gradient
from idealmix.data.mixture import Mixture
from idealmix.diagnostics.agreement import KEYS, Array, Interval, Judge, Measured, central_differences
from idealmix.influence_sample import Sample, Sampler
from idealmix.training.model import load_model
from idealmix.training.record import TrainingRecord

MODES = {"held": True, "free": False}  # and whether alpha is centred
DAMPINGS = (0.1, 1.0, 10.0)  # times the default
BASELINES = ("identity", "adamw dot", "adamw dot, three checkpoints")
Gradients = Mapping[str, torch.Tensor]
Predictions = dict[str, dict[str, list[list[float]]]]  # by setting and mode, references by domains


# --- measured ------------------------------------------------------------------------------------------------


def complete_seeds(records: Sequence[Mapping[str, Any]], mode: str) -> list[int]:
    """Seeds of which every domain was retrained at both factors."""
    found = {(r["seed"], r["domain"], r["factor"]) for r in records if r["mode"] == mode}
    domains = records[0]["counts"]
    return sorted(
        s for s in {s for s, _, _ in found} if all((s, d, f) in found for d in domains for f in FACTORS)
    )


def measured(records: Sequence[Mapping[str, Any]], mode: str) -> Measured:
    """Slopes of one suite, from its complete seeds."""
    seeds, start = complete_seeds(records, mode), records[0]
    domains, sets = list(start["counts"]), list(start["losses"])
    found = {(r["seed"], r["domain"], r["factor"]): r for r in records if r["mode"] == mode}
    slopes, variances = [], []
    for name in sets:
        low, high = (
            np.array([[found[s, d, f]["rows"][name]["sums"] for d in domains] for s in seeds])
            for f in FACTORS
        )
        counts = np.array(start["rows"][name]["counts"])
        by_seed, variance = central_differences(low, high, counts, FACTORS[1] - FACTORS[0])
        slopes.append(by_seed)
        variances.append(variance)
    off = np.array([[domain != name for domain in domains] for name in sets])
    return Measured(np.stack(slopes, 1), np.array(variances), off)


# --- predicted -----------------------------------------------------------------------------------------------


class Checkpoint:
    """The unchanged mixture's training, and mean gradients at one of its checkpoints."""

    def __init__(self, bed: Bed, seed: int, stage: str = "end") -> None:
        folder = bed.folder / f"seed-{seed}"
        self.record = TrainingRecord.read(folder / "record.json")
        self.mixture = Mixture.read(folder / "mixture.json", bed.domains)
        self.moments = load_file(folder / stage / "second_moments.safetensors")
        model = load_model(folder / stage / "model", "float32")
        self.collector = Collector(model, select_layers(model))
        sampler, rows = Sampler(config.Influence().sample_fraction, 4096, 0), self.mixture.row_ids
        drawn = [sampler.drawn(name, pool, rows[name]) for name, pool in bed.domains.items()]
        unused = [sampler.unused(name, pool, rows[name]) for name, pool in bed.domains.items()]
        self.mixed = [batch for sample in drawn for batch in sample.batches]
        self.references = [self._gradient(sampler.whole(*item)) for item in bed.references.items()]
        self.drawn, self.unused = [self._gradient(s) for s in drawn], [self._gradient(s) for s in unused]
        self.v = np.array([self.record.step_weights[name] for name in bed.domains])

    def _gradient(self, sample: Sample) -> Gradients:
        return sum_gradient(self.collector, sample.batches).mean()

    def alpha(self, respond: Any, centred: bool) -> Array:
        """(Q, D): -v_i (gbar_q' R gbar_i - c sum_j v_j gbar_q' R gbar_j); `respond`: layer name, gradient -> R gradient."""
        layers = [layer.name for layer in self.collector.layers]
        acting, drawn = np.zeros((2, len(self.references), len(self.v)))
        for name in layers:
            answers = torch.stack([respond(name, g[name]) for g in self.references]).flatten(1).double()
            acting += (answers @ torch.stack([g[name] for g in self.unused]).flatten(1).double().T).numpy()
            drawn += (answers @ torch.stack([g[name] for g in self.drawn]).flatten(1).double().T).numpy()
        return -self.v * (acting - float(centred) * (drawn @ self.v)[:, None])

    def adam_inverse(self, tau: float) -> Any:
        """tau D^-1, elementwise: the trained AdamW's own step on a gradient, summed over steps."""
        scales = {
            layer.name: tau / (layer.matrix(self.moments).sqrt() + 1e-8) for layer in self.collector.layers
        }
        return lambda name, G: scales[name] * G


def responses(at: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Every curvature, response and damping that idealmix offers; ``finite`` has no damping."""
    default, layers = config.Influence().damping, at.collector.layers
    tau = float(sum(at.record.step_sizes))
    metrics = {layer.name: adam_metric(layer, at.moments, 1e-8) for layer in layers}
    for kind in ("ekfac", "kfac"):
        curvature: Any = fit_curvature(kind, at.collector, at.mixed, rho=default, label_seed=0)
        for times in DAMPINGS:
            yield f"{kind} converged {default * times:g}", curvature.with_damping(default * times).respond
        finite = fit_curvature(kind, at.collector, at.mixed, label_seed=0, tau=tau, metrics=metrics)
        yield f"{kind} finite", finite.respond
    yield "identity", lambda name, G: G
    yield "adamw dot", at.adam_inverse(tau)


def predict(bed: Bed, seed: int) -> Predictions:
    """Slopes that each setting predicts for retraining, from one seed's checkpoint."""
    at = Checkpoint(bed, seed)
    tokens = np.array([at.mixture.tokens_by_domain[name] for name in bed.domains], dtype=float)
    scale = {"held": 1 / (1 - tokens / tokens.sum()), "free": np.ones(len(tokens))}
    found = {
        name: {mode: (at.alpha(respond, centred) * scale[mode]).tolist() for mode, centred in MODES.items()}
        for name, respond in responses(at)
    }
    thirds = np.array_split(at.record.step_sizes, 3)
    stages = [Checkpoint(bed, seed, stage) for stage in ("third", "two-thirds")]
    parts = [(stage, stage.adam_inverse(float(sum(part)))) for stage, part in zip([*stages, at], thirds)]
    found[BASELINES[2]] = {
        mode: (sum(each.alpha(respond, centred) for each, respond in parts) * scale[mode]).tolist()
        for mode, centred in MODES.items()
    }
    return found


# --- judged --------------------------------------------------------------------------------------------------


def plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: each.to_json() for name, each in intervals.items()}


def judge(
    suites: Mapping[str, tuple[Sequence[Mapping[str, Any]], Predictions]], draws: int
) -> dict[str, Any]:
    """All settings, pooled over suites and by suite, with the budget held and free."""
    settings = config.Influence()
    default = f"{settings.curvature} {settings.response}"
    default += f" {settings.damping:g}" if settings.response == "converged" else ""
    names = list(next(iter(suites.values()))[1])
    found: dict[str, Any] = {"default": default, "by_setting": {name: {} for name in names}, "advantage": {}}
    for mode in MODES:
        seeds = {suite: complete_seeds(records, mode) for suite, (records, _) in suites.items()}
        known = {
            suite: measured(suites[suite][0], mode)
            for suite, found_seeds in seeds.items()
            if len(found_seeds) > 1
        }
        if not known:
            continue
        bench = Judge(list(known.values()), draws=draws)
        predicted = {n: [np.array(suites[s][1][n][mode]) for s in known] for n in names}
        ceiling = bench.noise_ceiling().to_json()
        for name in names:
            found["by_setting"][name][mode] = plain(bench.intervals(predicted[name]))
        top = found["by_setting"][default][mode] | {"noise_ceiling": ceiling}
        found |= top if mode == "held" else {mode: top}
        found.setdefault("counts", {})[mode] = bench.counts() | {"seeds": {s: seeds[s] for s in known}}
        found["advantage"][mode] = {
            f"{ours} over {theirs}": plain(bench.advantage(predicted[ours], predicted[theirs]))
            for ours in dict.fromkeys((default, "ekfac finite"))
            for theirs in BASELINES
        }
        found.setdefault("by_suite", {})[mode] = {
            suite: {n: Judge([m], draws=0).values([predicted[n][k]]) for n in names}
            | {"mean": m.mean.tolist(), "se": m.se.tolist()}
            for k, (suite, m) in enumerate(known.items())
        }
    return found


def table(result: Mapping[str, Any], mode: str) -> str:
    """Markdown, a setting a line."""

    def cell(x: Mapping[str, float | None]) -> str:
        return "-" if x["value"] is None else f"{x['value']:.3g} [{x['low']:.2g}, {x['high']:.2g}]"

    lines = [f"| {mode} | " + " | ".join(KEYS) + " |", "|---|" + "---|" * len(KEYS)]
    for name, modes in result["by_setting"].items():
        if mode in modes:
            lines.append(f"| {name} | " + " | ".join(cell(modes[mode][key]) for key in KEYS) + " |")
    return "\n".join(lines)


def load(suite: Suite, options: argparse.Namespace) -> tuple[list[dict[str, Any]], Predictions]:
    """One suite's trainings and predictions."""
    folder = folder_of(suite, options.output)
    lines = (folder / "retrainings.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["budget"] == options.budget]
    cache = folder / f"predictions-{options.checkpoint}.json"
    if not (options.reuse and cache.is_file()):
        found = predict(Bed(suite, options.output, options.budget), options.checkpoint)
        cache.write_text(json.dumps(found), encoding="utf-8")
    return records, json.loads(cache.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/fidelity"), help="of benchmarks.retrainings"
    )
    parser.add_argument("--budget", type=int, default=30_000)
    parser.add_argument("--checkpoint", type=int, default=301, help="the seed whose checkpoints predict")
    parser.add_argument("--reuse", action="store_true", help="judge the predictions of the last call")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="no tables before the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    present = [s for s in SUITES if (folder_of(s, options.output) / "retrainings.jsonl").is_file()]
    suites = {suite.name: load(suite, options) for suite in present}
    result = judge(suites, options.draws)
    result["seconds"] = round(time.monotonic() - began, 1)
    if not options.json:
        print("\n\n".join(table(result, mode) for mode in MODES))
    print(json.dumps(result, allow_nan=False, default=float))


if __name__ == "__main__":
    main()
