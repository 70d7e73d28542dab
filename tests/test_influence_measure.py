"""`measure` against the formula computed directly in float64: row by row, full matrices, no hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from influence_helpers import DirectInfluence, RowPool, mixture_of, pools_of, settings, tiny
from safetensors.torch import save_file

from idealmix.errors import IdealmixError, InputError
from idealmix.influence_matrix import DOT_UNITS, UNITS, InfluenceMatrix
from idealmix.influence_stage import measure
from idealmix.training.record import TrainingRecord

DOMAINS = pools_of({"math": 7, "code": 5, "chat": 6})
REFERENCES = pools_of({"sums": 4, "talk": 5}, seed=1)
# math repeats two rows and leaves three; code is exhausted; chat leaves two
MIXTURE = mixture_of(
    {
        "math": ["r0", "r3", "r5", "r3", "r6", "r0", "r0"],
        "code": ["r0", "r1", "r2", "r3", "r4"],
        "chat": ["r1", "r2", "r4", "r5"],
    }
)
V = {"math": 0.5, "code": 0.2, "chat": 0.3}


def record(**facts) -> TrainingRecord:
    known = {"step_weights": V, "step_sizes": [0.1, 0.3], "steps": 2, "optimiser": {"eps": 1e-6}}
    rest = {"backend": "test", "seed": 0, "rows": 0, "tokens": 0, "supervised_tokens": 0, "token_shares": V}
    return TrainingRecord(**(rest | {"model_path": "model", "seconds": 0.0} | known | facts))


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def whole(model) -> InfluenceMatrix:
    return measure(model, MIXTURE, DOMAINS, REFERENCES, settings(), record=record())


@pytest.mark.parametrize("centred", [True, False])
def test_alpha_is_the_formula_with_full_matrices(model, centred):
    found = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(centred=centred), record=record())
    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, float(centred))
    np.testing.assert_allclose(found.alpha_drawn, direct.drawn, rtol=1e-8)
    np.testing.assert_allclose(found.alpha_unused, direct.unused, rtol=1e-8)
    drawn = np.array([len(set(MIXTURE.row_ids[name])) for name in DOMAINS])
    unused = np.array([len(pool.ids) for pool in DOMAINS.values()]) - drawn
    fresh = np.minimum(1.0, unused / drawn)  # doubling draws the unused rows, then drawn ones again
    assert fresh.tolist() == [3 / 4, 0, 2 / 4]
    blend = fresh * np.nan_to_num(direct.unused) + (1 - fresh) * direct.drawn
    np.testing.assert_allclose(found.alpha, blend, rtol=1e-8)
    assert np.isnan(found.alpha_unused[:, 1]).all()
    assert np.isfinite(found.alpha_unused[:, [0, 2]]).all()
    np.testing.assert_allclose(found.memorisation, direct.unused - direct.drawn, rtol=1e-8, atol=1e-12)


def test_centring_matters_here(model):
    centred, plain = (DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, c).drawn for c in (1.0, 0.0))
    assert (np.sign(centred) != np.sign(plain)).any()


def test_the_parts_of_the_layers_are_the_formula_layer_by_layer_and_sum_to_alpha(model, whole):
    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, 1.0)
    parts = {each["name"]: np.array(each["alpha"], dtype=float) for each in whole.to_json()["layers"]}
    assert list(parts) == list(direct.parts)
    np.testing.assert_allclose(sum(parts.values()), whole.alpha, rtol=1e-10)
    for name, part in direct.parts.items():  # code has drawn rows only
        np.testing.assert_allclose(parts[name][:, 1], part[:, 1], rtol=1e-8)


def test_identity_is_the_dot_of_gradients_and_its_units_are_not_nats(model, whole):
    found = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(curvature="identity"), record=record())
    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, 1.0, dense="identity")
    np.testing.assert_allclose(found.alpha_drawn, direct.drawn, rtol=1e-10)
    assert (found.units, whole.units) == (DOT_UNITS, UNITS)
    assert any("not nats" in text for text in found.warnings)


def test_the_products_are_the_same_from_both_sides(model):
    """gbar_q' R gbar_i by training rows (means) and by reference rows: R is symmetric, and both passes agree."""
    one_row = {
        name: RowPool(name, [(pool.ids[0], pool.row(0).input_ids, pool.row(0).labels)])
        for name, pool in REFERENCES.items()
    }
    seen = []
    from idealmix import influence_stage

    original = influence_stage.Moments.of
    try:
        influence_stage.Moments.of = staticmethod(
            lambda training, references: seen.append(references) or original(training, references)
        )
        found = measure(model, MIXTURE, DOMAINS, one_row, settings(), record=record())
    finally:
        influence_stage.Moments.of = original
    backward = np.array([rows.products[0] / rows.supervised[0] for rows in seen[0]])
    np.testing.assert_allclose(backward, found.moments.mean, rtol=1e-9, atol=1e-14)


def test_repetitions_are_weights(model):
    """A row drawn three times counts as three rows with the same content."""
    tripled = [
        ("r0", "r0"),
        ("r0", "copy"),
        ("r0", "again"),
        ("r3", "r3"),
        ("r3", "twin"),
        ("r5", "r5"),
        ("r6", "r6"),
    ]
    math = DOMAINS["math"]
    data = [
        (new, math.row(math.index[old]).input_ids, math.row(math.index[old]).labels) for old, new in tripled
    ]
    spread = DOMAINS | {"math": RowPool("math", data)}
    options = {"settings": settings(fisher="empirical"), "record": record()}  # sampled labels are keyed by id
    counted = measure(model, MIXTURE, DOMAINS, REFERENCES, **options)
    copied = measure(
        model, mixture_of(MIXTURE.row_ids | {"math": [row[0] for row in data]}), spread, REFERENCES, **options
    )
    np.testing.assert_allclose(counted.alpha_drawn, copied.alpha_drawn, rtol=1e-9)
    # copies are not new evidence, but only ids can tell
    assert (counted.entries("drawn").se[:, 0] > copied.entries("drawn").se[:, 0]).all()


def test_without_a_record_domains_weigh_by_supervised_tokens(model):
    found = measure(model, MIXTURE, DOMAINS, REFERENCES, settings())
    tokens = {
        d: sum(DOMAINS[d].supervised[DOMAINS[d].index[i]] for i in ids) for d, ids in MIXTURE.row_ids.items()
    }
    expected = {d: count / sum(tokens.values()) for d, count in tokens.items()}
    assert found.step_weights == pytest.approx(expected)
    assert found.facts["token_shares"] == pytest.approx(expected)
    assert any("steps are not known" in text for text in found.warnings)
    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, expected, 1.0)
    np.testing.assert_allclose(found.alpha_drawn, direct.drawn, rtol=1e-8)


def test_the_losses_are_nats_per_supervised_token_of_the_references(model, whole):
    from curvature_helpers import Direct

    for name, pool in REFERENCES.items():
        direct = Direct(model, pool.named(pool.ids, name))
        assert whole.losses[name] == pytest.approx(sum(direct.losses) / direct.T)


def test_batch_size_changes_nothing(model, whole):
    found = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(batch_tokens=4096), record=record())
    for kind in ("acting", "drawn"):
        for one, other in zip(found.entries(kind), whole.entries(kind)):
            np.testing.assert_allclose(one, other, rtol=1e-8)


def test_all_rows_measured_cost_no_subsample_error_and_a_sample_does():
    model, domains = tiny(), pools_of({"math": 60, "code": 20}, seed=2)
    mixture = mixture_of({"math": domains["math"].ids[:40], "code": domains["code"].ids[:16]})
    whole = measure(model, mixture, domains, REFERENCES, settings())
    assert np.array_equal(whole.se_subsample, np.zeros((2, 2)))
    assert (whole.se_population > 0).all()
    half = measure(model, mixture, domains, REFERENCES, settings(sample_fraction=0.5, least_rows=16))
    # rows are taken of each set: half of 40, and never fewer than 16 or all; of 20 unused as of 40 drawn
    assert half.moments.rows.tolist() == [20, 16, 16, 4]
    assert half.moments.fraction.tolist() == [0.5, 1.0, 16 / 20, 1.0]
    assert (half.se_subsample > 0).all()
    assert (half.se_subsample < half.se_population).all()
    again = measure(model, mixture, domains, REFERENCES, settings(sample_fraction=0.5, least_rows=16))
    assert np.array_equal(again.alpha, half.alpha)
    other = measure(model, mixture, domains, REFERENCES, settings(sample_fraction=0.5, least_rows=16), seed=1)
    assert not np.array_equal(other.alpha, half.alpha)


def test_a_large_pool_is_not_measured_beyond_what_was_drawn_or_the_least():
    domains = pools_of({"math": 90}, seed=3)
    mixture = mixture_of({"math": domains["math"].ids[:20]})
    found = measure(tiny(), mixture, domains, REFERENCES, settings(least_rows=30))
    assert found.moments.rows.tolist() == [20, 30]
    found = measure(tiny(), mixture, domains, REFERENCES, settings(least_rows=1))
    assert found.moments.rows.tolist() == [20, 20]
    assert found.moments.fraction.tolist() == [1.0, 20 / 70]
    assert (found.entries("unused", subsample=True).se > 0).all()


def test_a_sampled_mixture_keeps_its_shares_in_the_curvature(monkeypatch):
    """Small domains are measured whole, large ones in part: the weights make up for it."""
    from idealmix import influence_stage

    seen = []
    original = influence_stage.fit_curvature
    monkeypatch.setattr(
        influence_stage,
        "fit_curvature",
        lambda kind, c, batches, **o: seen.append(batches) or original(kind, c, batches, **o),
    )
    domains = pools_of({"math": 60, "code": 16}, seed=2)
    mixture = mixture_of({"math": domains["math"].ids * 2, "code": domains["code"].ids})
    measure(tiny(), mixture, domains, REFERENCES, settings(sample_fraction=0.4))
    totals = {"math": 0.0, "code": 0.0}
    for batch in seen[0]:
        for row_id, weight in zip(batch.row_ids, batch.weights.tolist()):
            totals[row_id.split("/")[0]] += weight
    assert totals == pytest.approx({"math": 120.0, "code": 16.0})


# --- the finite response -------------------------------------------------------------------------------------


def test_finite_is_the_gradient_flow_in_the_optimisers_metric(model, tmp_path):
    """R = P^1/2 (1 - exp(-tau L)) / L P^1/2 with L = P^1/2 H P^1/2; P of rank one here, so nothing is approximated."""
    from curvature_helpers import Direct

    from idealmix.curvature import select_layers

    eps, moments = 1e-6, {}
    layers = select_layers(model)
    generator = torch.Generator().manual_seed(0)
    roots = {}
    for layer in layers:
        r, c = (
            torch.rand(n, generator=generator, dtype=torch.float64) + 0.5 for n in (layer.d_out, layer.d_in)
        )
        roots[layer.name] = torch.outer(r, c)  # P^1/2
        second = (1 / roots[layer.name] ** 2 - eps) ** 2
        moments[f"{layer.name}.weight"] = (second[:, :-1] if layer.bias else second).contiguous()
        if layer.bias:
            moments[f"{layer.name}.bias"] = second[:, -1].contiguous()
    save_file(moments, tmp_path / "second_moments.safetensors")
    tau = 0.4
    found = measure(
        model, MIXTURE, DOMAINS, REFERENCES, settings(response="finite"), record=record(), folder=tmp_path
    )
    assert found.facts["tau"] == pytest.approx(tau)
    assert found.facts["metric"] == "adamw"

    direct = DirectInfluence(model, MIXTURE, DOMAINS, REFERENCES, V, 1.0)
    rows = [
        row
        for d, pool in DOMAINS.items()
        for row in pool.named(
            sorted(set(MIXTURE.row_ids[d])),
            d,
            [float(MIXTURE.row_ids[d].count(i)) for i in sorted(set(MIXTURE.row_ids[d]))],
        )
    ]
    mixed = Direct(model, rows, label_seed=0)
    expected = np.zeros((2, 3))
    for name, root in roots.items():
        p = root.flatten()
        scaled = [row[name].flatten() * p for row in mixed.rows]
        fisher = sum(w * torch.outer(v, v) for w, v in zip(mixed.weights, scaled)) / mixed.T
        layer = mixed.layers[name]
        r, c = root[:, 0] / root[0, 0].sqrt(), root[0] / root[0, 0].sqrt()
        A, S = mixed.A[name] * torch.outer(c, c), mixed.S[name] * torch.outer(r, r)
        turn = torch.kron(torch.linalg.eigh(S)[1], torch.linalg.eigh(A)[1])
        values = (turn.T @ fisher @ turn).diagonal()
        response = torch.where(values > 1e-15, (1 - torch.exp(-tau * values)) / values, tau)
        direct.R[name] = torch.diag(p) @ turn @ torch.diag(response) @ turn.T @ torch.diag(p)
        assert layer.d_in * layer.d_out == len(p)
    g = {}
    for name, pool in (DOMAINS | REFERENCES).items():
        ids = sorted(set(MIXTURE.row_ids.get(name, pool.ids)))
        counts = [float(MIXTURE.row_ids[name].count(i)) if name in DOMAINS else 1.0 for i in ids]
        each = Direct(model, pool.named(ids, name, counts))
        g[name] = {n: each.total(n).flatten() / each.T for n in roots}
    for n in roots:
        mix = sum(V[d] * g[d][n] for d in DOMAINS)
        for q, reference in enumerate(REFERENCES):
            for i, d in enumerate(DOMAINS):
                expected[q, i] -= V[d] * float(g[reference][n] @ direct.R[n] @ (g[d][n] - mix))
    np.testing.assert_allclose(found.alpha_drawn, expected, rtol=1e-7)


def test_finite_needs_a_record_and_its_limits_are_dot_and_inverse(model):
    with pytest.raises(InputError, match="no record of them"):
        measure(model, MIXTURE, DOMAINS, REFERENCES, settings(response="finite"))
    with pytest.raises(InputError, match="no record of them"):
        measure(
            model, MIXTURE, DOMAINS, REFERENCES, settings(response="finite"), record=record(step_sizes=[])
        )
    with pytest.raises(InputError, match="needs a curvature"):
        measure(
            model,
            MIXTURE,
            DOMAINS,
            REFERENCES,
            settings(response="finite", curvature="identity"),
            record=record(),
        )
    short = measure(
        model, MIXTURE, DOMAINS, REFERENCES, settings(response="finite"), record=record(step_sizes=[1e-9])
    )
    dot = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(curvature="identity"), record=record())
    np.testing.assert_allclose(short.alpha / 1e-9, dot.alpha, rtol=1e-5)
    assert any("plain gradient descent" in text for text in short.warnings)


def test_an_untrained_layer_has_no_metric(model, tmp_path):
    save_file({"blocks.0.q.weight": torch.ones(4, 6)}, tmp_path / "second_moments.safetensors")
    with pytest.raises(IdealmixError, match="no second moment"):
        measure(
            model, MIXTURE, DOMAINS, REFERENCES, settings(response="finite"), record=record(), folder=tmp_path
        )


# --- inputs and warnings -------------------------------------------------------------------------------------


def test_a_domain_outside_the_mixture_is_not_measured(model):
    mixture = mixture_of({name: ids for name, ids in MIXTURE.row_ids.items() if name != "chat"})
    found = measure(model, mixture, DOMAINS, REFERENCES, settings())
    assert np.isnan(found.alpha[:, 2]).all()
    assert [row[2] for row in found.signs()] == ["not measured"] * 2
    assert any("chat has no rows" in text for text in found.warnings)
    assert found.to_json()["alpha"][0][2] is None
    assert np.isfinite(found.alpha[:, :2]).all()


def test_few_rows_are_told(whole):
    told = " ".join(whole.warnings)
    assert "sums: 4 rows measured" in told
    assert "math, drawn rows: 4 rows measured" in told
    assert "math, unused rows: 3 rows measured" in told


@pytest.mark.parametrize(
    ("mixture", "references", "message"),
    [
        (mixture_of({"math": []}), REFERENCES, "no rows"),
        (mixture_of({"maths": ["r0"]}), REFERENCES, "'maths'"),
        (mixture_of({"math": ["lost"]}), REFERENCES, "'lost'"),
        (MIXTURE, {}, "no reference set"),
    ],
)
def test_wrong_input_is_refused(model, mixture, references, message):
    with pytest.raises(InputError, match=message):
        measure(model, mixture, DOMAINS, references, settings())


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "identity"])
def test_progress_counts_every_batch_once(model, curvature):
    seen = []
    measure(
        model,
        MIXTURE,
        DOMAINS,
        REFERENCES,
        settings(curvature=curvature),
        progress=lambda *facts: seen.append(facts),
    )
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total, _ in seen} == {len(seen)}


def test_the_model_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    measure(model, MIXTURE, DOMAINS, REFERENCES, settings())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert wanted == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
