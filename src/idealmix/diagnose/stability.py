"""``idealmix diagnose --stability``: what damping, seeds and rounds do to the step.

Flows in: a checkpoint, numbers of seeds. Flows out: an `Answer`. All dampings come out of one stage, of the
converged response; where the run has another, its own is one more. Every seed of the rows' sample and of the labels
costs one more, every training seed a training and a stage.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from idealmix.data.mixture import Mixture
from idealmix.diagnose.answer import Answer, Table
from idealmix.diagnose.checkpoint import Checkpoint
from idealmix.diagnostics.conclusions import Agreement, Conclusions
from idealmix.disk import read_json
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.influence_rows import Measured
from idealmix.report import words
from idealmix.rounds.folder import RunFolder
from idealmix.rounds.loop import SEED_STRIDE
from idealmix.rounds.phases import Phases
from idealmix.rounds.team import Team
from idealmix.training.record import TrainingRecord

TIMES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Multiples of the damping."""


def stability(at: Checkpoint, seeds: int, trainings: int) -> Answer:
    """Measure under other dampings and seeds, and look at the run's other rounds.

    Args:
        seeds: other seeds of the rows' sample and of the sampled labels.
        trainings: other seeds of the training, drawn, trained and measured anew.
    """
    settings = at.config.influence
    sweeps, converged = settings.curvature in ("ekfac", "kfac"), settings.response == "converged"
    swept = _swept(at) if sweeps else {}
    default = swept.pop(1.0) if sweeps and converged else at.measure("measuring influence")[0]
    # the converged response alone has a damping: beside another one the sweep shows what that would do
    kind = "damping" if converged else "converged, damping"
    step = at.step(default.matrix)
    yardstick = at.conclusions(default.matrix)
    others: dict[str, Conclusions] = {
        f"{kind} × {times:g}": at.conclusions(each.matrix) for times, each in swept.items()
    }
    for number in range(1, seeds + 1):
        (each,) = at.measure(
            f"measuring influence, seed {number} of {seeds}", seed=at.config.seed + number * SEED_STRIDE
        )
        others[f"rows and labels, seed {number}"] = at.conclusions(each.matrix)
    for number in range(1, trainings + 1):
        again = _trained(at, number)
        (each,) = again.measure(f"measuring influence, training {number} of {trainings}")
        others[f"training, seed {number}"] = at.conclusions(each.matrix)
    others |= _rounds(at)
    found = {name: Agreement.of(each, yardstick) for name, each in others.items()}
    return Answer(
        question="stability",
        headline=_headline(found, yardstick),
        tables=[_table(found), _shares(at, yardstick, others)],
        notes=[
            f"The yardstick is this round's own step ({at.response}, seed {at.config.seed}) by the rule {step.rule}, with m = {step.m:g}. "
            "Influence alone is measured anew: the losses that learning curves go by are the run's own in every line. "
            "Volume elsewhere: the share of the volume that the other step puts into other domains.",
            "Rows and labels: which rows are sampled, and which labels the curvature draws. Training: which rows are drawn and their order; "
            "the round is trained anew (--trainings). Rounds: each measured round's own step, from its own mixture; it should differ "
            "as the mixture moves on, but not turn back.",
            *([] if sweeps else ["This curvature has no damping that could be swept."]),
        ],
        figures={
            "agreement": {name: each.to_json() for name, each in found.items()},
            "shares": {"yardstick": yardstick.shares, **{name: each.shares for name, each in others.items()}},
            "moves": {"yardstick": yardstick.moves, **{name: each.moves for name, each in others.items()}},
            "warnings": list(default.matrix.warnings),
        },
        facts=at.facts,
    )


def _swept(at: Checkpoint) -> dict[float, Measured]:
    """The converged response at every damping, in one stage."""
    dampings = [at.config.influence.damping * times for times in TIMES]
    stage = at.measure("measuring influence at every damping", dampings=dampings, response="converged")
    return dict(zip(TIMES, stage))


def _trained(at: Checkpoint, number: int) -> Checkpoint:
    """The same counts with another seed: drawn, ordered and trained anew; kept in the run's ``diagnose`` folder."""
    seed, where = at.config.seed + number * SEED_STRIDE, f"training-{number}"
    folder = RunFolder(Path(at.config.output) / "diagnose", at.watch.warn)
    with folder.locked():
        phases = Phases(at.config, at.inputs, folder, Team(), at.watch)
        mixed = phases.mix(where, at.mixture.counts, seed)
        steps = at.record.steps if at.config.allocation.budget.hold else None
        trained = phases.train(where, mixed, seed, steps or None)
    return replace(
        at,
        mixture=Mixture.read(mixed.artifact.path, at.inputs.domains),
        record=TrainingRecord.read(trained.artifact.path / "record.json"),
        folder=trained.artifact.path,
    )


def _rounds(at: Checkpoint) -> dict[str, Conclusions]:
    """Every other round of a finished run whose influence was measured."""
    path = Path(at.config.output) / "result.json"
    if not path.is_file():
        return {}
    found = {}
    for one in read_json(path)["rounds"]:
        if one["influence"] and one["index"] != at.index and one["index"] in at.trainings.tried:
            matrix = InfluenceMatrix.from_json(one["influence"])
            found[f"round {one['index']}"] = at.of_round(one["index"]).conclusions(matrix)
    return found


def _headline(found: dict[str, Agreement], yardstick: Conclusions) -> str:
    if not found:
        return "Nothing was varied: this curvature has no damping, and no seed, training or other round was asked for."
    if not any(yardstick.moves.values()):
        same = sum(each.apart == 0 for each in found.values())
        return f"The step moves nothing; of {len(found)} variations {same} move nothing either."
    worst = max(found, key=lambda name: found[name].apart)
    turned = [name for name, each in found.items() if each.turned > 0]
    text = f"The largest change of the step comes from {worst}: {words.percent(found[worst].apart)} of the volume lies elsewhere."
    return f"{text} {'No sign is turned.' if not turned else 'Signs are turned by ' + words.listing(turned) + '.'}"


def _table(found: dict[str, Agreement]) -> Table:
    columns = [
        "changed",
        "cosine of slopes",
        "signs told",
        "signs turned",
        "volume elsewhere",
        "± ×",
    ]
    rows = [
        [
            name,
            words.number(each.cosine, 3),
            words.percent(each.told) if np.isfinite(each.told) else "–",
            words.percent(each.turned) if np.isfinite(each.turned) else "–",
            words.percent(each.apart),
            words.number(each.se, 2),
        ]
        for name, each in found.items()
    ]
    return "The step under other dampings, seeds and in other rounds, against this round's own", columns, rows


def _shares(at: Checkpoint, yardstick: Conclusions, others: dict[str, Conclusions]) -> Table:
    """Each domain's share of the volume after each step."""
    names = list(yardstick.shares)
    before = at.shares(at.mixture.counts)
    rows = [["now", *(words.percent(before[name]) for name in names)]]
    for label, each in {"the step": yardstick, **others}.items():
        rows.append([label, *(words.percent(each.shares[name]) for name in names)])
    return "Shares of the volume after each step", ["step", *names], rows
