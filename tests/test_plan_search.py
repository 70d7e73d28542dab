"""`idealmix plan` of a run with a search: the rounds at their own size, then one training in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rounds_helpers import project

from idealmix import configfile
from idealmix.plan import command
from idealmix.plan.machine import MACHINES
from idealmix.rounds.watch import Silent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("plan"))


def test_rounds_of_the_fraction_and_one_training_in_full(path: Path) -> None:
    whole = command.plan_config(configfile.load(path), "h200", Silent())
    found = command.plan_config(configfile.load(path, ["search={fraction: 0.25}"]), "h200", Silent())
    assert whole.notes == ()
    assert "0.25 of the budget" in found.notes[0]
    phases = {f"{phase.round}: {phase.name}": phase for phase in found.plan.phases}
    assert phases["search, round 0: train"].tokens == pytest.approx(2 * 350, rel=0.05)  # two epochs
    assert phases["search, later rounds: train"].times == 1
    assert phases["full size: train"].tokens == pytest.approx(2 * 1400, rel=0.02)
    assert phases["full size: train"].times == 1
    assert phases["full size, tests: test losses"].times == 2  # of the base model and the mixture
    assert "search, tests: test losses" not in phases
    assert not [name for name in phases if "full size" in name and "influence" in name]
    trained = sum(p.times * p.tokens for p in found.plan.phases if p.name == "train")
    assert trained < sum(p.times * p.tokens for p in whole.plan.phases if p.name == "train")
    assert found.to_json()["notes"] == list(found.notes)


def test_what_does_not_fit_gets_settings_for_both(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configfile.load(path, ["search={fraction: 0.5, lora: true}"])
    plan = command.plan_config(settings, "h200", Silent()).plan
    peak = max(phase.peak for phase in plan.phases if phase.name == "train")
    monkeypatch.setitem(MACHINES, "h200", replace(MACHINES["h200"], memory=0.9 * peak))
    found = command.plan_config(settings, "h200", Silent())
    assert found.advice is not None
    assert found.advice.plan.fits
    assert found.advice.overrides[0].startswith("training.per_device_train_batch_size=")
    assert any(phase.round.startswith("search") for phase in found.advice.plan.phases)


def test_another_method_is_told_what_is_planned(path: Path) -> None:
    found = command.plan_config(configfile.load(path, ["method=doremi"]), "h200", Silent())
    assert "doremi" in found.notes[0]
    assert "not counted" in found.notes[0]
