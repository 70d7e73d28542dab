"""The rule `curves`: fitted curves against losses that are known, attribution from influence, the step to the best mixture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_helpers import World, own_domain
from scipy.optimize import minimize

from idealmix import config
from idealmix.allocation import Allocation, allocate
from idealmix.allocation.curves import SEED_NOISE, Curves, Tried, attribution, curve, fit, seed_noise
from idealmix.allocation.rules import wanted
from idealmix.influence_matrix import InfluenceMatrix
from idealmix.moments import Moments
from idealmix.slopes import Slopes

NAMES = ("chat", "code", "maths")
NOISE = dict.fromkeys(("q0", "q1"), SEED_NOISE)


def matrix(helped: np.ndarray, error: float = 1e-6) -> InfluenceMatrix:
    """Influence of free volumes that is - `helped` (R, D)."""
    Q, D = helped.shape
    mean = np.tile(helped * D, 2)
    moments = Moments(
        mean=mean,
        training=np.repeat(np.eye(Q)[None] * (error * D) ** 2, 2 * D, 0),
        reference=np.zeros((Q, 2 * D, 2 * D)),
        rows=np.full(2 * D, 100.0),
        fraction=np.full(2 * D, 0.5),
        reference_rows=np.full(Q, 200.0),
        dof=np.full(2 * D + Q, 99.0),
    )
    references = tuple(f"q{n}" for n in range(Q))
    return InfluenceMatrix(
        NAMES[:D], references, dict.fromkeys(NAMES[:D], 1 / D), True, moments, {"all": mean}, {}, {}
    )


def curves(
    pull=((0.0, 0.01, 0.0), (0.0, 0.002, 0.02)), power=(0.3, 0.8), base=(1.0, 3.0), weights=(0.5, 0.5),
    apart=(0.0, 0.0),
):  # fmt: skip
    return Curves(NAMES, ("q0", "q1"), weights, base, power, pull, apart)


def test_gains_are_the_derivative_of_the_objective():
    one, volume = curves(apart=(4.0, 0.0)), np.array([300.0, 500.0, 200.0])
    assert one.losses(volume)[0] == pytest.approx((1 + 4 + 5) ** -0.3)

    def objective(n):
        return float(np.array(one.weights) @ one.losses(n))

    found = one.gains(volume)
    for i, step in enumerate(np.eye(3)):
        slope = (objective(volume + 1e-3 * step) - objective(volume - 1e-3 * step)) / 2e-3
        assert found[i] == pytest.approx(-slope, rel=1e-5, abs=1e-12)


THIRDS = np.full(3, 100.0)


def test_attribution_is_by_free_volumes():
    a = attribution(matrix(np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 2.0]])), NAMES, THIRDS)
    assert a == pytest.approx(np.array([[0, 0.75, 0.25], [0, 0, 1]]), abs=1e-6)
    turned = attribution(matrix(np.array([[0.0, 3.0, 1.0]])), NAMES[::-1], THIRDS)
    assert turned[0] == pytest.approx(a[0, ::-1], abs=1e-6)


def test_attribution_shrinks_towards_the_mixtures_average():
    """By hand: volumes 10, 60, 30 and help 0.6, 3.0, 0.4: the average is 0.4, 2.4, 1.2; beside it +0.2, +0.6, -0.8."""
    volume = np.array([10.0, 60.0, 30.0])
    a = attribution(matrix(np.array([[0.6, 3.0, 0.4]]), error=0.4), NAMES, volume)
    # z is 0.5, 1.5, 2: the first is average, of the others 1 - 1 / 2.25 and 1 - 1 / 4 of the difference are kept
    kept = np.array([0.4, 2.4 + 0.6 * (1 - 1 / 2.25), 1.2 - 0.8 * 0.75])
    assert a[0] == pytest.approx(kept / kept.sum())


def test_domains_that_cannot_be_told_apart_have_parts_by_volume():
    volume = np.array([10.0, 60.0, 30.0])
    a = attribution(matrix(np.array([[0.6, 3.0, 0.4]]), error=5.0), NAMES, volume)
    assert a[0] == pytest.approx(volume / 100)


def test_a_domain_that_is_known_to_do_nothing_has_no_part_and_one_that_hurts_a_negative_one():
    a = attribution(matrix(np.array([[0.0, 3.0, 1.0], [0.0, 3.0, -1.0]]), error=0.01), NAMES, THIRDS)
    assert a[0, 0] == pytest.approx(0, abs=1e-3)
    assert a[1] == pytest.approx([0, 0.75, -0.25], abs=1e-3)


def test_what_hurts_does_not_blow_up_what_helps():
    """All together do next to nothing for the first set, and harm the second; of the third nothing is known."""
    helped = np.array([[-3.0, 2.0, 1.1], [0.0, -3.0, 1.0], [0.0, 0.0, 0.0]])
    a = attribution(matrix(helped, error=0.01), NAMES, THIRDS)
    assert a[0] == pytest.approx(helped[0] / 6.1, abs=1e-3)
    assert a[1] == pytest.approx(helped[1] / 4, abs=1e-3)
    assert (a[2] == 0).all()


def test_what_the_mixture_does_not_change_stays_in_the_curve():
    """Of a domain that hurts and one that helps: the loss at hand, and which way it goes in a held budget."""
    influence = matrix(np.array([[-3.0, 1.0, 0.0]]))
    at = Tried(dict(zip(NAMES, (100.0, 200.0, 300.0))), {"q0": 2.0})
    found, _ = fit(influence, {"q0": 1.0}, {"q0": 3.0}, [at], at, NOISE)
    assert found is not None
    assert found.losses(np.array([100.0, 200.0, 300.0])) == pytest.approx([2.0], rel=1e-3)
    k = np.array(found.pull[0]) * [100, 200, 300] / [-0.75, 0.25, 1]
    assert k[0] == pytest.approx(k[1])
    assert found.apart[0] == pytest.approx(1.5 * k[0])  # 1 + 0.75 - 0.25
    less = found.losses(np.array([20.0, 280.0, 300.0]))[0]
    assert found.base[0] * (1 + k[0] * (1 + 0.75 * 0.8 + 0.25 * 0.4)) ** -found.power[0] == pytest.approx(
        less
    )
    again = Curves.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    before = {key: value for key, value in curves().to_json().items() if key != "apart"}
    assert Curves.from_json(before) == curves()


def test_a_fit_to_several_mixtures_finds_power_and_scale():
    """Where one mixture leaves the scale to what was believed before, four tell it."""
    truth = curves(pull=((0, 0.01, 0), (0, 0, 0.05)), power=(0.2, 1.1))
    influence = matrix(np.array([[0, 1.0, 0], [0, 0, 5.0]]))
    base = dict(zip(truth.references, truth.base))
    seen = []
    for volume in ([400, 500, 100], [100, 300, 600], [50, 800, 150], [50, 100, 850]):
        losses = dict(zip(truth.references, truth.losses(np.array(volume, dtype=float)).tolist()))
        seen.append(Tried(dict(zip(NAMES, volume)), losses, runs=50))
    weights = dict.fromkeys(truth.references, 0.5)
    one, said = fit(influence, weights, base, seen[:1], seen[0], NOISE)
    many, _ = fit(influence, weights, base, seen, seen[0], NOISE)
    assert said == ""
    assert one is not None
    assert many is not None
    assert one.losses(np.array([400.0, 500, 100])) == pytest.approx(list(seen[0].losses.values()), rel=0.02)
    assert many.power == pytest.approx(truth.power, rel=0.1)
    assert (np.abs(np.log(np.array(one.power) / truth.power)) > 0.25).all()
    for one_seen in seen:
        got = many.losses(np.array([one_seen.volumes[name] for name in NAMES], dtype=float))
        assert got == pytest.approx(list(one_seen.losses.values()), rel=0.02)


def test_a_curve_is_the_most_probable_one():
    """By brute force: squares of the misfits over their errors, and of log k / 10 over 2; of p nothing is believed."""
    x, fall, weight = np.array([1.0, 3.0]), np.array([0.6, 0.63]), np.array([20.0, 10.0])
    p, k = np.meshgrid(np.geomspace(0.01, 1.9, 700), np.geomspace(0.5, 1e4, 700))
    misfit = sum(((p * np.log1p(k * a) - f) * w) ** 2 for a, f, w in zip(x, fall, weight))
    best = np.argmin(misfit + (np.log(k / 10) / 2) ** 2)
    assert curve(x, fall, weight) == pytest.approx((p.flat[best], k.flat[best]), rel=0.02)
    assert k.flat[best] > 30  # the second mixture speaks against the belief, and does not settle it
    assert curve(x[:1], fall[:1], weight[:1])[1] == pytest.approx(10, rel=1e-3)


def test_a_small_fall_is_as_far_on_its_way_as_a_large_one():
    """The same shape a tenth as high has the same k, after one mixture and after two."""
    influence = matrix(np.array([[5.0, 1.0, 0.0], [5.0, 1.0, 0.0]]))
    base = {"q0": 4.0, "q1": 4.0}
    seen = [
        Tried(dict(zip(NAMES, volume)), {"q0": 4 * np.exp(-fall), "q1": 4 * np.exp(-fall / 10)})
        for volume, fall in (((100, 300, 200), 1.0), ((300, 100, 200), 1.2))
    ]
    for n in (1, 2):
        found, _ = fit(influence, dict.fromkeys(base, 0.5), base, seen[:n], seen[0], NOISE)
        assert found is not None
        assert found.pull[1] == pytest.approx(found.pull[0], rel=1e-3)
        assert found.power[1] == pytest.approx(found.power[0] / 10, rel=1e-3)
    assert sum(np.array(found.pull[0]) * [100, 300, 200]) > 15  # what the second tells counts


def test_why_there_are_no_curves():
    at, base = Tried(dict.fromkeys(NAMES, 100.0), {"q0": 0.5, "q1": 3.5}), {"q0": 1.0, "q1": 3.0}
    influence = matrix(np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    why = "training did not lower the loss on q1"
    assert fit(influence, {"q0": 0.5, "q1": 0.5}, base, [at], at, NOISE) == (None, why)
    found, said = fit(influence, {"q0": 1.0, "q1": 0.0}, base, [at], at, NOISE)
    assert said == ""
    assert found is not None
    assert found.power[1] == 0.0


@given(st.integers(0, 10_000))
def test_the_rule_finds_the_curves_best_within_reach(seed):
    """Against scipy's minimiser; domains that serve several capabilities and a useless one among them."""
    rng = np.random.default_rng(seed)
    D, Q, m = int(rng.integers(2, 6)), int(rng.integers(1, 5)), float(rng.choice([0.3, 1.0, 3.0]))
    pull = rng.exponential(0.01, (Q, D)) * (rng.random((Q, D)) < 0.6)
    pull[range(Q), rng.integers(0, D, Q)] += 0.02
    pull *= rng.choice([1, -1], (Q, D), p=[0.85, 0.15])
    volume = rng.dirichlet(np.ones(D) * 3) * 1000
    # never so much harm that a loss is back at the base model's: the curve has a kink there
    apart = np.maximum(-pull, 0) @ volume * (1 + m) + rng.exponential(2.0, Q) * (rng.random(Q) < 0.5)
    one = Curves(
        tuple(map(str, range(D))), tuple(map(str, range(Q))), tuple(rng.dirichlet(np.ones(Q))),
        tuple(rng.uniform(1, 4, Q)), tuple(rng.uniform(0.1, 1.5, Q)), tuple(map(tuple, pull)),
        tuple(apart),
    )  # fmt: skip
    share, everyone = volume / 1000, np.ones(D, dtype=bool)
    slope = -volume * (one.gains(volume) - one.gains(volume) @ volume / 1000)
    beta = wanted("curves", slope, share, everyone, m, np.nan, one.beside(volume))
    objective = one.objective
    best = minimize(
        lambda z: objective(z * 1000), share, method="SLSQP", options={"maxiter": 500, "ftol": 1e-12},
        bounds=list(zip(share / (1 + m), share * (1 + m))), constraints={"type": "eq", "fun": lambda z: z.sum() - 1},
    )  # fmt: skip
    assert (1 + beta) @ share == pytest.approx(1)
    assert (beta >= -m / (1 + m) - 1e-9).all()
    assert (beta <= m + 1e-9).all()
    if (slope < 0).all() or (slope > 0).all():
        return
    # where two domains serve the same capability the last of the way is flat, and slow
    assert (
        objective((1 + beta) * volume) <= best.fun + 0.01 * (objective(volume) - best.fun) + 5e-4 * best.fun
    )


def test_a_single_mover_trades_with_the_rest_as_one():
    """Of the others no error is known, so the gate holds them."""
    one, volume = curves(), np.array([300.0, 500.0, 200.0])
    slopes = Slopes(
        NAMES,
        *(np.array(x, dtype=float) for x in ([0.01, 0.01, -5], [np.inf, np.inf, 0.1], [99, 99, 99]) * 2),
    )
    counts = dict(zip(NAMES, (3000, 5000, 2000)))
    settings = config.Allocation(m=1.0)
    step = allocate(
        counts, dict.fromkeys(NAMES, 9000), dict.fromkeys(NAMES, 0.1), slopes, settings, curves=one
    )
    moved = {name: move.beta for name, move in step.moves.items()}
    assert moved["maths"] > 0.2
    assert moved["chat"] == pytest.approx(moved["code"], abs=0.002)
    assert "the one mover trades with the rest" in step.reason
    assert step.moves["chat"].note.endswith("; trades with the movers")
    assert step.rule == "curves"
    again = Allocation.from_json(json.loads(json.dumps(step.to_json())))
    assert again == step
    assert volume.sum() == step.amount_after


def test_one_domain_that_stands_out_opens_the_gate_for_all():
    """What each does the curves say, which know the errors; without any, and for other rules, the gate holds."""
    one = curves()
    counts = dict(zip(NAMES, (3000, 5000, 2000)))

    def step(rule, maths):
        slopes = Slopes(
            NAMES, *(np.array(x, dtype=float) for x in ([0.5, -0.4, maths], [1, 1, 0.1], [99, 99, 99]) * 2)
        )
        args = (counts, dict.fromkeys(NAMES, 9000), dict.fromkeys(NAMES, 0.1), slopes)
        return allocate(*args, config.Allocation(m=1.0, rule=rule), curves=one)

    opened = step("curves", -5)
    assert [move.gated for move in opened.moves.values()] == [False, False, False]
    assert opened.moves["chat"].after == 1500  # no curve asks for it
    assert opened.moves["chat"].note.startswith("less of it lowers the loss, within its error (p = 0.6")
    assert opened.moves["maths"].note == "more of it lowers the loss"
    assert [move.gated for move in step("equalise", -5).moves.values()] == [True, True, False]
    assert step("curves", -0.05).equilibrium


def test_a_handful_of_unused_rows_does_not_say_what_a_domain_does():
    """Nearly all of maths is drawn: its few unused rows are within their error."""
    measured = matrix(np.array([[0.3, 0.0, 5.0]]), error=0.1)
    moments = measured.moments
    unused = 3 + NAMES.index("maths")
    mean, training = moments.mean.copy(), moments.training.copy()
    mean[0, unused], training[unused] = 0.0, 300.0
    # of 100 drawn ones; where unused rows alone count maths is taken for an average domain: 0.25, 0.1, 0.1
    for rows, part in ((4.0, 0.94), (100.0, 0.1 / 0.45)):
        counts = moments.rows.copy()
        counts[unused] = rows
        found = replace(measured, moments=replace(moments, mean=mean, training=training, rows=counts))
        assert attribution(found, NAMES, THIRDS)[0, 2] == pytest.approx(part, abs=0.02)


def test_without_curves_equalise_takes_its_place():
    slopes = Slopes(
        NAMES, *(np.array(x, dtype=float) for x in ([4, 1, -5], [0.1] * 3, [99] * 3) * 2), whole=-9.0
    )
    args = (dict.fromkeys(NAMES, 100), dict.fromkeys(NAMES, 900), dict.fromkeys(NAMES, 1.0), slopes)
    step = allocate(*args, config.Allocation())
    assert step.rule == "equalise"
    assert step.counts == allocate(*args, config.Allocation(rule="equalise")).counts


def test_seed_noise_is_between_what_was_believed_and_what_is_seen():
    base = {"a": 2.0, "b": 2.0 * np.exp(0.5), "unlearned": 1.0}
    alike = [{"a": 1.0, "b": 2.0, "unlearned": 1.1}] * 9
    assert seed_noise(base, alike[:1]) == pytest.approx(dict.fromkeys(base, 0.1))
    believed = 0.1 * (4 / 12) ** 0.5
    assert seed_noise(base, alike) == pytest.approx({"a": believed, "b": believed, "unlearned": 0.1})
    # each set by itself, and as a part of its fall: 0.1 of 0.5 for b
    rng = np.random.default_rng(0)
    many = [
        {"a": np.exp(x), "b": 2 * np.exp(y), "unlearned": 1.1}
        for x, y in zip(rng.normal(0, 0.3 * np.log(2), 400), rng.normal(0, 0.1, 400))
    ]
    assert seed_noise(base, many) == pytest.approx({"a": 0.3, "b": 0.2, "unlearned": 0.1}, rel=0.1)


def test_the_loop_learns_exponents_from_its_rounds(tmp_path):
    """Capabilities whose powers differ threefold: the first step leaves a tenth of the gap, and what it showed halves that again."""
    sizes, powers = {"maths": 0.4, "code": 0.3, "law": 0.6}, {"maths": 0.35, "code": 0.75, "law": 0.2}

    def own(name):
        return lambda shares: 4.0 * (1 + shares[name] * 30 / sizes[name]) ** -powers[name]

    losses = {name: own(name) for name in sizes}
    world = World(losses, slope_error=(1e-4, 1e-4), untrained=4.0)
    _, result = world.run(tmp_path, tuple(sizes), rounds=3, patience=9)

    def objective(z):
        return float(np.mean([f(dict(zip(sizes, z))) for f in losses.values()]))

    best = minimize(
        objective, np.full(3, 1 / 3), bounds=[(0.01, 1)] * 3, constraints={"type": "eq", "fun": lambda z: z.sum() - 1}
    ).fun  # fmt: skip
    behind = []
    for one in result["rounds"]:
        counts = np.array([one["counts"][name] for name in sizes])
        behind.append(objective(counts / counts.sum()) - best)
    assert [one["decision"] for one in result["rounds"]] == ["start", "better", "leaning"]
    assert behind[1] < 0.1 * behind[0]
    assert behind[2] < 0.5 * behind[1]
    powers_seen = [dict(zip(sizes, one["allocation"]["curves"]["power"])) for one in result["rounds"][:2]]
    assert abs(powers_seen[1]["code"] - 0.75) < 0.6 * abs(powers_seen[0]["code"] - 0.75)


def test_a_set_that_training_harms_is_said_and_equalise_goes_on(tmp_path):
    losses = {"maths": own_domain(0.4, 0.9)("maths"), "code": own_domain(0.4, 0.5)("code")}
    _, result = World(losses, untrained=0.1).run(tmp_path, tuple(losses), rounds=2)
    assert result["rounds"][0]["allocation"]["rule"] == "equalise"
    assert any("the rule equalise takes the place of curves" in text for text in result["warnings"])
