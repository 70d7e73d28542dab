"""Each method's arithmetic against a step computed by hand, and what it asks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from idealmix.errors import InputError
from idealmix.methods import BUILT_IN, check_name, load_method
from idealmix.methods.dirichlet import Random, RandomMean
from idealmix.methods.dmo import DMO, Law, fit_law, minimise
from idealmix.methods.doge import DoGE, doge_step
from idealmix.methods.doremi import DoReMi, doremi_step
from idealmix.methods.dynamixsft import DynamixSFT, DynamixSFTRule, sampling_weights, smoothed_rewards
from idealmix.methods.fixed import Specific, Temperature, flattened
from idealmix.methods.protocol import Adapt, Method, Note, Outcome, Problem, Rounds, Train
from idealmix.methods.regmix import RegMix, best_predicted, draw_shares, linear_prediction, tree_prediction


def problem(**changes: Any) -> Problem:
    facts: dict[str, Any] = {
        "domains": ("a", "b", "c"),
        "natural": np.array([0.64, 0.32, 0.04]),
        "most": np.array([2.0, 2.0, 0.5]),
        "weights": {"a": 0.5, "b": 0.5},
        "amount": 1000.0,
        "unit": "tokens",
        "seed": 0,
    }
    return Problem(**{**facts, **changes})


def ask(method: Method, of: Problem, loss: Any = None) -> tuple[list[Any], list[Any]]:
    """Drive a search with a made-up loss of shares; returns (requests, mixtures)."""
    steps, answer, requests = method.search(of), None, []
    try:
        while True:
            request = steps.send(answer)
            requests.append(request)
            answer = None
            if isinstance(request, Train):
                losses = loss(request) if loss else {name: 1.0 for name in of.weights}
                value = sum(of.weights[name] * losses[name] for name in of.weights)
                amount = request.fraction * of.amount
                answer = Outcome(np.asarray(request.shares), amount, losses, value, str(len(requests)))
            elif isinstance(request, Adapt):
                answer = np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]])
            elif isinstance(request, Rounds):
                answer = ({"a": 1, "b": 2, "c": 3}, np.array([0.1, 0.2, 0.7]))
    except StopIteration as done:
        return requests, done.value


def test_fixed_mixtures() -> None:
    assert ask(load_method("base"), problem()) == ([], [])
    assert ask(load_method("joint"), problem())[1][0].tolist() == [0.64, 0.32, 0.04]
    assert ask(load_method("uniform"), problem())[1][0].tolist() == pytest.approx([1 / 3] * 3)
    # square roots of 0.64, 0.04, 0.32: 0.8, 0.2, 0.5657
    by_hand = [0.8 / 1.5657, 0.5657 / 1.5657, 0.2 / 1.5657]
    assert ask(Temperature(), problem())[1][0] == pytest.approx(by_hand, abs=1e-4)
    assert flattened(np.array([0.64, 0.36]), 1.0) == pytest.approx([0.64, 0.36])


def test_specific_leaves_out_pools_that_are_too_small_and_says_by_how_much() -> None:
    requests, found = ask(Specific(), problem(), lambda r: {"a": 2 - r.shares[1], "b": 1.0})
    notes = [request.text for request in requests if isinstance(request, Note)]
    assert notes == ["specific: c alone is 500 tokens short of the budget; left out"]
    assert [list(request.shares) for request in requests if isinstance(request, Train)] == [
        [1, 0, 0],
        [0, 1, 0],
    ]
    assert list(found[0]) == [0, 1, 0]
    with pytest.raises(InputError, match="gives 800, which is 200 short"):
        ask(Specific(), problem(most=np.array([0.8, 0.1, 0.1])))


def test_random_takes_the_best_and_the_mean_has_the_same_mixtures() -> None:
    requests, found = ask(Random(k=4), problem(), lambda r: {"a": abs(r.shares[0] - 0.5), "b": 0.0})
    drawn = [request.shares for request in requests]
    assert len(drawn) == 4
    assert np.allclose(np.sum(drawn, axis=1), 1)
    assert list(found[0]) == list(min(drawn, key=lambda shares: abs(shares[0] - 0.5)))
    assert np.array_equal(ask(RandomMean(k=4), problem())[1], drawn)
    assert not np.array_equal(ask(RandomMean(k=4), problem(seed=1))[1], drawn)


def test_doremi_step_by_hand() -> None:
    # weights 0.5, 0.3, 0.2 times e^excess: 0.5 * 2, 0.3 * 1, 0.2 * 4 = 1, 0.3, 0.8; sum 2.1
    excess = np.log([2.0, 1.0, 4.0])
    plain = doremi_step(np.array([0.5, 0.3, 0.2]), excess, 1.0, 0.0)
    assert plain == pytest.approx([1 / 2.1, 0.3 / 2.1, 0.8 / 2.1])
    smoothed = doremi_step(np.array([0.5, 0.3, 0.2]), excess, 1.0, 0.3)
    assert smoothed == pytest.approx(0.7 * plain + 0.1)
    half = doremi_step(np.array([0.5, 0.5]), np.log([4.0, 1.0]), 0.5, 0.0)  # e^(0.5 log 4) = 2
    assert half == pytest.approx([2 / 3, 1 / 3])


def test_doremi_asks_for_joint_then_a_uniform_proxy_and_averages() -> None:
    requests, found = ask(DoReMi(), problem())
    reference, proxy = requests
    assert list(reference.shares) == [0.64, 0.32, 0.04]
    assert proxy.reference.place == "1"
    assert proxy.rule.measures == "excess_loss"
    assert list(proxy.rule.weights) == pytest.approx([1 / 3] * 3)
    assert found[0] == pytest.approx([0.3, 0.3, 0.4])
    twice, _ = ask(DoReMi(rounds=2), problem())
    assert twice[2].shares == pytest.approx(
        [0.3, 0.3, 0.4]
    )  # the next reference is trained on what was found


def test_doge_step_by_hand() -> None:
    # rate 0.1, mu 0.1: exponents clip(0.1 s, 0, 0.5) / 0.1 = clip(s, 0, 5): 2, 0 (negative), 5 (clipped)
    found = doge_step(np.array([0.5, 0.25, 0.25]), np.array([2.0, -3.0, 9.0]), rate=0.1, mu=0.1)
    grown = np.array([0.5 * math.exp(2), 0.25, 0.25 * math.exp(5)])
    assert found == pytest.approx(grown / grown.sum())


def test_doge_without_a_reference_set_says_so() -> None:
    with pytest.raises(InputError, match="DoGE needs a reference set"):
        ask(DoGE(), problem(weights={}))
    requests, found = ask(DoGE(target="domains"), problem(weights={}))
    assert requests[0].towards_references is False
    assert found[0] == pytest.approx([0.3, 0.3, 0.4])


def test_dynamixsft_rewards_and_weights_by_hand() -> None:
    # rewards 1, 3, 2 scale to 0, 1, 0.5; Q: 0.9 * old + 0.1 * these
    values = smoothed_rewards(np.array([0.5, 0.0, 1.0]), np.array([1.0, 3.0, 2.0]), 0.9)
    assert values == pytest.approx([0.45, 0.1, 0.95])
    assert smoothed_rewards(np.zeros(2), np.array([7.0, 7.0]), 0.9).tolist() == [0, 0]
    # prior 0.5, 0.25, 0.25 times e^(log 2 * (0, 1, 2)) = 0.5, 0.5, 1 -> 0.25, 0.25, 0.5
    prior, beta = np.array([0.5, 0.25, 0.25]), math.log(2)
    plain = sampling_weights(np.array([0.0, 1.0, 2.0]), prior, beta, 0.0)
    assert plain == pytest.approx([0.25, 0.25, 0.5])
    mixed = sampling_weights(np.array([0.0, 1.0, 2.0]), prior, beta, 0.3)
    assert mixed == pytest.approx(0.7 * np.array([0.25, 0.25, 0.5]) + 0.1)


def test_dynamixsft_begins_at_the_prior_and_moves_when_rewarded() -> None:
    requests, found = ask(DynamixSFT(gamma=0.3), problem())
    rule = requests[0].rule
    assert rule.interval == 50
    assert rule.weights == pytest.approx(0.7 * np.array([0.64, 0.32, 0.04]) + 0.1)
    assert found[0] == pytest.approx([0.3, 0.3, 0.4])
    moved = DynamixSFTRule(np.array([0.5, 0.5]), beta=1.0, gamma=0.0, alpha=0.0, interval=1)
    moved.update(np.array([3.0, 5.0]), rate=0.1)  # Q = 0, 1
    assert moved.weights == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_regmix_draws_fit_the_pools_and_follow_the_prior() -> None:
    of = problem(most=np.array([0.9, 0.9, 0.3]))
    shares = draw_shares(of.natural, of.most, 4000, np.random.default_rng(0))
    assert (shares <= of.most + 1e-9).all()
    assert np.allclose(shares.sum(1), 1)
    free = draw_shares(of.natural, np.ones(3), 20_000, np.random.default_rng(0))
    assert free.mean(0) == pytest.approx([0.5109, 0.3613, 0.1277], abs=0.02)  # u^0.5, scaled
    with pytest.raises(InputError, match="hardly ever fit"):
        draw_shares(of.natural, np.array([0.4, 0.4, 0.1]), 4, np.random.default_rng(0))


def test_regmix_regressions_and_the_mean_of_the_best() -> None:
    shares = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
    assert linear_prediction(shares, np.array([3.0, 1, 2, 2]), np.array([[0.2, 0.5, 0.3]])) == pytest.approx(
        [1.7]
    )
    # losses 4, 1, 3, 2: the best two are the second and the fourth
    assert best_predicted(np.array([4.0, 1, 3, 2]), shares, 2).tolist() == [0.25, 0.75, 0]
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    X = rng.dirichlet(np.ones(3), 64)
    y = (X[:, 0] - 0.6) ** 2
    wanted = np.array([[0.6, 0.2, 0.2], [0.05, 0.5, 0.45]])
    near, far = tree_prediction(X, y, wanted, seed=0)
    assert near < 0.05 < far


def test_regmix_finds_a_linear_optimum() -> None:
    method = RegMix(runs=8, fraction=0.25, regressor="linear", candidates=2000, keep=16)
    requests, found = ask(method, problem(), lambda r: {"a": 2 - r.shares[1], "b": 1.0})
    assert [request.fraction for request in requests] == [0.25] * 8
    assert found[0][1] > 0.9


def test_dmo_law_by_hand_and_its_fit() -> None:
    law = Law(c=2.0, gamma=0.5, alpha=0.5, beta=1.0, e=0.25)
    # 2 / (4 + 0.5 * sqrt(16)) + 0.25 = 2 / 6 + 0.25
    assert law.loss(np.array(4.0), np.array(16.0)) == pytest.approx(1 / 3 + 0.25)
    own = np.array([1.0, 2, 4, 8, 16, 3, 3, 3, 5])
    others = np.array([8.0, 8, 8, 8, 8, 2, 16, 32, 4])
    fitted = fit_law(own, others, law.loss(own, others))
    assert fitted.loss(own, others) == pytest.approx(law.loss(own, others), abs=2e-3)


def test_dmo_minimises_the_weighted_sum() -> None:
    # two laws c / own with weights 1 and 4: own shares in proportion to sqrt(weight c): 1 : 2
    laws = {i: (w, Law(1.0, 0.0, 1.0, 1.0, 0.0)) for i, w in ((0, 1.0), (1, 4.0))}
    assert minimise(laws, np.array([1.0, 1.0, 1.0]), 100.0) == pytest.approx([1 / 3, 2 / 3, 0], abs=2e-3)
    assert minimise(laws, np.array([1.0, 0.5, 1.0]), 100.0)[1] <= 0.5 + 1e-6


def test_dmo_perturbs_the_domains_that_have_a_reference_set() -> None:
    true = {"a": Law(3.0, 0.1, 0.5, 0.5, 0.1), "b": Law(6.0, 0.1, 0.5, 0.5, 0.1)}

    def loss(request: Train) -> dict[str, float]:
        own = np.asarray(request.shares) * request.fraction * 1000
        return {n: float(law.loss(own[i], own.sum() - own[i])) for i, (n, law) in enumerate(true.items())}

    requests, found = ask(DMO(ratios=(0.5, 1, 2, 3)), problem(), loss)
    assert len(requests) == 1 + 2 * 3
    assert requests[0].fraction == pytest.approx(0.2)
    assert requests[3].shares == pytest.approx(
        [3 / 5, 1 / 5, 1 / 5]
    )  # a three times as much, others as before
    assert requests[3].fraction == pytest.approx(0.2 * 5 / 3)
    # minimum of 3 / sqrt(x) + 6 / sqrt(y): x : y = 3^(2/3) : 6^(2/3), nearly nothing for c
    assert found[0][1] / found[0][0] == pytest.approx(2 ** (2 / 3), rel=0.15)
    assert found[0][2] < 0.1
    with pytest.raises(InputError, match="'other' has none"):
        ask(DMO(), problem(weights={"a": 0.5, "other": 0.5}))


def test_ideal_hands_over_the_rounds_counts_and_the_paper_their_shares() -> None:
    assert ask(load_method("ideal"), problem())[1] == [{"a": 1, "b": 2, "c": 3}]
    requests, found = ask(load_method("ideal-paper"), problem())
    assert requests == [Rounds(paper=True)]
    assert list(found[0]) == [0.1, 0.2, 0.7]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_loads_with_its_defaults(name: str) -> None:
    assert check_name(name) is None
    assert callable(load_method(name).search)


def test_wrong_names_and_options_are_explained(tmp_path) -> None:
    with pytest.raises(InputError, match="did you mean 'doremi'"):
        load_method("doremy")
    with pytest.raises(InputError, match="its options are k, concentration"):
        load_method("random", {"kk": 3})
    with pytest.raises(InputError, match="above 0 and is at most 1; found 2"):
        load_method("regmix", {"fraction": 2})
    (tmp_path / "mine_of_tests.py").write_text("class Half:\n    pass\n", encoding="utf-8")
    with pytest.raises(InputError, match="no method `search`"):
        load_method("mine_of_tests:Half", folder=tmp_path)
