"""`idealmix plan` on a whole project: every phase is there, totals add up, and what does not fit is mended."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rounds_helpers import project
from transformers import AutoConfig

from idealmix import configfile
from idealmix.data.mixture import draw
from idealmix.influence_stage import measure
from idealmix.plan import table
from idealmix.plan.fit import Planner
from idealmix.plan.machine import MACHINES, Machine
from idealmix.plan.work import count
from idealmix.rounds.inputs import load_inputs
from idealmix.rounds.loop import start_mixture_counts
from idealmix.rounds.watch import Silent
from idealmix.training.model import load_model

LARGE = MACHINES["h200"]


@pytest.fixture(scope="module")
def planner_of(tmp_path_factory: pytest.TempPathFactory):
    path = project(tmp_path_factory.mktemp("plan"))
    settings = configfile.load(path)
    inputs = load_inputs(settings, Silent())
    model = AutoConfig.from_pretrained(settings.model)

    def made(machine: Machine) -> Planner:
        return Planner(settings, model, inputs, machine, "float32")

    return made


def test_every_phase_of_every_round(planner_of) -> None:
    plan = planner_of(LARGE).plan()
    names = [f"{phase.round}: {phase.name}" for phase in plan.phases]
    assert names[:3] == ["base: evaluate", "round 0: train", "round 0: evaluate"]
    assert "replicates: train" in names
    assert "later rounds: train" in names
    assert {"round 0: influence: covariances", "round 0: influence: domains", "tests: test scores"} <= set(
        names
    )
    assert plan.fits
    train = next(phase for phase in plan.phases if phase.name == "train")
    assert 2 * 1400 * 0.99 <= train.tokens <= 2 * 1400 * 1.01  # two epochs of the budget
    assert train.disk == 4 * plan.shape.parameters * 2  # weights and AdamW's second moments
    assert plan.to_json()["totals"]["seconds"] == pytest.approx(sum(p.times * p.seconds for p in plan.phases))
    assert table.sentences(plan, None) == ["It fits as it is."]
    assert len(table.rows(plan)) == len(plan.phases) + 1


def test_a_run_that_does_not_fit_gets_settings_with_which_it_does(planner_of) -> None:
    plan = planner_of(LARGE).plan()
    train = next(phase for phase in plan.phases if phase.name == "train")
    small = replace(LARGE, memory=0.9 * train.peak)
    planner = planner_of(small)
    assert next(phase.name for phase in planner.plan().lacking) == "train"
    advice = planner.advice()
    assert advice.plan.fits
    assert advice.overrides[0].startswith("training.per_device_train_batch_size=")
    changed = configfile.from_mapping(
        planner.settings.model_dump(mode="json"), list(advice.overrides), folder=Path.cwd()
    )
    assert planner.plan(changed).peak == advice.plan.peak
    assert "It fits with --set" in table.sentences(planner.plan(), advice)[-1]


def test_nothing_fits_into_no_memory(planner_of) -> None:
    planner = planner_of(replace(LARGE, memory=1.0))
    advice = planner.advice()
    assert not advice.plan.fits
    assert "does not fit" in table.sentences(planner.plan(), advice)[-1]


@pytest.mark.parametrize("least", [6, 40])
def test_the_stage_reads_the_rows_that_were_planned(tmp_path: Path, least: int) -> None:
    settings = configfile.load(project(tmp_path))
    influence = settings.influence.model_copy(update={"sample_fraction": 0.1, "least_rows": least})
    settings = settings.model_copy(update={"influence": influence})
    inputs = load_inputs(settings, Silent())
    planned = count(settings, inputs, widest=64).passes
    counts = start_mixture_counts(settings, inputs)
    mixture = draw(inputs.domains, counts, settings.seed, max_repeats=settings.allocation.max_repeats)
    model = load_model(settings.model, "float32").eval()
    halves = inputs.gradient_halves
    found = measure(model, mixture, inputs.domains, halves, influence, seed=settings.seed)
    read = found.facts["pass_tokens"]
    assert planned["domains"].tokens == read["domains"]
    assert planned["references"].tokens == read["references"]
    assert max(found.moments.rows) == max(least, math.ceil(0.1 * max(counts.values())))
