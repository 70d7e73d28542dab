"""Does influence predict what retraining does? Every curvature, response and damping against the retrained skills.

Flows in: the folder that `benchmarks.retrainings` filled. Flows out: agreement of each setting's alpha with the measured
slopes; the last line is one JSON object. Retraining takes an hour, judging a minute: after a change of the engine only this
is run again. ``--reuse`` takes the predictions of the last call, makes those that are missing, and judges them all.

    python -m benchmarks.fidelity --json

What is compared with what. Measured: (L(1.5x) - L(0.5x)) / 1.0 on test rows, which no gradient saw. Predicted: alpha of the
unchanged mixture's checkpoint, from reference rows. With free volume the other domains keep their rows and alpha has c = 0. With
the budget held the others give up their tokens in proportion, which moves domain i's share faster than alpha's own normalised
change does: the slope is alpha (c = 1) / (1 - s_i), with s_i the domain's share of the tokens (to first order, exact).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.retrainings import FACTORS, SUITES, Bed, Suite, folder_of
from idealmix import config
from idealmix.curvature import Collector, Layer, adam_metric, fit_curvature, select_layers, sum_gradient
from idealmix.curvature.unrolled import Unrolled
from idealmix.data.mixture import Mixture
from idealmix.diagnostics.agreement import KEYS, Array, Interval, Judge, Measured, central_differences
from idealmix.influence_sample import Sample, Sampler
from idealmix.training import SEGMENTS
from idealmix.training.model import load_model
from idealmix.training.record import TrainingRecord

MODES = {"held": True, "free": False}  # and whether alpha is centred
DAMPINGS = (0.1, 1.0, 10.0)  # times the default
LEAST_ROWS = 16  # of a sample: the default was that when the figures of docs/results/fidelity.md were made
FRACTIONS = (0.1, 0.25, 1.0)  # of the rows; the default's 0.5 is all others'
NULL, UNCLIPPED = "own helps, others hurt", "ekfac finite, clipping ignored"
BASELINES = ("identity", "adamw dot", "adamw dot, three checkpoints", NULL)
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
    """One stage of the unchanged mixture's training, and mean gradients there.

    Args:
        stage: ``end`` or ``middle-1``, ..: the reference sets' gradients are those of the end.
        fraction: of the training rows that are measured.
    """

    def __init__(self, bed: Bed, seed: int, stage: str = "end", fraction: float | None = None) -> None:
        folder = bed.folder / f"seed-{seed}"
        self.record = TrainingRecord.read(folder / "record.json")
        self.mixture = Mixture.read(folder / "mixture.json", bed.domains)
        self.moments = load_file(folder / stage / "second_moments.safetensors")
        model = load_model(folder / stage / "model", "float32")
        self.collector = Collector(model, select_layers(model))
        self._sampler = Sampler(fraction or config.Influence().sample_fraction, LEAST_ROWS, 4096, 0)
        rows = self.mixture.row_ids
        drawn = [self._sampler.drawn(name, pool, rows[name]) for name, pool in bed.domains.items()]
        unused = [self._sampler.unused(name, pool, rows[name]) for name, pool in bed.domains.items()]
        self.mixed = [batch for sample in drawn for batch in sample.batches]
        self.drawn, self.unused = [self._gradient(s) for s in drawn], [self._gradient(s) for s in unused]

    @property
    def layers(self) -> Sequence[Layer]:
        """All that are measured."""
        return self.collector.layers

    def references(self, bed: Bed) -> list[Gradients]:
        """Mean gradients of the reference sets."""
        return [self._gradient(self._sampler.whole(*item)) for item in bed.references.items()]

    def fit(self, kind: Literal["ekfac", "kfac"], tau: float | None = None, labels: int | None = 0) -> Any:
        """A curvature here: converged, or with tau in the optimiser's metric; labels None: the data's own."""
        metrics = (
            None
            if tau is None
            else {layer.name: adam_metric(layer, self.moments, 1e-8) for layer in self.layers}
        )
        return fit_curvature(kind, self.collector, self.mixed, label_seed=labels, tau=tau, metrics=metrics)

    def adam_inverse(self, name: str, G: torch.Tensor, tau: float) -> torch.Tensor:
        """tau D^-1 G, elementwise: the trained AdamW's own steps on a gradient."""
        layer = next(layer for layer in self.layers if layer.name == name)
        return tau * G / (layer.matrix(self.moments).sqrt() + 1e-8)

    def _gradient(self, sample: Sample) -> Gradients:
        return sum_gradient(self.collector, sample.batches).mean()


Pull = Callable[[str, torch.Tensor], Sequence[torch.Tensor]]
"""Layer name, (Q, d_out, d_in) gradients of the references -> what every stage's gradients are multiplied by."""


class Forecast:
    """Slopes that a setting predicts for retraining.

    Args:
        end: the trained model's stage, whose references are asked.
        references: their mean gradients.
        tokens: of each domain in the mixture.
    """

    def __init__(self, end: Checkpoint, references: Sequence[Gradients], tokens: Array) -> None:
        self._references, self._shares = references, tokens / tokens.sum()
        self._names = [layer.name for layer in end.layers]
        self._v = np.array(list(end.record.step_weights.values()))

    def slopes(
        self, stages: Sequence[Checkpoint], pull: Pull, part: str = ""
    ) -> dict[str, list[list[float]]]:
        """By mode: -v_i sum over stages of (gbar_q' R gbar_i - c sum_j v_j gbar_q' R gbar_j), references by domains.

        Args:
            part: only the layers whose names have this in them.
        """
        acting, drawn = np.zeros((2, len(self._references), len(self._v)))
        for name in (name for name in self._names if part in name):
            pulled = pull(name, torch.stack([g[name] for g in self._references]))
            for stage, answers in zip(stages, pulled):
                flat = answers.flatten(1).double()
                acting += (flat @ torch.stack([g[name] for g in stage.unused]).flatten(1).double().T).numpy()
                drawn += (flat @ torch.stack([g[name] for g in stage.drawn]).flatten(1).double().T).numpy()
        scale = {"held": 1 / (1 - self._shares), "free": np.ones(len(self._v))}
        return {
            mode: (-self._v * (acting - float(c) * (drawn @ self._v)[:, None]) * scale[mode]).tolist()
            for mode, c in MODES.items()
        }


def settings(bed: Bed, seed: int) -> Iterator[tuple[str, Callable[[], dict[str, list[list[float]]]]]]:
    """Every setting's name, and what predicts by it: curvatures, responses, dampings, baselines, then what may be chosen."""
    at = lru_cache(lambda stage, fraction=None: Checkpoint(bed, seed, stage, fraction))

    @cache
    def forecast() -> Forecast:
        end = at("end")
        tokens = np.array([end.mixture.tokens_by_domain[name] for name in bed.domains], dtype=float)
        return Forecast(end, end.references(bed), tokens)

    record = TrainingRecord.read(bed.folder / f"seed-{seed}" / "record.json")
    parts = [float(part.sum()) for part in np.array_split(record.clipped_steps, SEGMENTS)]
    default = config.Influence().damping
    middles = [f"middle-{k}" for k in range(1, SEGMENTS + 1)]

    @lru_cache(2)
    def fitted(kind: Any, tau: float | None, labels: int | None = 0, fraction: float | None = None) -> Any:
        return at("end", fraction).fit(kind, tau, labels)

    def one(curvature: Callable[[], Any], part: str = "", fraction: float | None = None) -> Any:
        respond = curvature().respond
        return forecast().slopes([at("end", fraction)], lambda name, U: [respond(name, U)], part)

    def dots(stages: Sequence[str], taus: Sequence[float]) -> Any:
        every = [at(stage) for stage in stages]
        return forecast().slopes(
            every, lambda name, U: [each.adam_inverse(name, U, tau) for each, tau in zip(every, taus)]
        )

    def unrolled() -> Any:
        stages = [at(stage) for stage in middles]
        joined = Unrolled([stage.fit("ekfac", tau) for stage, tau in zip(stages, parts)])
        return forecast().slopes(stages, joined.pull)

    whole = sum(parts)
    for kind in ("ekfac", "kfac"):
        for times in DAMPINGS:
            rho = default * times
            yield (
                f"{kind} converged {rho:g}",
                lambda kind=kind, rho=rho: one(lambda: fitted(kind, None).with_damping(rho)),
            )
        yield f"{kind} finite", lambda kind=kind: one(lambda: fitted(kind, whole))
    yield "ekfac unrolled", unrolled
    yield UNCLIPPED, lambda: one(lambda: fitted("ekfac", float(sum(record.step_sizes))))
    yield "identity", lambda: forecast().slopes([at("end")], lambda name, U: [U])
    yield "adamw dot", lambda: dots(["end"], [whole])
    yield "adamw dot, three checkpoints", lambda: dots(middles, parts)
    yield NULL, lambda: null_rule(bed)
    for response, tau in (("converged 0.001", None), ("finite", whole)):
        for part in ("mlp", "self_attn"):
            yield (
                f"ekfac {response}, {part}",
                lambda tau=tau, part=part: one(lambda: fitted("ekfac", tau), part),
            )
        yield f"ekfac {response}, empirical", lambda tau=tau: one(lambda: fitted("ekfac", tau, None))
        for share in FRACTIONS:
            yield (
                f"ekfac {response}, {share:g} of rows",
                lambda tau=tau, share=share: one(lambda: fitted("ekfac", tau, 0, share), "", share),
            )


def null_rule(bed: Bed) -> dict[str, list[list[float]]]:
    """Nothing is measured: the own domain helps; of a held budget every other one hurts, of a free one it helps less."""
    own = np.array([[domain == name for domain in bed.domains] for name in bed.references], dtype=float)
    others = (1 - own) / (len(bed.domains) - 1)
    return {"held": (others - own).tolist(), "free": (-others - own).tolist()}


# --- judged --------------------------------------------------------------------------------------------------


def plain(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: each.to_json() for name, each in intervals.items()}


def known_values(values: Mapping[str, float]) -> dict[str, float | None]:
    """Null where a figure is not defined: a rule's off-diagonal entries are all alike in one suite."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


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
            for ours in dict.fromkeys((default, "ekfac finite", "ekfac unrolled"))
            for theirs in (*BASELINES, "ekfac converged 0.001", "ekfac finite")
            if ours != theirs
        }
        found.setdefault("by_suite", {})[mode] = {
            suite: {n: known_values(Judge([m], draws=0).values([predicted[n][k]])) for n in names}
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
    known = folder / f"predictions-{options.checkpoint}.json"
    found: Predictions = (
        json.loads(known.read_text(encoding="utf-8")) if options.reuse and known.is_file() else {}
    )
    for name, predict in settings(Bed(suite, options.output, options.budget), options.checkpoint):
        if name not in found:
            found[name] = predict()
            known.write_text(json.dumps(found), encoding="utf-8")
            print(suite.name, name, file=sys.stderr, flush=True)
    return records, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/fidelity"), help="of benchmarks.retrainings"
    )
    parser.add_argument("--budget", type=int, default=30_000)
    parser.add_argument("--checkpoint", type=int, default=301, help="the seed whose checkpoints predict")
    parser.add_argument("--suite", type=int, help="only this one, counted from 0")
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="keep the predictions of the last call; only what is missing is made",
    )
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--json", action="store_true", help="no tables before the last line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    chosen = SUITES if options.suite is None else [SUITES[options.suite]]
    present = [s for s in chosen if (folder_of(s, options.output) / "retrainings.jsonl").is_file()]
    suites = {suite.name: load(suite, options) for suite in present}
    result = judge(suites, options.draws)
    result["seconds"] = round(time.monotonic() - began, 1)
    if not options.json:
        print("\n\n".join(table(result, mode) for mode in MODES))
    print(json.dumps(result, allow_nan=False, default=float))


if __name__ == "__main__":
    main()
