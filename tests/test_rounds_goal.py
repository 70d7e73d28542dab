"""The seed's share of the error: from few trainings, told by several reference sets."""

from __future__ import annotations

import numpy as np
import pytest

from idealmix.decision import decide
from idealmix.evaluation.set_loss import SetLoss
from idealmix.rounds.goal import Goal

ROWS = 400


def losses(means: np.ndarray, noise: np.ndarray) -> dict[str, SetLoss]:
    """Reference sets of rows with one token each; `noise` is the rows' own, the same for every model."""
    names = [f"q{i}" for i in range(len(means))]
    counts = np.ones(ROWS, dtype=np.int64)
    ids = tuple(str(i) for i in range(ROWS))
    return {
        name: SetLoss(name, ids, mean + rows - rows.mean(), counts)
        for name, mean, rows in zip(names, means, noise, strict=True)
    }


def kept(common: float, trials: int = 1500, sets: int = 4, seeds: int = 3) -> float:
    """Share of equal mixtures that are called better. `common`: the part of the seed's variance that sets share."""
    rng, better = np.random.default_rng(0), 0
    for _ in range(trials):
        rows = rng.normal(size=(sets, ROWS)) * 0.01

        def train(rows: np.ndarray = rows) -> dict[str, SetLoss]:
            shared, own = rng.normal() * common**0.5, rng.normal(size=sets) * (1 - common) ** 0.5
            return losses(1 + 0.1 * (shared + own), rows)

        start, *replicates = (train() for _ in range(seeds))
        goal = Goal("mean_loss", {f"q{i}": 1.0 for i in range(sets)}, start, replicates)
        better += decide(goal.difference(train(), start)).outcome == "better"
    return better / trials


def test_equal_mixtures_are_rarely_kept() -> None:
    assert kept(common=0.0) <= 0.065
    # sets that move together entirely tell no more than one does
    assert kept(common=1.0) <= 0.065


def test_several_sets_are_worth_more_seeds_than_one() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4, ROWS)) * 0.01
    weights = {f"q{i}": 1.0 for i in range(4)}
    worths = []
    for _ in range(60):
        runs = [losses(1 + 0.1 * rng.normal(size=4), rows) for _ in range(3)]
        deviation, worth = Goal("mean_loss", weights, runs[0], runs[1:]).seed_spread()
        own = np.std([np.mean([loss.mean for loss in run.values()]) for run in runs], ddof=1)
        assert deviation is not None
        assert deviation >= own - 1e-12
        assert worth == pytest.approx(3) if deviation == pytest.approx(own) else 3 < worth <= 1 + 2 * 4
        worths.append(worth)
    assert np.mean(np.array(worths) > 3) > 0.4  # independent sets: mostly told by all of them


def test_one_set_or_no_replicate() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2, ROWS)) * 0.01
    runs = [losses(1 + 0.1 * rng.normal(size=2), rows) for _ in range(3)]
    single = Goal("mean_loss", {"q0": 0.0, "q1": 1.0}, runs[0], runs[1:])
    assert single.seed_spread()[1] == pytest.approx(3)
    assert single.seed_spread()[0] == pytest.approx(np.std([run["q1"].mean for run in runs], ddof=1))
    assert Goal("mean_loss", {"q0": 1.0, "q1": 1.0}, runs[0]).seed_spread() == (None, 1)


def test_round_0_is_compared_by_the_mean_of_its_trainings() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(2, ROWS)) * 0.01
    runs = [losses(1 + 0.1 * rng.normal(size=2), rows) for _ in range(4)]
    new = losses(np.array([0.5, 0.7]), rows)
    goal = Goal("mean_loss", {"q0": 1.0, "q1": 1.0}, runs[0], runs[1:])
    found = goal.difference(new, runs[0])
    every = np.mean([[loss.mean for loss in run.values()] for run in runs])
    assert found.value == pytest.approx(0.6 - every)
    deviation, _ = goal.seed_spread()
    assert found.error()[0] ** 2 == pytest.approx(found.se**2 + deviation**2 * (1 + 1 / 4))
    assert found.error(runs=2)[0] ** 2 == pytest.approx(found.se**2 + deviation**2 * (1 / 2 + 1 / 4))
    # a later incumbent was trained once
    assert goal.difference(new, losses(np.array([0.9, 0.9]), rows)).error()[0] ** 2 == pytest.approx(
        goal.difference(new, losses(np.array([0.9, 0.9]), rows)).se ** 2 + 2 * deviation**2
    )
    assert goal.rise("q1", new).value == pytest.approx(0.7 - np.mean([run["q1"].mean for run in runs]))
