"""What a round showed, and what to do next.

Flows in: the paired difference of the objective between a trained mixture and the best so far, with its errors; the
allocations that led there. Flows out: a ``Decision`` (better, leaning, worse, undecided) and the next ``LoopState``. Pure:
the same inputs give the same states, so a resumed run replays exactly; both go to JSON and back.

What an undecided round should be followed by
---------------------------------------------
The direction comes from slopes that passed the gate; what nobody knows is how far to go (the paper's m = 0.15 is safe
but timid). The true gain of a step grows with m at first, the noise (reference rows, training seed) does not. So a
gain that cannot be seen is most often a step too small to be seen, and a smaller one could be seen even less. But
past the optimum gains vanish too, and then the measured difference leans to the wrong side. Hence, from the
incumbent, which stays: a difference that leans the predicted way doubles m, one that leans against it halves m.
Both reuse the influence at the incumbent: a retry costs one training and no measurement.

Simulated (`tests/test_decision_policy.py`: quadratic losses of five domains, this module and `allocate`), share of the
starting loss that five trainings remove where noise hides the first step: with the optimum far away and m = 0.15 this
rule 0.61, always halving 0.15, always doubling 0.64; with the optimum near and m = 0.5, where the first step overshoots,
0.24, 0.40 and 0.20. Each of the other two is better in one case and much worse in the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from scipy.special import stdtrit

from idealmix.allocation import Allocation
from idealmix.certainty import LEVEL, finite_dof, p_below, p_text, satterthwaite

Outcome = Literal["better", "leaning", "worse", "undecided"]
KEPT: tuple[Outcome, ...] = ("better", "leaning")
Action = Literal["measure", "allocate", "train", "end"]

GROW, DOUBLE, HALVE = 1.5, 2.0, 0.5
LARGEST_M = 1.0  # a domain at most doubles in one round, or goes, unless the run starts with a larger m


@dataclass(frozen=True)
class Difference:
    """A difference of losses: new minus old, with the row-clustered error and its degrees of freedom.

    `seed_sd`: the loss's standard deviation between training seeds, from `seeds` trainings of round 0 (replicates
    and the first; a fraction, where several losses of each tell about it); None or fewer than two: unknown, and left
    out of the error. `old_runs`: trainings behind the old losses (their mean is taken); the new ones are of one.
    """

    value: float
    se: float
    dof: float
    seed_sd: float | None = None
    seeds: float = 0
    old_runs: int = 1

    def error(self, runs: int = 1) -> tuple[float, float]:
        """Combined standard error and Satterthwaite's degrees of freedom.

        Both sides of the difference are trained, so the seed's variance enters twice, divided by the trainings behind
        each; with `runs` there would be so many of each at least.
        """
        rows = self.se**2
        trainings = 1 / runs + 1 / max(runs, self.old_runs)
        seed = trainings * self.seed_sd**2 if self.seed_sd is not None and self.seeds > 1 else 0.0
        dof = satterthwaite([rows, seed], [self.dof, self.seeds - 1]) if seed else self.dof
        return math.sqrt(rows + seed), finite_dof(dof)

    @property
    def seed_known(self) -> bool:
        """Whether the error includes the training seed's."""
        return self.seed_sd is not None and self.seeds > 1


@dataclass(frozen=True)
class Decision:
    """A round's outcome; better and leaning are kept. `se`, `dof`: combined; `p`: one-sided for "better" (small: better; near 1: worse)."""

    outcome: Outcome
    value: float
    se: float
    dof: float
    p: float
    violated: tuple[str, ...]
    reason: str

    @property
    def kept(self) -> bool:
        """Whether the mixture is the new incumbent."""
        return self.outcome in KEPT

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "violated": list(self.violated)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """The inverse of `to_json`."""
        return cls(**{**data, "violated": tuple(data["violated"])})


def decide(
    objective: Difference,
    constraints: Mapping[str, tuple[Difference, float]] | None = None,
    *,
    lean: bool = False,
) -> Decision:
    """The outcome of a round: one-sided 5% t tests of the objective's paired difference.

    Better: significantly below zero. Worse: significantly above, or a constrained reference set's loss rose from
    the base round's by significantly more than its ``max_increase``. Otherwise leaning, if the difference is below zero and
    `lean` asks for it: the lower of two measured losses is more likely than not the lower one, and where they are equal nothing is
    lost by either. Otherwise undecided. Each comparison has its own 5%.

    Args:
        objective: this round's objective minus the incumbent's, on the deciding halves.
        constraints: by reference set, this round's loss minus round 0's and the largest accepted rise.
        lean: keep what measured lower, whether or not it stands out of its error.
    """
    se, dof = objective.error()
    p = p_below(objective.value, se, dof)
    violated = []
    for name, (rise, most) in (constraints or {}).items():
        if p_below(most - rise.value, *rise.error()) < LEVEL:
            violated.append(name)
    measured = f"{objective.value:+.4f} ± {se:.4f}".replace("-", "−")
    caveat = (
        ""
        if objective.seed_known
        else "; the error leaves out the training seed's, since there are no replicates"
    )
    if violated:
        names = " and ".join(violated)
        reason = (
            f"Worse: {names} lost more than its limit allows (the objective changed by {measured}{caveat})."
        )
        return Decision("worse", objective.value, se, dof, p, tuple(violated), reason)
    if p < LEVEL:
        outcome, reason = (
            "better",
            f"Better: the objective changed by {measured} (one-sided p = {p_text(p)}{caveat}).",
        )
    elif 1 - p < LEVEL:
        outcome, reason = (
            "worse",
            f"Worse: the objective changed by {measured} (one-sided p = {p_text(1 - p)}{caveat}).",
        )
    elif lean and objective.value < 0:
        outcome = "leaning"
        reason = (
            f"Lower, and kept, though it may be chance: the objective changed by {measured} (one-sided p = {p_text(p)}{caveat}). "
            f"{_what_a_replicate_would_do(objective)}"
        )
    else:
        outcome = "undecided"
        reason = (
            f"Undecided: the objective changed by {measured}, within its error{caveat}. "
            f"{_what_a_replicate_would_do(objective)}"
        )
    return Decision(outcome, objective.value, se, dof, p, (), reason)  # type: ignore[arg-type]


def _what_a_replicate_would_do(objective: Difference) -> str:
    (se, dof), (with_two, dof_two) = objective.error(), objective.error(runs=2)
    seen, seen_two = (
        float(stdtrit(finite_dof(d), 1 - LEVEL)) * s for s, d in ((se, dof), (with_two, dof_two))
    )
    if not objective.seed_known:
        return f"Changes from {seen:.4f} could be seen, if the seed made no difference."
    if seen_two > 0.95 * seen:
        return f"Changes from {seen:.4f} could be seen; a second seed would hardly help, more reference rows would."
    return f"Changes from {seen:.4f} could be seen; with a second seed of both mixtures, from {seen_two:.4f}."


# --- the loop ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands, and what it does next.

    `action` is what the caller has to do: "measure" influence at round `best` and then allocate with `m`;
    "allocate" with `m` again from the influence at `best`, which is known; "train" what was proposed; "end",
    with `reason` as why.

    Attributes:
        m, largest_m: the step, and what it may grow to.
        rounds: trainings of the loop, round 0 included. patience: rounds in a row without improvement that are
            borne; one more ends the loop.
        keep: "better" (only an improvement becomes the incumbent) or "all" (the paper: every mixture does, m fixed).
        round, best: the last trained round; the incumbent.
        failures: rounds in a row without improvement.
        signs: the signs of each domain's moves that were kept, oldest first, since it last was damped.
        tried: counts that were trained, by round.
        predicted, measured: the objective's changes of all trained steps.
        proposal: signs and predicted change of the mixture that is being trained.
    """

    m: float
    rounds: int
    patience: int
    largest_m: float = LARGEST_M
    keep: Literal["better", "all"] = "better"
    round: int = 0
    best: int = 0
    failures: int = 0
    signs: Mapping[str, tuple[int, ...]] | None = None
    tried: tuple[Mapping[str, int], ...] = ()
    predicted: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()
    proposal: tuple[Mapping[str, int], float] | None = None
    action: Action = "measure"
    reason: str = ""

    @classmethod
    def start(
        cls,
        counts: Mapping[str, int],
        *,
        m: float,
        rounds: int,
        patience: int,
        keep: Literal["better", "all"] = "better",
    ) -> LoopState:
        """The state once round 0 (`counts`) is trained."""
        state = cls(
            m=m,
            rounds=rounds,
            patience=patience,
            keep=keep,
            largest_m=max(m, LARGEST_M),
            tried=(dict(counts),),
        )
        if rounds == 1:
            return replace(state, action="end", reason="Ended: the only round is done.")
        return replace(state, reason="Round 0 is the first to beat.")

    @property
    def calibration(self) -> float:
        """Measured over predicted change of the steps so far (least squares through zero, 0.001 to 1); 1 before any.

        Far from a converged optimum influence over-predicts, by up to hundreds of times; its order of domains is
        what steps are made of, its size only serves the no-regression limits.
        """
        square = sum(x * x for x in self.predicted)
        if not square:
            return 1.0
        return min(max(sum(x * y for x, y in zip(self.predicted, self.measured)) / square, 1e-3), 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoopState:
        """The inverse of `to_json`."""
        signs, proposal = data["signs"], data["proposal"]
        fields = {
            **data,
            "signs": None if signs is None else {name: tuple(s) for name, s in signs.items()},
            "proposal": None if proposal is None else (proposal[0], proposal[1]),
            **{key: tuple(data[key]) for key in ("tried", "predicted", "measured")},
        }
        return cls(**fields)


def propose(state: LoopState, allocation: Allocation) -> LoopState:
    """Take up an allocation made at the incumbent with ``state.m``, or with less (`allocate` says why): "train" it, or "end" where it is nothing new.

    A bound may cut a step of half the length to the mixture that was just found worse: "allocate" again, with half of m.
    """
    state = replace(state, m=min(state.m, allocation.m))
    if allocation.equilibrium:
        return replace(state, action="end", reason=f"Ended at round {state.round}. {allocation.reason}")
    if state.keep == "better" and allocation.counts in [dict(counts) for counts in state.tried]:
        at = [dict(counts) for counts in state.tried].index(allocation.counts)
        if at and state.measured[at - 1] > 0:
            said = f"m is halved to {state.m * HALVE:.3g}: the step leads to the mixture of round {at} again, which was no better."
            return replace(state, m=state.m * HALVE, action="allocate", reason=said)
        reason = f"Ended: the step leads to the mixture of round {at} again, which was tried."
        return replace(state, action="end", reason=reason)
    signs = {name: _sign(move.after - move.before) for name, move in allocation.moves.items()}
    return replace(
        state,
        action="train",
        proposal=(signs, allocation.predicted),
        tried=(*state.tried, allocation.counts),
        reason=f"m = {allocation.m:.3g}: {allocation.reason}",
    )


def next_step(state: LoopState, decision: Decision) -> LoopState:
    """After the proposed mixture was trained and decided on.

    Better: it is the incumbent, and m grows by half up to `largest_m`. Leaning: it is the incumbent, m stays, and it counts as a round
    without improvement. Worse: the incumbent stays, m is halved.
    Undecided: the incumbent stays; m doubles if the difference leans the predicted way, else, or where it is at its bound,
    it is halved (see the module). A domain whose kept moves turned round twice (up, down, up) shows that steps overshoot: m is halved
    instead of growing. The loop ends with `rounds` or with patience.
    """
    signs, predicted = state.proposal or ({}, 0.0)
    now = replace(
        state,
        round=state.round + 1,
        proposal=None,
        predicted=(*state.predicted, predicted),
        measured=(*state.measured, decision.value),
    )
    if state.keep == "all":
        now = replace(now, best=now.round, action="measure")
        return _ended(now, "The paper's rule takes every mixture as the next start.")
    if decision.outcome == "better":
        kept, turned = _with_signs(state.signs or {}, signs)
        now = replace(now, best=now.round, failures=0, signs=kept, action="measure")
        if turned:
            whose = " and ".join(turned)
            said = f"m is halved to {state.m * HALVE:.3g}: {whose} turned round twice, so steps overshoot."
            return _ended(replace(now, m=state.m * HALVE), said)
        m = min(state.m * GROW, state.largest_m)
        said = (
            f"m grows to {m:.3g}, since the step was seen to help."
            if m > state.m
            else f"m stays at its bound {m:.3g}."
        )
        return _ended(replace(now, m=m), said)
    if decision.outcome == "leaning":
        kept, _ = _with_signs(state.signs or {}, signs)
        now = replace(now, best=now.round, failures=state.failures + 1, signs=kept, action="measure")
        return _ended(now, f"m stays {state.m:.3g}.")
    now = replace(now, failures=state.failures + 1, action="allocate")
    back = (
        f"Back to round {state.best}: "
        if decision.outcome == "worse"
        else f"Round {state.best} stays the best: "
    )
    if decision.outcome == "undecided" and decision.value <= 0:
        m = min(state.m * DOUBLE, state.largest_m)
        said = f"m doubles to {m:.3g}, since the step helped, if at all, too little to be seen."
        if (
            m == state.m
        ):  # slopes stand out of their errors, and the longest step gains nothing: it went past the best
            m = state.m * HALVE
            said = f"m is halved to {m:.3g}, since the longest step helped, if at all, too little to be seen."
    else:
        m = state.m * HALVE
        why = "the step went too far" if decision.outcome == "worse" else "the difference leans the wrong way"
        said = f"m is halved to {m:.3g}, since {why}."
    return _ended(replace(now, m=m), back + said)


def _ended(state: LoopState, said: str) -> LoopState:
    """The state with its reason; ended where rounds or patience are used up."""
    if state.failures > state.patience:
        rounds = "round" if state.failures == 1 else "rounds in a row"
        why = f"Ended: {state.failures} {rounds} without improvement (patience {state.patience})."
    elif state.round + 1 >= state.rounds:
        why = f"Ended: all {state.rounds} rounds are done."
    else:
        return replace(state, reason=said)
    taken = "The last mixture is taken." if state.keep == "all" else f"Round {state.best} is the best."
    return replace(state, action="end", reason=f"{why} {taken}")


def _with_signs(
    history: Mapping[str, Sequence[int]], signs: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Each domain's kept moves with the newest one, and the domains that turned round twice (their history starts anew)."""
    out, turned = {}, []
    for name, sign in signs.items():
        past = (*history.get(name, ()), *([sign] if sign else []))
        if sum(a != b for a, b in pairwise(past)) >= 2:
            turned.append(name)
            past = past[-1:]
        out[name] = past
    return out, turned


def _sign(change: int) -> int:
    return (change > 0) - (change < 0)
