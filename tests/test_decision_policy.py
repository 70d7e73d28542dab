"""The loop's next step: its transitions, its end, its replay, and what its choice of m is worth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from allocation_helpers import settings, slopes
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from idealmix.allocation import allocate
from idealmix.decision import Decision, Difference, LoopState, decide, next_step, propose

NAMES = ["math", "code", "chat"]
BETTER, WORSE = Difference(-1.0, 0.01, 30), Difference(1.0, 0.01, 30)
LEANS_WELL, LEANS_BADLY = Difference(-0.005, 0.01, 30), Difference(0.005, 0.01, 30)


def step(state: LoopState, counts: dict[str, int], growth=(-0.3, 0.2, 0.1)):
    """Allocate as the loop would."""
    sizes, ones = dict.fromkeys(counts, 10**6), dict.fromkeys(counts, 1.0)
    return allocate(counts, sizes, ones, slopes(NAMES, growth, 0.001), settings("rows"), m=state.m)


def begin(**keys) -> LoopState:
    return LoopState.start(dict.fromkeys(NAMES, 1000), **{"m": 0.2, "rounds": 9, "patience": 3, **keys})


def after(state: LoopState, difference: Difference, growth=(-0.3, 0.2, 0.1)) -> LoopState:
    proposed = propose(state, step(state, dict(state.tried[state.best]), growth))
    assert proposed.action == "train"
    return next_step(proposed, decide(difference))


def test_better_keeps_and_grows_m():
    state = after(begin(), BETTER)
    assert (state.best, state.round, state.action, state.failures) == (1, 1, "measure", 0)
    assert state.m == pytest.approx(0.3)
    assert "m grows to 0.3" in state.reason
    at_bound = after(begin(m=0.9), BETTER)
    assert at_bound.m == 1.0
    assert "stays at its bound" in after(at_bound, BETTER).reason


def test_worse_goes_back_and_halves_m_without_a_new_measurement():
    state = after(after(begin(), BETTER), WORSE)
    assert (state.best, state.round, state.action, state.failures) == (1, 2, "allocate", 1)
    assert state.m == pytest.approx(0.15)
    assert state.reason.startswith("Back to round 1")


def test_undecided_keeps_the_incumbent_and_lets_the_lean_choose_m():
    good, bad = after(begin(), LEANS_WELL), after(begin(), LEANS_BADLY)
    assert (good.best, good.action, good.m) == (0, "allocate", pytest.approx(0.4))
    assert (bad.best, bad.action, bad.m) == (0, "allocate", pytest.approx(0.1))
    assert "too little to be seen" in good.reason
    assert "leans the wrong way" in bad.reason


def test_what_leans_is_the_next_start_and_still_a_round_without_improvement():
    proposed = propose(begin(), step(begin(), dict.fromkeys(NAMES, 1000)))
    kept = next_step(proposed, decide(LEANS_WELL, lean=True))
    assert (kept.best, kept.action, kept.m, kept.failures) == (1, "measure", pytest.approx(0.2), 1)
    assert kept.reason == "m stays 0.2."
    last = replace(proposed, patience=0)
    ended = next_step(last, decide(LEANS_WELL, lean=True))
    assert (ended.best, ended.action) == (1, "end")


def test_a_broken_limit_is_worse():
    proposed = propose(begin(), step(begin(), dict.fromkeys(NAMES, 1000)))
    broken = decide(BETTER, {"chat": (Difference(0.5, 0.01, 30), 0.0)})
    assert next_step(proposed, broken).best == 0


def test_ends():
    assert begin(rounds=1).action == "end"
    last = after(begin(rounds=2), BETTER)
    assert (last.action, last.reason) == ("end", "Ended: all 2 rounds are done. Round 1 is the best.")
    assert after(begin(patience=0), LEANS_WELL).action == "end"
    one = after(begin(patience=1), LEANS_WELL)
    assert one.action == "allocate"
    two = after(one, WORSE)
    assert two.reason == "Ended: 2 rounds in a row without improvement (patience 1). Round 0 is the best."
    # success clears the count
    assert after(after(after(begin(patience=1), LEANS_WELL), BETTER), WORSE).action == "allocate"


def test_equilibrium_and_known_mixtures_end_it():
    state = begin()
    counts = dict.fromkeys(NAMES, 1000)
    still = allocate(
        counts, dict.fromkeys(NAMES, 9999), dict.fromkeys(NAMES, 1.0), slopes(NAMES, 0.1, 1.0), settings()
    )
    ended = propose(state, still)
    assert ended.action == "end"
    assert ended.reason.startswith("Ended at round 0. Equilibrium: no domain's influence")
    back_again = after(after(state, LEANS_WELL), WORSE)  # m: 0.2, 0.4, 0.2
    ended = propose(back_again, step(back_again, counts))
    assert (ended.action, ended.reason) == (
        "end",
        "Ended: the step leads to the mixture of round 1 again, which was tried.",
    )


def test_bounds_that_cut_a_shorter_step_to_the_rejected_mixture_shorten_it_further():
    state = after(begin(), WORSE)  # m = 0.1 now; the caps made both steps the same
    same = step(replace(begin(), m=0.2), dict.fromkeys(NAMES, 1000))
    again = propose(state, same)
    assert (again.action, again.m, again.tried) == ("allocate", pytest.approx(0.05), state.tried)
    assert "leads to the mixture of round 1 again" in again.reason
    # one that leant the right way is not tried in smaller
    assert propose(after(begin(), LEANS_WELL), same).action == "end"


def test_a_step_that_was_shorter_than_asked_is_the_one_that_is_halved():
    """`equalise` in the place of `curves` goes 3 at most: half of 7 would be the same step again."""
    proposed = propose(begin(m=0.8), step(begin(m=0.2), dict.fromkeys(NAMES, 1000)))
    assert proposed.m == pytest.approx(0.2)
    assert next_step(proposed, decide(WORSE)).m == pytest.approx(0.1)


def test_the_longest_step_that_cannot_be_seen_is_halved():
    state = after(begin(m=1.0), LEANS_WELL)
    assert (state.action, state.m) == ("allocate", pytest.approx(0.5))
    assert "the longest step helped, if at all, too little" in state.reason


def test_turning_round_twice_damps_m():
    state = after(begin(), BETTER, (-0.3, 0.2, 0.1))
    state = after(state, BETTER, (0.3, -0.2, 0.1))
    assert state.m == pytest.approx(0.45)
    state = after(state, BETTER, (-0.3, 0.2, 0.1))
    assert state.m == pytest.approx(0.225)
    assert "math and code turned round twice" in state.reason
    assert after(state, BETTER, (-0.3, 0.2, 0.1)).m > state.m  # and is forgotten
    # rejected moves are no turns
    state = after(after(begin(), BETTER), WORSE, (0.3, -0.2, 0.1))
    assert after(state, BETTER).signs["math"] == (1, 1)


def test_the_papers_loop_takes_every_mixture():
    state = after(begin(keep="all", m=0.15, rounds=3), WORSE)
    assert (state.best, state.m, state.action) == (1, 0.15, "measure")
    assert after(state, LEANS_BADLY).reason == "Ended: all 3 rounds are done. The last mixture is taken."


def test_calibration_learns_the_size_of_predictions():
    state = begin()
    assert state.calibration == 1.0
    state = after(state, Difference(-0.001, 0.0001, 30))
    # math +200, code -133, chat -67: predicted - 0.0933
    assert state.predicted[0] == pytest.approx(-0.3 * 0.2 - 0.2 * 0.133 - 0.1 * 0.067)
    assert state.calibration == pytest.approx(0.001 / 0.0933, rel=0.01)
    assert after(begin(), WORSE).calibration == 1e-3


@effort(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.sampled_from([-1.0, 1.0])), max_size=8), st.integers(0, 3))
def test_a_resumed_loop_replays_exactly(measured, patience):
    """The state after every turn survives JSON, and the incumbent is always the last round that was better."""
    straight = resumed = begin(patience=patience)
    better = 0
    for value, turn in measured:
        proposed = propose(
            straight, step(straight, dict(straight.tried[straight.best]), (-0.3, 0.2 * turn, 0.1))
        )
        again = propose(resumed, step(resumed, dict(resumed.tried[resumed.best]), (-0.3, 0.2 * turn, 0.1)))
        assert again == proposed
        again = LoopState.from_json(json.loads(json.dumps(again.to_json(), allow_nan=False)))
        assert again == proposed
        if proposed.action == "end":
            return
        if proposed.action == "allocate":  # shorter
            straight, resumed = proposed, again
            continue
        decision = decide(Difference(value, 1.0, 20))
        straight = next_step(proposed, decision)
        resumed = next_step(again, Decision.from_json(json.loads(json.dumps(decision.to_json()))))
        resumed = LoopState.from_json(json.loads(json.dumps(resumed.to_json())))
        assert resumed == straight
        better = straight.round if decision.outcome == "better" else better
        assert straight.best == better
        assert 0 < straight.m <= 1
        if straight.action == "end":
            return


# --- what the choice of m is worth -----------------------------------------------------------------------------


def gain(after_undecided: str, m: float, noise: float, spread: float = 0.7, n: int = 60) -> float:
    """Share of the starting loss that five trainings remove, on quadratic losses of five domains, mean over `n` draws.

    ``after_undecided``: "lean" is the project's rule; "halve" and "double" are what it was chosen over.
    """
    reached = start = 0.0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        best_at, bend = rng.normal(0, spread, 5), rng.uniform(0.02, 0.2, 5)

        def loss(log_volume, best_at=best_at, bend=bend):
            return float((bend * (log_volume - best_at) ** 2).sum() / 2)

        names = list("abcde")
        counts = dict.fromkeys(names, 10_000)
        state = LoopState.start(counts, m=m, rounds=5, patience=9)
        while state.action != "end":
            now = dict(state.tried[state.best])
            at = np.log(np.array([now[d] for d in names]) / 10_000)
            # centred, as under a held budget
            slope = bend * (at - best_at)
            volume = np.array([now[d] for d in names]) / 50_000
            slope = slope - volume * slope.sum()
            pools = dict.fromkeys(names, 10**7)
            found = allocate(
                now, pools, dict.fromkeys(names, 1.0), slopes(names, slope, 1e-9), settings("rows"), m=state.m
            )
            state = propose(state, found)
            if state.action == "allocate":  # shorter
                continue
            if state.action == "end":
                break
            new = np.log(np.maximum([found.counts[d] for d in names], 1) / 10_000)
            value = loss(new) - loss(at) + rng.normal(0, noise)
            decision = decide(Difference(value, noise, 1000))
            old, state = state, next_step(state, decision)
            if decision.outcome == "undecided" and after_undecided != "lean" and state.round < 4:
                factor = {"halve": 0.5, "double": 2.0}[after_undecided]
                state = LoopState.from_json(
                    {**state.to_json(), "m": min(old.m * factor, 1.0), "action": "allocate"}
                )
        kept = dict(state.tried[state.best])
        end = np.log(np.maximum([kept[d] for d in names], 1) / 10_000)
        reached += loss(np.zeros(5)) - loss(end)
        start += loss(np.zeros(5))
    return reached / start


def test_the_lean_is_never_far_from_the_better_rule():
    """Timid steps towards a far optimum: halving loses most of it. Bold steps near one: doubling does."""
    timid = {rule: gain(rule, 0.15, 0.03) for rule in ("lean", "halve", "double")}
    assert timid["lean"] > 2 * timid["halve"]
    assert timid["lean"] > 0.8 * timid["double"]
    bold = {rule: gain(rule, 0.5, 0.01, spread=0.2) for rule in ("lean", "halve", "double")}
    assert bold["lean"] > 1.15 * bold["double"]
    assert bold["lean"] > 0.5 * bold["halve"]
