"""The unrolled influence: against its limits, against single models, and against training again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from influence_helpers import mixture_of, pools_of, settings, tiny
from safetensors.torch import save_file
from test_influence_measure import DOMAINS, MIXTURE, REFERENCES, V, record

from idealmix.curvature import make_batches, select_layers
from idealmix.errors import IdealmixError, InputError
from idealmix.influence_stage import measure

NORMS = [4.0, 0.5, 2.0, 1.0, 8.0, 1.0]
STEPS = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
CLIPPED = [0.025, 0.2, 0.15, 0.3, 0.025, 0.1]  # by hand: the largest norm is 1


def clipped_record(**facts):
    return record(
        **(
            {"step_sizes": STEPS, "gradient_norms": NORMS, "optimiser": {"eps": 1e-6, "max_grad_norm": 1.0}}
            | facts
        )
    )


def keep(folder, number: int, model, moments) -> None:
    """A stage of the training, as the trainer writes it."""
    place = folder / "segments" / str(number)
    place.mkdir(parents=True)
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, place / "parameters.safetensors")
    if moments:
        save_file(moments, place / "second_moments.safetensors")


def some_moments(model, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return {
        n: torch.rand(p.shape, generator=g, dtype=torch.float64) + 0.2 for n, p in model.named_parameters()
    }


def test_steps_count_by_what_clipping_left():
    assert clipped_record().clipped_steps == pytest.approx(CLIPPED)
    assert clipped_record(gradient_norms=[]).clipped_steps == STEPS
    assert clipped_record(optimiser={"max_grad_norm": 0}).clipped_steps == STEPS
    found = measure(
        tiny(), MIXTURE, DOMAINS, REFERENCES, settings(response="finite"), record=clipped_record()
    )
    assert found.facts["tau"] == pytest.approx(sum(CLIPPED))


def test_three_stages_of_one_model_are_the_finite_response(tmp_path):
    """Equal curvatures commute: the segments' exponentials join to that of the whole."""
    model = tiny()
    moments = some_moments(model)
    save_file(moments, tmp_path / "second_moments.safetensors")
    for number in (1, 2, 3):
        keep(tmp_path, number, model, moments)
    asked = {"record": clipped_record(segments=[1, 3, 5]), "folder": tmp_path}
    finite, unrolled = (
        measure(model, MIXTURE, DOMAINS, REFERENCES, settings(response=kind), **asked)
        for kind in ("finite", "unrolled")
    )
    for name in ("alpha_drawn", "alpha_unused", "alpha", "se_population"):
        np.testing.assert_allclose(getattr(unrolled, name), getattr(finite, name), rtol=1e-8, err_msg=name)
    for name, part in finite.layers.items():
        np.testing.assert_allclose(unrolled.layers[name], part, rtol=1e-7, atol=1e-12)
    assert unrolled.facts["tau"] == pytest.approx(sum(CLIPPED))
    assert unrolled.losses == pytest.approx(finite.losses)


def test_each_segment_is_measured_at_its_own_model_and_the_end_gets_its_own_back(tmp_path):
    """With next to no steps the parts add: each is the finite response of that segment's model."""
    models = [tiny(seed) for seed in (1, 2, 3)]
    model = tiny(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for number, stage in enumerate(models, 1):
        keep(tmp_path, number, stage, some_moments(stage, number))
    sizes = [1e-10, 2e-10, 4e-10]
    found = measure(
        model, MIXTURE, DOMAINS, REFERENCES, settings(response="unrolled"), folder=tmp_path,
        record=record(step_sizes=sizes, segments=[1, 2, 3]),
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert any("no gradient norms" in text for text in found.warnings)

    def gradient(of, pool, row_ids):
        batches = make_batches(
            [
                (str(k), pool.row(pool.index[i]).input_ids, pool.row(pool.index[i]).labels, 1.0)
                for k, i in enumerate(row_ids)
            ],
            10**6,
        )
        of.zero_grad()
        (batch,) = batches
        logits = of(batch.input_ids, batch.attention_mask).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten()).backward()
        return {
            layer.name: layer.matrix({n: p.grad for n, p in of.named_parameters()}).clone()
            for layer in select_layers(of)
        }

    expected = np.zeros((2, 3))
    for number, (stage, size) in enumerate(zip(models, sizes), 1):
        moments = some_moments(stage, number)
        drawn = {d: gradient(stage, pool, MIXTURE.row_ids[d]) for d, pool in DOMAINS.items()}
        for layer in select_layers(stage):
            log = -0.5 * torch.log(layer.matrix(moments).sqrt() + 1e-6)
            root = torch.exp(log.mean(1, keepdim=True) + log.mean(0, keepdim=True) - log.mean())
            mix = sum(V[d] * drawn[d][layer.name] for d in DOMAINS)
            for q, pool in enumerate(REFERENCES.values()):
                asked = gradient(model, pool, pool.ids)[layer.name]
                for i, d in enumerate(DOMAINS):
                    expected[q, i] -= (
                        size * V[d] * float((asked * root**2 * (drawn[d][layer.name] - mix)).sum())
                    )
    np.testing.assert_allclose(found.alpha_drawn, expected, rtol=1e-6)


def test_what_is_missing_is_told(tmp_path):
    model = tiny()
    ask = settings(response="unrolled")
    with pytest.raises(InputError, match="needs stages of the training"):
        measure(model, MIXTURE, DOMAINS, REFERENCES, ask, record=record(), folder=tmp_path)
    with pytest.raises(InputError, match="eigenbasis"):
        measure(
            model,
            MIXTURE,
            DOMAINS,
            REFERENCES,
            settings(response="unrolled", curvature="identity"),
            record=record(),
        )
    with pytest.raises(IdealmixError, match="stage of the training is missing"):
        measure(model, MIXTURE, DOMAINS, REFERENCES, ask, record=record(segments=[1]), folder=tmp_path)
    place = tmp_path / "segments" / "1"
    place.mkdir(parents=True)
    save_file({"blocks.0.q.weight": torch.ones(9, 9)}, place / "parameters.safetensors")
    with pytest.raises(IdealmixError, match=r"no parameter blocks.0.q.weight of shape \(9, 9\)"):
        measure(model, MIXTURE, DOMAINS, REFERENCES, ask, record=record(segments=[1]), folder=tmp_path)


# --- training again ------------------------------------------------------------------------------------------


def gradient_descent(weights, pools, layers, sizes, keep_after=()):
    """Full-batch gradient descent of some layers on sum_i w_i loss_i; models at the asked steps, and the end's."""
    model = tiny(4)
    trained = [p for name, p in model.named_parameters() if name.rsplit(".", 1)[0] in layers]
    data = {
        name: make_batches(
            [(row.id, row.input_ids, row.labels, 1.0) for row in map(pool.row, range(len(pool)))], 10**6
        )[0]
        for name, pool in pools.items()
    }
    kept = []
    for number, size in enumerate(sizes, 1):
        loss = sum(w * mean_loss(model, data[name]) for name, w in weights.items())
        for p, g in zip(trained, torch.autograd.grad(loss, trained)):
            p.data -= size * g
        if number in keep_after:
            kept.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return model, kept


def mean_loss(model, batch):
    logits = model(batch.input_ids, batch.attention_mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())


def test_unrolled_is_what_training_again_does_and_nearer_than_finite(tmp_path):
    """Gradient descent from a random start, far from any optimum: three segments, sizes that fall."""
    pools = pools_of({"math": 14, "code": 12, "chat": 13}, seed=3)
    references = pools_of({"sums": 9, "talk": 9}, seed=4)
    mixture = mixture_of({name: pool.ids for name, pool in pools.items()})
    layers = ["blocks.1.down"]  # the loss is convex in it, and the Gauss-Newton matrix is its Hessian
    sizes = [0.1 * (1 - k / 24) for k in range(24)]
    weights = dict(V)
    model, kept = gradient_descent(weights, pools, layers, sizes, keep_after=(4, 12, 20))
    for number, parameters in enumerate(kept, 1):
        place = tmp_path / "segments" / str(number)
        place.mkdir(parents=True)
        save_file(parameters, place / "parameters.safetensors")
    true, step = np.zeros((2, 3)), 0.02
    for i, name in enumerate(pools):
        for sign in (1, -1):
            changed = {d: w * (1 + sign * step * (d == name)) for d, w in weights.items()}
            total = sum(changed.values())
            again, _ = gradient_descent({d: w / total for d, w in changed.items()}, pools, layers, sizes)
            for q, pool in enumerate(references.values()):
                batch = make_batches(
                    [(r.id, r.input_ids, r.labels, 1.0) for r in map(pool.row, range(len(pool)))], 10**6
                )[0]
                true[q, i] += sign * float(mean_loss(again, batch).detach()) / (2 * step)
    told = record(step_sizes=sizes, segments=[4, 12, 20])
    off = {}
    for kind in ("finite", "unrolled"):
        alpha = measure(
            model,
            mixture,
            pools,
            references,
            settings(response=kind, layers=layers),
            record=told,
            folder=tmp_path,
        ).alpha
        off[kind] = np.linalg.norm(alpha - true) / np.linalg.norm(true)
        if kind == "unrolled":
            slope = (alpha * true).sum() / (alpha**2).sum()
            correlation = np.corrcoef(alpha.ravel(), true.ravel())[0, 1]
    assert off["unrolled"] < off["finite"]
    assert off["unrolled"] < 0.03
    assert 0.97 < slope < 1.03
    assert correlation > 0.999


def test_rows_that_come_in_another_order_keep_their_own_products(tmp_path, monkeypatch):
    """A batch that was cut for want of memory in a later segment changes the order of its rows."""
    from idealmix import influence_unrolled as module

    model = tiny()
    for number in (1, 2, 3):
        keep(tmp_path, number, tiny(number), some_moments(model, number))
    asked = {"record": clipped_record(segments=[1, 3, 5]), "folder": tmp_path}
    plain = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(response="unrolled"), **asked)
    original, calls = module.row_dots, []

    def turned(*args, **options):
        found = original(*args, **options)
        calls.append(1)
        if len(calls) % 2 or not options.get("total"):
            return found
        rows = found.rows
        back = list(range(len(rows.row_ids)))[::-1]
        ids = tuple(rows.row_ids[k] for k in back)
        rows = replace(
            rows,
            row_ids=ids,
            weights=rows.weights[back],
            sums=rows.sums[back],
            supervised=rows.supervised[back],
        )
        return replace(found, dots=found.dots[back], rows=rows)

    monkeypatch.setattr(module, "row_dots", turned)
    other = measure(model, MIXTURE, DOMAINS, REFERENCES, settings(response="unrolled"), **asked)
    assert len(calls) > 6
    np.testing.assert_allclose(other.alpha, plain.alpha, rtol=1e-9)
    np.testing.assert_allclose(other.se_population, plain.se_population, rtol=1e-9)
